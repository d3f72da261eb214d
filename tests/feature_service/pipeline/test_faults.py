"""The extraction job on a cluster of several nodes, with everything that goes wrong in one corpus.

An undisturbed run is compared, to the byte, with one that loses an actor and a node, and with one
whose disk fills and whose driver is killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from lfmim.data.demo_corpus import make_clip
from lfmim.data.store import quarantined, read_table, stored_ids
from lfmim.schema import ID, InputError
from lfmim.storage import exclusive
from tests.support.clips import write_clip
from tests.support.toy import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# Read by Python at the start of a decoder (only there): two clips get a decoder that really
# crashes, really hangs.
INJECTION = """
import sys
if "feature_service.operators.isolation" in sys.orig_argv:
    import av
    real_open = av.open
    def open_(file, *args, **kwargs):
        if "segfault" in file.name:
            import ctypes
            ctypes.string_at(0)
        if "hang" in file.name:
            import time
            time.sleep(3600)
        return real_open(file, *args, **kwargs)
    av.open = open_
"""
TIMEOUT = 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """40 usable clips, 6 rows of text alone (last in the manifest), and 6 rows that must be
    quarantined."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "injected").mkdir()
    (folder / "injected" / "sitecustomize.py").write_text(INJECTION)
    rows = []
    for name in ("hang", "segfault"):
        rows.append((name, write_clip(folder / f"{name}.mp4", frames=4, seconds=0.2)))
    for i in range(37):
        rows.append(
            (
                f"clip{i:02d}",
                write_clip(folder / f"{i}.mp4", frames=8 + i % 5, seconds=0.3 + 0.02 * i),
            )
        )
    for i in range(3):  # with a face
        make_clip(
            folder / f"face{i}.mp4",
            {"text": "anger", "audio": "anger", "vision": "anger"},
            key=str(i),
        )
        rows.append((f"face{i}", folder / f"face{i}.mp4"))
    good = rows[2][1].read_bytes()
    for name, content in (
        ("empty", b""),
        ("text", b"not a video " * 99),
        ("truncated", good[: len(good) // 2]),
    ):
        (folder / f"{name}.mp4").write_bytes(content)
        rows.append((name, folder / f"{name}.mp4"))
    table = pd.DataFrame(
        {"id": [r[0] for r in rows], "video": [r[1].name for r in rows], "text": "你好"}
    )
    alone = pd.DataFrame(
        {
            "id": [f"text{i}" for i in range(6)] + ["nothing"],
            "video": "",
            "text": [f"只有文字{i}" for i in range(6)] + [""],
        }
    )
    table = pd.concat([table, alone])
    table.to_csv(folder / "m.csv", index=False)
    table.sample(frac=1, random_state=1).to_csv(folder / "shuffled.csv", index=False)
    return folder


QUARANTINED = {
    "hang": f"timed out after {TIMEOUT} s",
    "segfault": "the decoder crashed (SIGSEGV)",
    "empty": "the file is empty",
    "text": "no audio or video file",
    "truncated": "no audio or video file",
    "nothing": "neither a video nor a text",
}
ROWS, GOOD = 52, 46


class Nodes:
    """A head and two more nodes, as processes of this machine."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 1, "object_store_memory": 120 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=options)
        self.others = [self.cluster.add_node(**options) for _ in range(2)]

    def actors(self, node) -> list[psutil.Process]:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [p for p in raylet.children() if "ray::Worker" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def nodes(corpus):
    nodes = Nodes()
    yield nodes
    nodes.cluster.shutdown()


def start(nodes, corpus: Path, store: Path, *args: str, manifest: str = "m.csv"):
    env = {
        **os.environ,
        "RAY_ADDRESS": nodes.cluster.address,
        "PYTHONPATH": str(corpus / "injected"),
    }
    command = [
        sys.executable,
        "jobs/extract_features.py",
        "--manifest",
        str(corpus / manifest),
        "--store",
        str(store),
        "--decode_timeout_s",
        str(TIMEOUT),
        "--rows_per_part",
        "2",
        *args,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process) -> tuple[int, str]:
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in err, err[-3000:]
    return process.returncode, out + err


def wait_for_parts(process, store: Path, count: int) -> None:
    deadline = time.monotonic() + 200
    while len(list(store.glob("part-*"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(nodes, corpus):
    store = corpus / "undisturbed"
    return store, *finish(start(nodes, corpus, store, "--rows_per_part", "1"))


def assert_same(store: Path, other: Path) -> None:
    """Every row once, the same bytes in every column; the same rows quarantined for the same
    reasons."""
    mine, theirs = read_table(store), read_table(other)
    assert mine[ID].to_pylist() == theirs[ID].to_pylist()
    for name in theirs.column_names:
        assert mine[name].combine_chunks().equals(theirs[name].combine_chunks()), name
    assert quarantined(store).sort_by(ID).equals(quarantined(other).sort_by(ID))
    assert not [p.name for p in store.rglob(".*") if p.name != ".lock"]


def test_poison_clips_cost_themselves_and_the_exit_code_says_how_many(undisturbed):
    store, code, output = undisturbed
    assert code == 3, output
    assert f"rows in {ROWS}: {GOOD} stored, 6 quarantined, 0 done before" in output
    assert "11.5% of the rows are quarantined, more than max_error_fraction 10.0%" in output
    bad = dict(zip(*(quarantined(store)[c].to_pylist() for c in (ID, "error")), strict=True))
    assert bad.keys() == QUARANTINED.keys()
    for name, message in QUARANTINED.items():
        assert message in bad[name]
    assert set(quarantined(store)["stage"].to_pylist()) == {"decode"}
    table = read_table(store, ["vision_features"])
    faces = [
        i
        for i, x in zip(table[ID].to_pylist(), table["vision_features"].to_pylist(), strict=True)
        if x
    ]
    assert faces == ["face0", "face1", "face2"]


def test_text_alone_does_not_wait_for_video(undisturbed):
    """The six rows come last in the manifest, behind a clip that hangs for five seconds."""
    store = undisturbed[0]
    times = {}
    for part in [*store.glob("part-*"), *(store / "errors").glob("part-*")]:
        times |= dict.fromkeys(
            pq.read_table(part, columns=[ID])[ID].to_pylist(), part.stat().st_mtime_ns
        )
    text = [t for name, t in times.items() if name.startswith("text") and name != "text"]
    assert len(text) == 6
    assert max(text) < times["hang"]


def test_a_full_disk_then_room_and_a_rerun(nodes, corpus, undisturbed, small_disk):
    store = corpus / "full"
    # Plan and specs take 104k of it; all parts together are half a megabyte.
    small_disk(store, "160k")
    code, output = finish(start(nodes, corpus, store))
    assert code == 2, output
    assert "No space left on device" in output
    assert not list(store.rglob("*.tmp"))
    done = len(stored_ids(store)) + quarantined(store).num_rows
    assert 0 < done < ROWS
    small_disk(store, "50m")
    code, output = finish(start(nodes, corpus, store))
    assert code == 3, output
    assert f"{done} done before" in output
    assert_same(store, undisturbed[0])


def test_a_killed_driver_then_a_rerun(nodes, corpus, undisturbed):
    store = corpus / "killed"
    first = start(nodes, corpus, store)
    wait_for_parts(first, store, 5)
    with pytest.raises(InputError, match="another run is writing"), exclusive(store):
        pass
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = len(stored_ids(store)) + quarantined(store).num_rows
    assert 0 < done < ROWS
    code, output = finish(
        start(nodes, corpus, store, "--max_error_fraction", "0.2", "--decode_workers", "1")
    )
    assert code == 0, output
    assert f"{done} done before" in output
    assert_same(store, undisturbed[0])


def test_an_actor_and_a_node_lost_midway(nodes, corpus, undisturbed):
    """In another order, with more workers."""
    store = corpus / "lost"
    job = start(nodes, corpus, store, manifest="shuffled.csv")
    wait_for_parts(job, store, 2)
    victims = nodes.actors(nodes.others[0])
    assert victims
    victims[0].kill()
    wait_for_parts(job, store, 6)
    assert nodes.actors(nodes.others[1])
    nodes.cluster.remove_node(nodes.others.pop(), allow_graceful=False)
    assert job.poll() is None
    code, output = finish(job)
    assert code == 3, output
    assert f"rows in {ROWS}: {GOOD} stored, 6 quarantined, 0 done before" in output
    assert_same(store, undisturbed[0])


def test_no_decoder_outlives_its_job(nodes, undisturbed):
    raylets = {
        psutil.Process(n.all_processes["raylet"][0].process.pid)
        for n in nodes.cluster.list_all_nodes()
    }
    deadline = time.monotonic() + 20
    while left := [
        p
        for r in raylets
        for p in r.children(recursive=True)
        if "isolation" in " ".join(p.cmdline())
    ]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
