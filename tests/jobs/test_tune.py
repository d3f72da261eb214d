"""jobs/tune.py on two nodes: killed at half, resumed, a node removed; nothing that had ended is
lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from lfmim.config import to_dict
from lfmim.experiments.search import TrialRecord, best_trial, read_space, suggest, with_params
from tests.support.serial_sweep import serial_sweep, tiny_tune
from tests.support.toy import ROOT

TRIALS = 12


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with a CPU each, apart from the session's; yields (cluster, second
    node)."""
    from ray.cluster_utils import Cluster

    # of its own, or the session's ray.init would join this cluster
    temp = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "temp_dir": temp, "include_dashboard": False},
    )
    try:
        yield cluster, cluster.add_node(num_cpus=1)
    finally:
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("repeatable", [True, False], ids=["repeatable", "tune"])
def test_killed_at_half_resumed_and_a_node_removed_it_goes_on(
    two_nodes, toy_store, tmp_path, request, repeatable
):
    """The repeatable sweep ends as if nothing had happened."""
    cluster, second = two_nodes
    config = tiny_tune(
        toy_store, tmp_path, epochs=12, trials=TRIALS, repeatable=repeatable, window=3 * repeatable
    )
    # A sweep's trials begin at random weights: it has no option `init`.
    raw = {k: v for k, v in to_dict(config).items() if k not in ("resume", "init")}
    (tmp_path / "tune.yaml").write_text(
        yaml.safe_dump({**raw, "run": {**raw["run"], "name": "s"}}), encoding="utf-8"
    )
    command = [
        sys.executable,
        str(ROOT / "jobs" / "tune.py"),
        "--config",
        str(tmp_path / "tune.yaml"),
    ]
    env = {**os.environ, "RAY_ADDRESS": cluster.address}
    env.pop("MLFLOW_TRACKING_URI", None)
    folder = tmp_path / "runs" / "s"

    def start(*args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *args],
            env=env,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        request.addfinalizer(process.kill)
        return process

    def ended() -> dict[Path, str]:
        return {p: p.read_text() for p in sorted((folder / "trials").glob("*/trial.json"))}

    def wait(process: subprocess.Popen[str], count: int) -> None:
        deadline = time.monotonic() + 240
        while len(ended()) < count:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    process = start()
    wait(process, 4)
    process.kill()
    process.wait()
    process.stdout.close()
    before = ended()
    begun = {
        p.parts[-2]: json.loads((p / "checkpoint.json").read_text())["config"]["train"]["lr"]
        for p in (folder / "trials").glob("*/epoch_*")
        if not (p.parent / "trial.json").is_file()
    }
    assert 4 <= len(before) < TRIALS
    again = subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert again.returncode == 2
    assert "--resume" in again.stderr

    process = start("--resume")
    wait(process, len(before) + 1)
    cluster.remove_node(second, allow_graceful=False)
    output, _ = process.communicate(timeout=360)
    assert process.returncode == 0, output[-4000:]
    assert f"{len(before)} of {TRIALS} trials done" in output
    after = ended()
    assert {p: after[p] for p in before} == before, "an ended trial was repeated"
    found = [json.loads(text) for text in after.values()]
    assert [r["number"] for r in found] == list(range(TRIALS))
    assert found[0]["params"]["train.lr"] == config.train.lr
    assert all(found[int(number)]["params"]["train.lr"] == lr for number, lr in begun.items())
    assert any(r["state"] == "stopped" for r in found)
    assert all(len(r["history"]) == 12 for r in found if r["state"] == "finished")
    if repeatable:
        base = with_params(config, {})
        space = read_space("", base)
        expected = serial_sweep(
            config, lambda n, earlier: suggest(space, "optuna", 0, n, base, earlier), TRIALS
        )
        assert [
            (r["number"], r["state"], r["params"], [e["score"] for e in r["history"]], r["loss"])
            for r in found
        ] == [(r.number, r.state, r.params, r.scores, r.loss) for r in expected]
        assert (
            "so the first 3 of 12 are drawn at random and run all their epochs (36 of at most 144)"
            in output
        )
    winner = best_trial([TrialRecord(**r) for r in found])
    assert f"winner: trial {winner.number}, validation accuracy {winner.score:.4f}" in output
    assert (
        f"retrained from the logged config: {winner.score!r}, the trial's score in every digit"
        in output
    )
    assert "over 2 seeds: " in output
    assert (
        "registered models:/lfmim@champion (version 1; champion: there was no champion)" in output
    )

    sweep = json.loads((folder / "sweep.json").read_text())
    client = MlflowClient(sweep["uri"])
    parent = client.get_run(sweep["run_id"])
    assert parent.data.metrics["winner_score"] == winner.score
    assert parent.data.tags["reproduced"] == "true"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    numbers = sorted(int(c.data.tags["trial"]) for c in children if "trial" in c.data.tags)
    assert numbers == list(range(TRIALS))
    assert len(children) == TRIALS + 1  # and the winner trained again
    assert {a.path for a in client.list_artifacts(parent.info.run_id, "figures")} == {
        f"figures/{n}.png" for n in ("best_so_far", "importance", "parallel_coordinates")
    }
