"""A training run in this process and on a real Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path

import pyarrow.dataset as pad
import pytest
from mlflow.tracking import MlflowClient

from lfmim import tracking
from lfmim.config import (
    BetaConfig,
    ExperimentConfig,
    ModelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    flatten,
    hash_parts,
    to_dict,
)
from lfmim.data.store import rows_to_table, store_schema, write_part
from lfmim.distributed.trainer import MAY_CHANGE, check_run, data_fingerprint, describe, train_run
from lfmim.former_names import FORMER
from lfmim.schema import FEATURE_COLUMNS, InputError
from lfmim.storage import exclusive
from lfmim.training.checkpoint import META, WEIGHTS, load_meta
from tests.support.toy import DIMS, toy_rows

MODEL = ModelConfig(d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8)


def experiment(store, folder, **fields) -> ExperimentConfig:
    # no epoch changes any answer
    defaults = {"optimizer": "adamw", "lr": 1e-9, "epochs": 5, "batch_size": 16}
    return ExperimentConfig(
        store=str(store),
        run=RunConfig(storage=str(folder / "runs"), name="here"),
        model=MODEL,
        train=TrainConfig(**{**defaults, **fields}),
    )


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
    kept_meta = load_meta(result.checkpoint)
    assert kept_meta.epoch == result.meta.best_epoch + 1 < 5
    assert result.registered.version == "1"
    # What came after the best epoch goes with the registered model, and with no other checkpoint.
    assert [*kept_meta.history, *kept_meta.later] == result.meta.history
    registered = tracking.load_predictor(result.tracking_uri, result.registered.uri).meta
    assert [*registered.history, *registered.later] == result.meta.history
    assert load_meta(folder / "epoch_0004").later is None

    whole = train_run(experiment(toy_store, tmp_path / "undisturbed", lr=0.003), alone=True)
    assert [(e["score"], e["train"]) for e in whole.meta.history] == [
        (e["score"], e["train"]) for e in result.meta.history
    ]


@pytest.mark.integration
def test_a_job_reads_the_ids_and_labels_of_a_store_once(toy_store, tmp_path, monkeypatch):
    read: list[str] = []
    whole = pad.dataset

    def counted(parts, **options):
        data = whole(parts, **options)

        class Counted:
            def __getattr__(self, name):
                return getattr(data, name)

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
    write_part(
        toy_store,
        rows_to_table([r | {"id": "new" + r["id"]} for r in extra], store_schema(DIMS), DIMS),
    )
    assert data_fingerprint(toy_store) != before  # another store is read again
    assert len(read) == 2


@pytest.mark.integration
def test_a_loss_that_is_not_finite_is_told_and_the_run_marked_failed(toy_store, tmp_path):
    with pytest.raises(InputError, match=r"the loss is not finite.*lower train\.lr"):
        train_run(experiment(toy_store, tmp_path, optimizer="sgd", lr=1e30), alone=True)
    state = json.loads((tmp_path / "runs" / "here" / "run.json").read_text())
    assert MlflowClient(state["uri"]).get_run(state["run_id"]).info.status == "FAILED"


def record(result) -> tuple[MlflowClient, object]:
    client = MlflowClient(result.tracking_uri)
    return client, client.get_run(result.run_id)


def registered_weights(client: MlflowClient, version: str) -> bytes:
    model = client.get_logged_model(
        client.get_model_version("lfmim", version).source.removeprefix("models:/")
    )
    return (
        Path(model.artifact_location.removeprefix("file://")) / "artifacts/checkpoint" / WEIGHTS
    ).read_bytes()


@pytest.fixture
def begun(toy_store, tmp_path, empty_database):
    """A finished run of two epochs, the second better. A third is not, later ones are."""
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    config = experiment(
        toy_store, tmp_path, lr=0.003, epochs=2, lr_scheduler="constant", selection="text"
    )
    return config, train_run(config, alone=True)


def with_train(config: ExperimentConfig, **fields) -> ExperimentConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **fields))


@pytest.mark.integration
def test_under_a_name_only_the_same_training_goes_on(begun, toy_store, tmp_path):
    config, first = begun
    folder = tmp_path / "runs" / "here"
    other = tmp_path / "other"
    shutil.copytree(toy_store, other)
    more = [{**row, "id": f"more-{row['id']}"} for row in toy_rows(5, 9)]
    write_part(other, rows_to_table(more, store_schema(DIMS), DIMS))
    spec = json.loads((other / "feature_spec.json").read_text())
    wider = tmp_path / "wider"
    shutil.copytree(toy_store, wider)
    (wider / "feature_spec.json").write_text(json.dumps({**spec, "sampling": {"seed": 9}}))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    model = dataclasses.replace(config, model=dataclasses.replace(MODEL, d_model=32))
    for wrong, message in (
        (model, r"model\.d_model: was 16, now 32"),
        (with_train(config, lr=0.01, epochs=9), r"train\.lr: was 0\.003, now 0\.01"),
        (with_train(config, optimizer="sgd", epochs=9), r"train\.optimizer: was adamw, now sgd"),
        (with_train(config, beta=BetaConfig(text=2.0)), r"train\.beta\.text: was 1\.0, now 2\.0"),
        (with_train(config, epochs=1), r"train\.epochs: 2 are trained, now 1"),
        (
            dataclasses.replace(with_train(config, epochs=9), store=str(other)),
            "data: was .*store .*other data",
        ),
        (
            dataclasses.replace(with_train(config, epochs=9), store=str(wider)),
            "data: was .*other data",
        ),
    ):
        for call in (describe, lambda c: train_run(c, alone=True)):
            with pytest.raises(
                InputError, match=f"run here in .* was trained otherwise.*{message}.*--run.name"
            ):
                call(wrong)
    assert {p: p.read_bytes() for p in before} == before
    client, run = record(first)
    assert run.info.status == "FINISHED"
    assert len(client.search_model_versions("name='lfmim'")) == 1


@pytest.mark.integration
def test_more_epochs_go_on_in_the_same_run_and_a_new_best_is_a_new_version(begun, tmp_path):
    config, first = begun
    same = train_run(with_train(config, epochs=3), alone=True)
    assert (same.meta.epoch, same.meta.best_epoch) == (3, first.meta.best_epoch)
    assert same.registered.version == first.registered.version == "1", "no new best, no new version"
    more = train_run(with_train(config, epochs=6), alone=True)
    assert more.meta.best_epoch > first.meta.best_epoch, (
        "the test wants a training that still improves"
    )
    client, run = record(more)
    assert (more.run_id, run.info.status) == (first.run_id, "FINISHED")
    assert run.data.params["train.epochs"] == "6"
    assert tracking.logged_config(more.tracking_uri, more.run_id)["train"]["epochs"] == 6
    for metric in ("score", "train/text/loss"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, metric)] == list(
            range(6)
        )
    assert more.registered.version == "2"
    assert registered_weights(client, "2") == (more.checkpoint / WEIGHTS).read_bytes()
    assert registered_weights(client, "2") != registered_weights(client, "1")
    assert float(client.get_model_version("lfmim", "2").tags["score"]) == more.meta.best_score

    # The epochs that led to the version are its model's, under the params it was trained with.
    for version, epochs, result in (("1", "2", first), ("2", "6", more)):
        source = client.get_model_version("lfmim", version).source
        model = client.get_logged_model(source.removeprefix("models:/"))
        assert (model.source_run_id, model.params["train.epochs"]) == (first.run_id, epochs)
        scores = {m.step: m.value for m in model.metrics if m.key == "score"}
        assert scores == {
            e["epoch"]: e["score"] for e in result.meta.history[: result.meta.best_epoch + 1]
        }
    assert train_run(with_train(config, epochs=6), alone=True).registered.version == "2"


@pytest.mark.integration
def test_a_run_of_0_1_goes_on_under_todays_names(begun, tmp_path):
    config, first = begun
    for meta in (tmp_path / "runs" / "here").glob(f"epoch_*/{META}"):
        whole = json.loads(meta.read_text())
        whole["config"] |= hash_parts(config)
        assert whole["config"]["model"]["width"] == 16
        meta.write_text(json.dumps(whole))
    with contextlib.closing(sqlite3.connect(tmp_path / "runs" / "mlflow.db")) as database, database:
        for new, old in FORMER.items():
            database.execute("UPDATE params SET key = ? WHERE key = ?", (old, new))
    more = train_run(with_train(config, epochs=3), alone=True)
    _, run = record(more)
    assert (more.run_id, more.meta.epoch) == (first.run_id, 3)
    assert run.data.params["model.width"] == run.data.params["model.d_model"] == "16"


@pytest.mark.integration
def test_the_settings_that_may_change_are_these_and_no_others(begun, toy_store, tmp_path):
    config, _ = begun
    folder, fingerprint = tmp_path / "runs" / "here", data_fingerprint(toy_store)
    other = {
        "feedback": 0.5,
        "name": "mult",
        "task": "sentiment",
        "pooling": "fex",
        "audio_excess": "cut",
        "standardize": True,
        "optimizer": "sgd",
        "lr_scheduler": "cosine",
        "labels": "multimodal",
        "selection": "audio",
        "precision": "fp32",
        "compile": "off",
        "cache": "host",
        "loss": "focal",
        "class_weights": "inverse",
    }
    free = set()
    names = [k for part in ("model", "train") for k in flatten(to_dict(config)[part], f"{part}.")]
    for name in names:
        part, *path = name.split(".")
        raw = to_dict(config)[part]
        value = flatten(raw)[".".join(path)]
        new = other.get(
            path[-1],
            value / 2
            if path[-1] in ("lr", "text", "audio", "vision", "multimodal")
            else 0.25
            if isinstance(value, float)
            else value * 2 or 1,
        )
        raw = (
            {
                **raw,
                "beta": BetaConfig(
                    **{**raw["beta"], **({path[1]: new} if path[0] == "beta" else {})}
                ),
            }
            if (part == "train")
            else raw
        )
        raw |= {} if path[0] == "beta" else {path[0]: new}
        changed = dataclasses.replace(config, **{part: type(getattr(config, part))(**raw)})
        assert changed != config, name
        try:
            check_run(changed, folder, fingerprint)
            free.add(name)
        except InputError as error:
            assert f"{name}: was {value}, now {new}" in str(error)  # noqa: PT017
    assert (
        free
        == MAY_CHANGE
        == {
            f"train.{n}"
            for n in ("epochs", "patience", "precision", "compile", "micro_batch", "cache")
        }
    )
    shutil.copytree(toy_store, tmp_path / "moved")
    elsewhere = dataclasses.replace(
        config,
        store=str(tmp_path / "moved"),
        tracking=TrackingConfig(model_name="x", experiment="y"),
        run=dataclasses.replace(
            config.run, workers=2, gpus_per_worker=1, cpus_per_worker=2, keep_checkpoints=5
        ),
    )
    check_run(elsewhere, folder, fingerprint)


@pytest.mark.integration
def test_a_run_folder_without_its_record_gets_a_new_one_with_all_epochs(begun, tmp_path):
    """Deleted in MLflow, with its experiment, with the whole database; or the tracker moved."""
    config, first = begun
    client, _ = record(first)
    client.delete_run(first.run_id)
    second = train_run(with_train(config, epochs=4), alone=True)
    _, run = record(second)
    assert second.run_id != first.run_id
    assert run.info.status == "FINISHED"
    assert run.data.tags["continues"] == first.run_id
    assert [m.step for m in client.get_metric_history(second.run_id, "score")] == [0, 1, 2, 3]

    state = tmp_path / "runs" / "here" / "run.json"
    # a database that was deleted
    state.write_text(json.dumps({**json.loads(state.read_text()), "run_id": "0" * 32}))
    third = train_run(with_train(config, epochs=4), alone=True)
    assert third.run_id not in (first.run_id, second.run_id)
    assert [m.step for m in client.get_metric_history(third.run_id, "score")] == [0, 1, 2, 3]

    elsewhere = dataclasses.replace(config, tracking=TrackingConfig(experiment="elsewhere"))
    fourth = train_run(with_train(elsewhere, epochs=4), alone=True)
    assert (
        record(fourth)[1].info.experiment_id
        == client.get_experiment_by_name("elsewhere").experiment_id
    )
    assert fourth.registered.version == third.registered.version, (
        "the same checkpoint is registered once"
    )

    client.delete_experiment(record(fourth)[1].info.experiment_id)
    with pytest.raises(
        InputError, match=r"tracking\.experiment: 'elsewhere' was deleted .* restore"
    ):
        train_run(with_train(elsewhere, epochs=4), alone=True)


@pytest.mark.integration
def test_a_record_without_its_checkpoints_is_not_mixed_with_a_new_training(begun, tmp_path):
    config, first = begun
    folder = tmp_path / "runs" / "here"
    for checkpoint in folder.glob("epoch_*"):
        shutil.rmtree(checkpoint)
    again = train_run(with_train(config, epochs=3), alone=True)
    client, old = record(first)
    assert old.info.status == "FINISHED"
    assert again.run_id != first.run_id
    for result in (first, again):
        assert [m.step for m in client.get_metric_history(result.run_id, "score")] == list(
            range(result.meta.epoch)
        )

    shutil.rmtree(again.checkpoint)
    with pytest.raises(InputError, match="the best checkpoint of the run is gone; delete"):
        train_run(with_train(config, epochs=4), alone=True)
    (folder / "run.json").write_text("{")
    with pytest.raises(
        InputError, match=r"run\.json: not the record of a run .* another --run\.name"
    ):
        train_run(config, alone=True)
    shutil.rmtree(folder)
    assert train_run(config, alone=True).meta.epoch == 2


@pytest.mark.integration
def test_one_owner_sets_the_state_until_the_registration_is_done(
    toy_store, tmp_path, monkeypatch, empty_database
):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    config, seen = experiment(toy_store, tmp_path, epochs=1), []
    register = tracking.register

    def state() -> tuple[str, str | None]:
        known = json.loads((tmp_path / "runs" / "here" / "run.json").read_text())
        run = MlflowClient(known["uri"]).get_run(known["run_id"])
        return run.info.status, run.data.tags.get("message")

    def watched(uri, run_id, *args, **more):
        for node in ("node_0", "node_1"):  # the first node's workers may end before the others
            with tracking.system_metrics(uri, run_id, node):
                pass
            seen.append(state()[0])
        found = register(uri, run_id, *args, **more)
        seen.append(state()[0])
        return found

    def failing(*args, **more):
        raise OSError("No space left on device")

    def stopped(*args, **more):
        raise KeyboardInterrupt

    for wrong, error, status, reason in (
        (failing, OSError, "FAILED", "OSError: No space left on device"),
        (stopped, KeyboardInterrupt, "KILLED", None),
    ):
        monkeypatch.setattr(tracking, "register", wrong)
        with pytest.raises(error):
            train_run(config, alone=True)
        assert state() == (status, reason)
    monkeypatch.setattr(tracking, "register", watched)
    result = train_run(config, alone=True)
    assert seen == ["RUNNING"] * 3
    assert state() == ("FINISHED", None)
    _, run = record(result)
    data = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert {split: json.loads(d.profile)["rows"] for split, d in data.items()} == {
        "train": 61,
        "valid": 23,
    }
    for dataset in data.values():
        assert dataset.digest == data_fingerprint(toy_store) == run.data.tags["data"]
        assert json.loads(dataset.source)["uri"] == toy_store.resolve().as_uri()


@pytest.mark.integration
def test_where_a_run_cannot_be_kept_is_told_before_any_work(toy_store, tmp_path, small_disk):
    (tmp_path / "taken").write_text("x")
    small_disk(tmp_path / "disk", "1m,ro")
    taken = "--storage .*taken is no folder"
    for storage, message in (
        ("taken", taken),
        ("taken/in", taken),
        ("disk", "--storage .*disk.*: cannot be written to"),
        ("why?/runs", r"why.*'\?' in its name means something else in the URI"),
        ("50%20off", "the '%20' in its name means something else in the URI"),
    ):
        config = dataclasses.replace(
            experiment(toy_store, tmp_path), run=RunConfig(storage=str(tmp_path / storage))
        )
        for call in (describe, lambda c: train_run(c, alone=True)):
            with pytest.raises(InputError, match=message):
                call(config)
    assert {p.name for p in tmp_path.iterdir()} == {"store", "taken", "disk"}


@pytest.mark.integration
@pytest.mark.parametrize("name", ["a b", "50%", "no#1", "跑 次"])
def test_storage_may_have_any_other_name(toy_store, tmp_path, name, empty_database):
    (tmp_path / name / "runs").mkdir(parents=True)
    shutil.copy(empty_database, tmp_path / name / "runs" / "mlflow.db")
    result = train_run(experiment(toy_store, tmp_path / name, epochs=1), alone=True)
    tracking.load_predictor(result.tracking_uri, "models:/lfmim@champion")
    assert {p.name for p in tmp_path.iterdir()} == {"store", name}
    assert (tmp_path / name / "runs" / "mlartifacts").is_dir()


@pytest.mark.integration
def test_two_trainings_under_one_name_at_once_are_one(begun, tmp_path):
    config, _ = begun
    with (
        exclusive(tmp_path / "runs" / "here"),
        pytest.raises(InputError, match="another run is writing into this run"),
    ):
        train_run(config, alone=True)
