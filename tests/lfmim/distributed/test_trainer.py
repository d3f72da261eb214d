"""A training run in this process and on a real Ray."""

from __future__ import annotations

import json

import pyarrow.dataset as pad
import pytest
from conftest import DIMS, toy_rows
from mlflow.tracking import MlflowClient

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.data.store import rows_to_table, store_schema, write_part
from lfmim.distributed.trainer import data_fingerprint, describe, train_run
from lfmim.schema import FEATURE_COLUMNS, InputError
from lfmim.training.checkpoint import load_meta

MODEL = ModelConfig(width=16, heads=2, layers=1, max_text=8, max_audio=8, max_vision=8)


def experiment(store, folder, **fields) -> ExperimentConfig:
    defaults = {"optimizer": "adamw", "lr": 1e-9, "epochs": 5, "batch_size": 16}  # no epoch changes any answer
    return ExperimentConfig(store=str(store), run=RunConfig(storage=str(folder / "runs"), name="here"), model=MODEL,
                            train=TrainConfig(**{**defaults, **fields}))


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.ray
@pytest.mark.slow
def test_of_equally_good_epochs_the_first_is_kept_and_registered(ray_cluster, toy_store, tmp_path):
    result = train_run(experiment(toy_store, tmp_path))
    assert len({entry["score"] for entry in result.meta.history}) == 1
    assert result.meta.epoch == 5
    assert result.meta.best_epoch == 0
    assert load_meta(result.checkpoint).epoch == 1

    # What Ray began goes on without it.
    more = train_run(experiment(toy_store, tmp_path, epochs=7), alone=True)
    assert (more.run_id, more.meta.epoch, more.meta.best_epoch) == (result.run_id, 7, 0)
    assert more.meta.history[:5] == result.meta.history

    # And again on Ray, which knows nothing of the epochs in between.
    last = train_run(experiment(toy_store, tmp_path, epochs=9))
    assert (last.run_id, last.meta.epoch, last.meta.best_epoch) == (result.run_id, 9, 0)
    assert last.meta.history[:7] == more.meta.history
    assert load_meta(last.checkpoint).epoch == 1


@pytest.mark.integration
def test_a_run_in_this_process_is_killed_continued_and_registered(toy_store, tmp_path, monkeypatch):
    def interrupted(uri, run_id, report):
        log_epoch(uri, run_id, report)
        if report.epoch == 3:
            raise KeyboardInterrupt

    log_epoch = tracking.log_epoch
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "log_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(experiment(toy_store, tmp_path, lr=0.003), alone=True)
    folder = tmp_path / "runs" / "here"
    state = json.loads((folder / "run.json").read_text())
    client = MlflowClient(state["uri"])
    assert client.get_run(state["run_id"]).info.status == "KILLED"

    result = train_run(experiment(toy_store, tmp_path, lr=0.003), alone=True)
    assert result.run_id == state["run_id"]
    assert client.get_run(result.run_id).info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(result.run_id, "score")] == [0, 1, 2, 3, 4]
    improved = [e["epoch"] for e in result.meta.history if e["best"]]
    kept = {int(p.name[-4:]) for p in folder.glob("epoch_*")}
    assert kept == {4, *improved[-2:]}
    assert load_meta(result.checkpoint).epoch == result.meta.best_epoch + 1
    assert result.registered.version == "1"

    whole = train_run(experiment(toy_store, tmp_path / "undisturbed", lr=0.003), alone=True)
    assert [(e["score"], e["train"]) for e in whole.meta.history] == [
        (e["score"], e["train"]) for e in result.meta.history]


@pytest.mark.integration
def test_a_job_reads_the_ids_and_labels_of_a_store_once(toy_store, tmp_path, monkeypatch):
    read: list[str] = []
    whole = pad.dataset

    def counted(parts, **options):
        data = whole(parts, **options)

        class Counted:
            schema = data.schema

            def to_table(self, columns=None, **rest):
                if not set(columns or FEATURE_COLUMNS.values()) & set(FEATURE_COLUMNS.values()):
                    read.append(", ".join(columns))
                return data.to_table(columns=columns, **rest)

        return Counted()

    monkeypatch.setattr(pad, "dataset", counted)
    config = experiment(toy_store, tmp_path, epochs=1)
    describe(config)
    train_run(config, alone=True)
    assert len(read) == 1, read
    before = data_fingerprint(toy_store)
    extra = toy_rows(3, 9, split="train")
    write_part(toy_store, rows_to_table([r | {"id": "new" + r["id"]} for r in extra], store_schema(DIMS), DIMS))
    assert data_fingerprint(toy_store) != before  # another store is read again
    assert len(read) == 2


@pytest.mark.integration
def test_a_loss_that_is_not_finite_is_told_and_the_run_marked_failed(toy_store, tmp_path):
    with pytest.raises(InputError, match=r"the loss is not finite.*lower train\.lr"):
        train_run(experiment(toy_store, tmp_path, optimizer="sgd", lr=1e30), alone=True)
    state = json.loads((tmp_path / "runs" / "here" / "run.json").read_text())
    assert MlflowClient(state["uri"]).get_run(state["run_id"]).info.status == "FAILED"
