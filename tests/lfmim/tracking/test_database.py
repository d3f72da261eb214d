"""The tracking database: made once by many at the same time, and named when it cannot be used."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, TrackingConfig, to_dict
from lfmim.models import build_model
from lfmim.schema import FEATURE_COLUMNS, HEADS, InputError
from lfmim.training.checkpoint import CheckpointMeta, save_checkpoint
from tests.support.toy import SPEC

pytestmark = pytest.mark.integration
SMALL = ModelConfig(d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8)
TOGETHER = """
import sys, time
from pathlib import Path
import pandas as pd
from lfmim import tracking
from lfmim.config import ExperimentConfig
from lfmim.training.checkpoint import load_meta
uri, checkpoint = sys.argv[1], Path(sys.argv[2])
meta = load_meta(checkpoint)
print("here", flush=True)
sys.stdin.readline()
run_id = tracking.start_run(
    meta.config, meta.spec, uri=uri, run_name=checkpoint.name, tags={"data": "d"}
)
example = pd.DataFrame({COLUMNS[m]: [[[0.0] * d]] for m, d in meta.spec.dims.items()})
tracking.register(
    uri, run_id, checkpoint, model_name="lfmim", example=example, data_fingerprint="d"
)
tracking.finish_run(uri, run_id, meta)
""".replace("COLUMNS", repr({m.value: c for m, c in FEATURE_COLUMNS.items()}))


def checkpoint(folder: Path, score: float) -> Path:
    """A checkpoint of an untrained model that claims `score`."""
    torch.manual_seed(0)
    config = ExperimentConfig(store="s", model=SMALL)
    meta = CheckpointMeta(
        config=config, spec=SPEC, epoch=1, history=[], best_epoch=-1, best_score=score
    )
    save_checkpoint(folder, build_model(SMALL, SPEC.dims), meta, {})
    return folder


@pytest.mark.slow
def test_runs_started_at_once_in_a_new_folder_all_get_a_version_and_one_is_champion(tmp_path):
    uri, scores = f"sqlite:///{tmp_path}/new/mlflow.db", {"a": 0.5, "b": 0.7, "c": 0.6}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, uri, str(checkpoint(tmp_path / name, score))],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name, score in scores.items()
    ]
    for job in jobs:
        assert job.stdout.readline() == "here\n"
    for job in jobs:
        job.stdin.write("go\n")
        job.stdin.flush()
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors[-3000:]
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("lfmim").experiment_id])
    assert sorted((r.info.run_name, r.info.status) for r in runs) == [
        (name, "FINISHED") for name in scores
    ]
    versions = client.search_model_versions("name='lfmim'")
    assert sorted(int(v.version) for v in versions) == [1, 2, 3]
    champion = client.get_model_version_by_alias("lfmim", "champion")
    assert float(champion.tags["score"]) == 0.7, "the best, whoever came last"
    tracking.load_predictor(uri, "models:/lfmim@champion")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "mlflow.db",
        "mlflow.db.lock",
        "mlartifacts",
    }


def test_a_maker_that_is_killed_leaves_no_half_database(tmp_path):
    path, code = (
        tmp_path / "mlflow.db",
        "import sys; from lfmim.tracking.database import connect; connect("
        "sys.argv[1], writing=True)",
    )
    job = subprocess.Popen(
        [sys.executable, "-c", code, f"sqlite:///{path}"], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    # Not its journals: those come and go.
    while not (made := [p for p in tmp_path.glob(".mlflow.db.*.tmp") if p.stat().st_size]):
        assert job.poll() is None, path.exists()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert not path.exists()
    tracking.prepare(f"sqlite:///{path}", TrackingConfig())
    assert MlflowClient(f"sqlite:///{path}").get_experiment_by_name("lfmim") is not None
    assert not [p for p in made if p.exists()], "the rest of the killed one is left"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("not a database", "file is not a database. Move the file away"),
        ("half made", "a part of its tables is missing, .*already exists.*. Move the file away"),
        ("a folder", "unable to open database file. Make the file and its folder usable"),
        ("read-only", "readonly database. Make the file and its folder usable"),
        ("no room", "database or disk is full. Make the file and its folder usable"),
        ("beside a file", "taken is a file, not a folder. Name another folder"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_at_once(
    tmp_path, fault, said, empty_database, small_disk
):
    path = tmp_path / "runs" / "mlflow.db"
    path.parent.mkdir()
    if fault == "not a database":
        path.write_bytes(b"no database" * 999)
    elif fault == "half made":
        shutil.copy(empty_database, path)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("DROP TABLE secrets")  # that of a late migration
            # an early one
            database.execute("UPDATE alembic_version SET version_num = (SELECT '451aebb31d03')")
    elif fault == "a folder":
        path.mkdir()
    elif fault == "read-only":
        small_disk(path.parent, "4m")
        shutil.copy(empty_database, path)
        subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
    elif fault == "no room":
        small_disk(path.parent, "64k")
    else:
        (tmp_path / "taken").write_text("x")
        path = tmp_path / "taken" / "runs" / "mlflow.db"
    uri, started = f"sqlite:///{path}", time.monotonic()
    with pytest.raises(InputError, match=rf"{path}: this database cannot be used: .*{said}"):
        tracking.prepare(uri, TrackingConfig())
    with pytest.raises(InputError, match=str(path)):
        tracking.start_run(ExperimentConfig(store="s"), SPEC, uri=uri, run_name="r", tags={})
    assert time.monotonic() - started < 90, "MLflow's own tries take minutes"


def test_a_database_that_can_only_be_read_is_read(tmp_path, empty_database, small_disk):
    folder = tmp_path / "runs"
    small_disk(folder, "4m")
    shutil.copy(empty_database, folder / "mlflow.db")
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    assert tracking.find_run(f"sqlite:///{folder}/mlflow.db", TrackingConfig(), "r") is None


def test_a_record_of_a_benchmark_that_was_deleted_is_made_again(tmp_path, empty_database):
    from lfmim.experiments.systems import BenchmarkConfig

    shutil.copy(empty_database, tmp_path / "mlflow.db")
    uri, report = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "report"
    report.mkdir()
    config = BenchmarkConfig(store="s", report=str(report))
    result = {
        "system": "lfmim",
        "seed": 0,
        "config": to_dict(ExperimentConfig(store="s")),
        "history": [],
        "test": {h: {"accuracy": 0.5} for h in HEADS},
        "parameters": 1,
        "flops": 1,
        "seconds": 1,
        "best_epoch": 0,
    }
    first = tracking.log_comparison(uri, config, [result], report)
    assert tracking.log_comparison(uri, config, [result], report) == first
    client = MlflowClient(uri)
    client.delete_run(first)
    second = tracking.log_comparison(uri, config, [result], report)
    assert second != first
    assert client.get_run(second).info.status == "FINISHED"
    with pytest.raises(KeyError):  # while it is logged
        tracking.log_comparison(
            uri, config, [{**result, "seed": 1, "flops": "many", "history": [{}]}], report
        )
    (failed,) = client.search_runs(
        [client.get_run(second).info.experiment_id], "attributes.status = 'FAILED'"
    )
    assert failed.data.tags["message"].startswith("KeyError")
    client.delete_experiment(client.get_run(second).info.experiment_id)
    with pytest.raises(InputError, match=r"tracking\.experiment: 'lfmim' was deleted"):
        tracking.log_comparison(uri, config, [result], report)
