"""Memory-mapped splits: the same values as in memory, at flat memory, made again when the store
changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import fsspec
import pytest
import torch

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data import loading
from lfmim.data.loading import load_split
from lfmim.data.splits import Fold
from lfmim.data.store import rows_to_table, store_schema, store_state, write_part, write_spec
from lfmim.schema import LABELS_FILE, SPLITS, InputError
from lfmim.storage import as_path
from lfmim.training.loop import train
from tests.support.toy import DIMS, ROOT, SPEC, toy_rows

MODEL = ModelConfig(d_model=16, num_heads=2, num_layers=1, max_text=6, max_audio=6, max_vision=6)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path / "cache"))
    rows = toy_rows(40, absent=0.2) + toy_rows(12, 1, split="valid")
    write_spec(tmp_path / "store", SPEC)
    for part in (rows[::2], rows[1::2]):  # ids lie scattered over the parts
        write_part(tmp_path / "store", rows_to_table(part, store_schema(DIMS), DIMS))
    return tmp_path / "store"


def test_mapped_equals_in_memory(store):
    for split in ("train", "valid"):
        memory, mapped = (load_split(store, split, MODEL, cache) for cache in ("auto", "stream"))
        assert mapped.ids == memory.ids
        assert torch.equal(mapped.labels, memory.labels)
        assert mapped.mapped
        assert not memory.mapped
        for m, x in memory.features.items():
            assert torch.equal(mapped.lengths[m], memory.lengths[m])
            # no padding, but for the one vector that batches are padded with
            assert len(mapped.features[m]) == len(x) == int(memory.lengths[m].sum()) + 1
            for i in range(len(memory)):
                assert torch.equal(mapped.sequence(m, i), memory.sequence(m, i))
        for m, of_mapped in mapped.feature_statistics().items():
            assert all(map(torch.equal, of_mapped, memory.feature_statistics()[m]))
        for a, b in zip(
            mapped.batches(7, shuffle_seed=(0, 1)),
            memory.batches(7, shuffle_seed=(0, 1)),
            strict=True,
        ):
            assert all(
                torch.equal(a.features[m], b.features[m]) and torch.equal(a.masks[m], b.masks[m])
                for m in a.features
            )


def test_training_from_files_gives_the_same_run(store):
    histories = []
    for cache in ("device", "stream"):
        config = ExperimentConfig(
            store=str(store), model=MODEL, train=TrainConfig(epochs=2, batch_size=8, cache=cache)
        )
        data = [load_split(store, s, MODEL, cache) for s in ("train", "valid")]
        histories.append([[e["train"], e["valid"]] for e in train(config, SPEC, *data).history])
    assert histories[0] == histories[1]


def test_the_files_are_made_once_and_follow_the_store(store, tmp_path):
    folder = tmp_path / "cache" / "splits"
    load_split(store, "train", MODEL, "stream")
    (made,) = (p for p in folder.iterdir() if p.is_dir())
    stamp = (made / "text.f16").stat().st_mtime_ns
    load_split(store, "train", MODEL, "stream")
    assert (made / "text.f16").stat().st_mtime_ns == stamp
    write_part(store, rows_to_table(toy_rows(3, 9, split="train9"), store_schema(DIMS), DIMS))
    load_split(store, "train", MODEL, "stream")
    (again,) = (p for p in folder.iterdir() if p.is_dir())
    assert again != made

    # the classes are the store's, too: data held for the next run of a process are not of others
    before = store_state(store)
    labels = json.loads((store / LABELS_FILE).read_text(encoding="utf-8"))
    (store / LABELS_FILE).write_text(json.dumps(labels | {"name": "mine"}), encoding="utf-8")
    assert store_state(store) != before
    with pytest.raises(InputError, match="no rows of split 'test'"):
        load_split(store, "test", MODEL, "stream")


@pytest.fixture
def bucket(monkeypatch):
    """An S3 server on loopback, with a bucket `features`."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("ENDPOINT_URL", f"http://{host}:{port}"),
        ("ACCESS_KEY_ID", "test"),
        ("SECRET_ACCESS_KEY", "test"),
        ("DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("features")
    yield fs
    server.stop()


@pytest.mark.integration
def test_a_store_in_a_bucket_fills_the_files_once_with_what_a_disk_gives(
    store, bucket, monkeypatch
):
    bucket.put([str(p) for p in sorted(store.iterdir())], "features/store/")
    remote = as_path("s3://features/store")
    read = []
    fetched = loading._fetched
    monkeypatch.setattr(loading, "_fetched", lambda *args: read.append(1) or fetched(*args))
    here = load_split(store, "train", MODEL, "host")
    for cache in ("stream", "stream", "host"):
        there = load_split(remote, "train", MODEL, cache)
        assert there.ids == here.ids
        assert torch.equal(there.labels, here.labels)
        for m in here.features:
            assert all(
                torch.equal(there.sequence(m, i), here.sequence(m, i)) for i in range(len(here))
            )
    assert len(read) == 1


@pytest.mark.parametrize("cache", ["auto", "stream"])
def test_a_fold_has_its_own_rows_whatever_the_column_split_says(store, cache):
    rows = [row | {"speaker": f"s{i % 5}"} for i, row in enumerate(toy_rows(30, 4, split="more"))]
    write_spec(store.parent / "folds", SPEC)
    write_part(store.parent / "folds", rows_to_table(rows, store_schema(DIMS), DIMS))
    tested = []
    for k in range(1, 6):
        ids = [
            load_split(store.parent / "folds", split, MODEL, cache, Fold(k, 5)).ids
            for split in SPLITS
        ]
        assert sorted(name for part in ids for name in part) == [row["id"] for row in rows]
        assert [len(part) for part in ids] == [18, 6, 6]
        tested += ids[2]
    assert sorted(tested) == [row["id"] for row in rows]


def test_auto_maps_a_split_that_may_take_more_than_its_share_of_memory(store, monkeypatch):
    assert not load_split(store, "train", MODEL).mapped
    row_bytes = 6 * sum(DIMS.values()) * 2
    monkeypatch.setattr(loading, "_memory", lambda: 40 * row_bytes / loading.MEMORY_SHARE)
    assert not load_split(store, "train", MODEL).mapped
    monkeypatch.setattr(loading, "_memory", lambda: 39 * row_bytes / loading.MEMORY_SHARE)
    assert load_split(store, "train", MODEL).mapped
    # it is the split that counts, not the store
    assert not load_split(store, "valid", MODEL).mapped
    assert not load_split(store, "train", MODEL, "host").mapped


def test_a_disk_too_small_for_the_split_is_told_at_its_beginning(store, tmp_path, monkeypatch):
    little = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda path: little)
    with pytest.raises(InputError, match=r"features take about 0\.0 GiB, and .*set LFMIM_CACHE"):
        load_split(store, "train", MODEL, "stream")
    assert not [p for p in (tmp_path / "cache" / "splits").iterdir() if p.is_dir()]


FILL = """
import sys
from pathlib import Path
from lfmim.config import ModelConfig
from lfmim.data import loading

read = []
tables = loading._tables
loading._tables = lambda *args: read.append(1) or tables(*args)
data = loading.load_split(Path(sys.argv[1]), "train", ModelConfig(), "stream")
print(len(data), len(read))
"""


def test_workers_that_ask_at_the_same_time_read_the_store_once(store):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", FILL, str(store)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        for _ in range(2)
    ]
    said = sorted(worker.communicate()[0].split() for worker in workers)
    assert said == [["40", "0"], ["40", "1"]]


PEAK = """
import sys
from pathlib import Path
from lfmim.config import ModelConfig
from lfmim.data.loading import load_split

def private() -> int:
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) // 1024

peak = before = private()
data = load_split(Path(sys.argv[1]), "train", ModelConfig(), sys.argv[2])
peak = max(peak, private())
for batch in data.batches(64, shuffle_seed=(0, 0)):
    peak = max(peak, private())
print(peak - before, sum(x.nbytes for x in data.features.values()) >> 20)
"""


@pytest.mark.slow
def test_private_memory_stays_flat(tmp_path, monkeypatch):
    from lfmim.data.simulated import SimulatedConfig, simulate_corpus

    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path / "cache"))
    simulate_corpus(
        tmp_path / "store",
        SimulatedConfig(utterances=1500, dims=dict.fromkeys(DIMS, 256), rows_per_part=32),
    )
    used = []
    for cache in ("host", "stream", "stream"):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "store"), cache],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        mib, size = map(int, done.stdout.split())
        used.append(mib)
    assert size > 100
    in_memory, while_mapping, mapped = used
    # some parts of the store: the same for a larger one
    assert while_mapping < 0.6 * in_memory, used
    assert mapped < 0.2 * in_memory, used
