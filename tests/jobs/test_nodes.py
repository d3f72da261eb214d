"""A simulated cluster of several nodes (one machine, several raylets): where things run, and nodes
that go away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

import pandas as pd
import pytest
import yaml

from lfmim.config import experiment_from_dict
from lfmim.data.demo_corpus import generate_demo_corpus
from lfmim.data.loading import load_split
from lfmim.data.store import rows_to_table, store_schema, write_part
from lfmim.training.checkpoint import load_meta
from lfmim.training.loop import train
from tests.support.toy import DIMS, ROOT, SPEC, toy_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, as in cluster.yaml; the drivers run there."""
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="rc", dir="/tmp")  # short: socket paths have 107 characters
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = folder  # and apart from other clusters of this machine
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield made
    made.shutdown()
    os.environ.pop("RAY_TMPDIR") if before is None else os.environ.update(RAY_TMPDIR=before)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def nodes(cluster):
    """Adds nodes; the test's nodes are gone afterwards."""
    yield lambda **what: cluster.add_node(**what)
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)


def start(cluster, name: str, *args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *args],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str], seconds: float = 300) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-4000:]
    return output


def test_decoding_and_faces_run_on_cpu_nodes_and_encoders_on_gpu_nodes(cluster, nodes, tmp_path):
    cpu, gpu = nodes(num_cpus=2, resources={"decode": 2}), nodes(num_cpus=2, num_gpus=1)
    manifest = generate_demo_corpus(tmp_path / "corpus", clips=6)
    output = finish(
        start(
            cluster,
            "extract_features",
            "--manifest",
            str(manifest),
            "--store",
            str(tmp_path / "store"),
            "--storage",
            str(tmp_path),
            "--decode_resource",
            "decode",
            "--decode_workers",
            "2",
            "--gpus_per_worker",
            "0.25",
        )
    )
    assert "models on GPU" in output
    assert "ray: 3 nodes, 4 CPU, 1 GPU" in output
    ran = dict(re.findall(r"^  (\w+) ran on (.*)$", output, re.M))
    on = lambda node: f"node {node.node_id} (6)"  # noqa: E731
    assert ran == {
        "decode": on(cpu),
        "face": on(cpu),
        "vision": on(gpu),
        "text": on(gpu),
        "audio": on(gpu),
    }


@pytest.fixture
def small(toy_store, tmp_path):
    """A small training run without dropout: its losses do not depend on the number of workers."""
    raw = yaml.safe_load((ROOT / "lfmim" / "configs" / "demo.yaml").read_text())
    raw |= {"store": str(toy_store), "run": {"storage": str(tmp_path / "runs"), "name": "toy"}}
    # AdamW would blow up the last digits in which one worker and two differ.
    raw["train"] |= {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "epochs": 20}
    raw["model"] |= {f"dropout_{part}": 0.0 for part in ("attention", "ffn", "embedding")}
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path, experiment_from_dict(raw)


def test_a_node_lost_in_training_and_one_lost_in_prediction(
    cluster, nodes, small, toy_store, tmp_path
):
    path, config = small
    folder = tmp_path / "runs" / "toy"
    first, second = nodes(num_cpus=1), nodes(num_cpus=1)
    process = start(
        cluster, "train", "--config", str(path), "--run.workers", "2", "--run.cpus_per_worker", "1"
    )
    deadline = time.monotonic() + 150
    while not any(folder.glob("epoch_0002")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.2)
    cluster.remove_node(second, allow_graceful=False)
    lost_at = max(int(p.name[-4:]) for p in folder.glob("epoch_*"))
    third = nodes(num_cpus=1)  # what an autoscaler does
    output = finish(process)
    assert lost_at + 1 < config.train.epochs, "the node went too late to be missed"
    assert f"run toy: {config.train.epochs} epochs" in output
    undisturbed = train(
        config, SPEC, *(load_split(toy_store, s, config.model) for s in ("train", "valid"))
    )
    last = load_meta(max(folder.glob("epoch_*")))
    assert last.epoch == undisturbed.epoch
    for mine, theirs in zip(last.history, undisturbed.history, strict=True):
        for part in ("train", "valid"):
            for head, metrics in theirs[part].items():
                assert mine[part][head]["loss"] == pytest.approx(
                    metrics["loss"], rel=1e-4, abs=1e-5
                )

    store = tmp_path / "many"
    store.mkdir()
    shutil.copy(toy_store / "feature_spec.json", store)
    for k in range(40):
        rows = [{**r, "id": f"{k}-{r['id']}"} for r in toy_rows(250, k)]
        write_part(store, rows_to_table(rows, store_schema(DIMS), DIMS))
    process = start(
        cluster,
        "predict",
        "--store",
        str(store),
        "--storage",
        str(tmp_path / "runs"),
        "--output",
        str(tmp_path / "p.parquet"),
        "--workers",
        "4",
    )
    lines = []
    for line in process.stdout:  # one actor of every two is on each node
        lines.append(line)
        if line.startswith("predict: "):
            break
    assert lines, "no progress"
    assert "predict: 10000/" not in lines[-1]
    cluster.remove_node(third, allow_graceful=False)
    output = finish(process)
    assert "rows in 10000: 10000 predicted, 0 quarantined" in output
    ids = pd.read_parquet(tmp_path / "p.parquet")["id"]
    assert len(set(ids)) == len(ids) == 10_000
    assert first in cluster.worker_nodes
