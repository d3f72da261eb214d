"""Real MLflow on SQLite: runs, the registry, and the registered model in an environment without
this project."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrackingConfig, TrainConfig
from lfmim.data.loading import load_split
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.predictor import Predictor
from lfmim.schema import FEATURE_COLUMNS, HEADS, MODALITIES, InputError, Modality
from lfmim.training.loop import train
from tests.support.toy import EMOTIONS, REPORT_ORDER, SPEC

pytestmark = pytest.mark.integration

SMALL = ModelConfig(d_model=16, num_heads=2, num_layers=2, max_text=16, max_audio=16, max_vision=16)


@pytest.fixture
def trained(toy_store, tmp_path, monkeypatch, empty_database):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    # mlflow.set_tracking_uri of an earlier test sets it
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = ExperimentConfig(
        store=str(toy_store),
        model=SMALL,
        run=RunConfig(storage=str(tmp_path / "runs")),
        train=TrainConfig(optimizer="adamw", lr=0.003, epochs=3, batch_size=16),
    )
    uri = tracking.tracking_uri(config.tracking, config.run.storage)
    run_id = tracking.start_run(config, SPEC, uri=uri, run_name="r", tags={"data": "d1"})

    def on_epoch(report, save):
        tracking.log_epoch(uri, run_id, report)
        save(tmp_path / "ckpt")

    splits = [load_split(toy_store, s, SMALL) for s in ("train", "valid")]
    meta = train(config, SPEC, *splits, on_epoch=on_epoch)
    tracking.finish_run(uri, run_id, meta)
    return config, uri, run_id, tmp_path / "ckpt", meta, toy_store


def frame(store: Path, rows: int = 3) -> pd.DataFrame:
    table = read_table(store, list(FEATURE_COLUMNS.values()), "test").slice(0, rows)
    return pd.DataFrame(
        {
            FEATURE_COLUMNS[m]: [x.astype(float).tolist() for x in sequences(table, m)]
            for m in MODALITIES
        }
    )


def register(trained, data="d1", run_id=None, checkpoint=None):
    _, uri, run, ckpt, _, store = trained
    return tracking.register(
        uri,
        run_id or run,
        checkpoint or ckpt,
        model_name="lfmim",
        example=frame(store),
        data_fingerprint=data,
    )


def test_run_holds_params_curves_figures_and_specs(trained, tmp_path):
    _, uri, run_id, _, meta, _ = trained
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.lr"] == "0.003"
    for head in HEADS:
        curve = client.get_metric_history(run_id, f"valid/{head}/accuracy")
        assert [m.value for m in curve] == [e["valid"][head]["accuracy"] for e in meta.history]
    names = {a.path for folder in ("", "figures") for a in client.list_artifacts(run_id, folder)}
    assert {
        "config.yaml",
        "feature_spec.json",
        "figures/learning_curves.png",
        "figures/confusion_valid.png",
    } <= names
    assert not Path("mlruns").exists()


def test_champion_moves_only_if_validation_improves_on_the_same_data(trained, tmp_path):
    _, uri, _, _, meta, _ = trained
    first = register(trained)
    assert (first.promoted, first.uri) == (True, "models:/lfmim@champion")
    assert register(trained).version == first.version  # one run is registered once

    worse, elsewhere = (
        another_version(trained, meta.best_score),
        another_version(trained, 2.0, "d2"),
    )
    assert (worse.promoted, elsewhere.promoted) == (False, False)
    assert "other data" in elsewhere.reason
    better = another_version(trained, meta.best_score + 0.1)
    assert better.promoted
    assert MlflowClient(uri).get_model_version_by_alias("lfmim", "champion").run_id != trained[2]


def test_pyfunc_equals_the_plain_predictor_and_takes_any_subset(trained):
    _, uri, _, ckpt, _, store = trained
    register(trained)
    mlflow.set_tracking_uri(uri)
    model, given = mlflow.pyfunc.load_model("models:/lfmim@champion"), frame(store)
    plain = Predictor.from_checkpoint(ckpt).predict(
        {m: [np.float32(v) for v in given[FEATURE_COLUMNS[m]]] for m in MODALITIES}
    )
    out = model.predict(given, params={"feature_spec": SPEC.to_json()})
    for head in HEADS:
        np.testing.assert_allclose(np.stack(out[f"probabilities_{head}"]), plain[head], rtol=1e-5)
        assert out[f"label_{head}"].tolist() == [EMOTIONS[i] for i in plain[head].argmax(1)]
    text_only = model.predict(given[["text_features"]])
    assert text_only["label_text"].tolist() == out["label_text"].tolist()
    assert text_only["label_audio"].isna().all()
    assert text_only["label_multimodal"].notna().all()
    other = dataclasses.replace(SPEC, sampling={"seed": 5})
    with pytest.raises(Exception, match=r"sampling\.seed"):
        model.predict(given, params={"feature_spec": other.to_json()})
    with pytest.raises(Exception, match="text_features: shape"):
        model.predict(pd.DataFrame({"text_features": [[[0.0] * 5]]}))


def another_version(trained, score: float, data: str = "d1"):
    """A version of another run with a given validation score."""
    config, uri, _, ckpt, _, _ = trained
    raw = json.loads((ckpt / "checkpoint.json").read_text())
    (ckpt / "checkpoint.json").write_text(json.dumps({**raw, "best_score": score}))
    run_id = tracking.start_run(config, SPEC, uri=uri, run_name="other", tags={})
    return register(trained, data=data, run_id=run_id)


def test_scores_of_another_head_are_not_compared_with_the_champions(trained):
    """Nor with those of a version that was registered before versions said what their score
    measures."""
    _, uri, run_id, ckpt, meta, _ = trained
    path = ckpt / "checkpoint.json"
    whole = json.loads(path.read_text())

    def by_head(head: str, score: float) -> tracking.RegisteredVersion:
        train = whole["config"]["train"] | {"selection": head}
        path.write_text(json.dumps(whole | {"config": whole["config"] | {"train": train}}))
        return another_version(trained, score)

    client = MlflowClient(uri)
    assert register(trained).promoted
    measured = {
        "score_head": "multimodal",
        "score_task": "emotion",
        "score_split": "valid",
        "score_labels": ", ".join(EMOTIONS),
    }
    tags = client.get_model_version("lfmim", "1").tags
    assert {k: tags[k] for k in measured} == measured
    vision = (
        "chosen by the vision head, the champion (version {}) by the multimodal one, so the "
        "scores cannot be compared"
    )
    found = by_head("vision", 1.0)
    assert (found.promoted, found.reason) == (False, vision.format(1))
    assert aliases(uri) == {"champion": "1", "challenger": "2"}

    for name in measured:  # as of a version registered before there were such tags
        client.delete_model_version_tag("lfmim", "1", name)
    found = by_head("vision", 2.0)
    assert (found.promoted, found.reason) == (False, vision.format(1))
    assert by_head("multimodal", meta.best_score + 0.1).promoted
    assert aliases(uri)["champion"] == "4"

    for other, said in {
        "score_task": "of the emotion task, the champion (version 4) of the sentiment task",
        "score_labels": "those of the champion (version 4) joy, anger",
        "score_split": "validated on the split valid, the champion (version 4) on test",
    }.items():
        kept = client.get_model_version("lfmim", "4").tags[other]
        client.set_model_version_tag(
            "lfmim",
            "4",
            other,
            {"score_task": "sentiment", "score_labels": "joy, anger", "score_split": "test"}[other],
        )
        found = by_head("multimodal", 3.0)
        assert not found.promoted
        assert said in found.reason
        client.set_model_version_tag("lfmim", "4", other, kept)

    tracking.set_champion(uri, "lfmim", "1")
    client.delete_run(run_id)
    shutil.rmtree(Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")))
    found = by_head("multimodal", 9.0)
    assert not found.promoted
    assert "it is not known what the score of the champion (version 1) measures" in found.reason


def aliases(uri: str) -> dict[str, str]:
    return {
        name: str(v) for name, v in MlflowClient(uri).get_registered_model("lfmim").aliases.items()
    }


def test_champion_challenger_and_rollback(trained):
    uri = trained[1]
    with pytest.raises(InputError, match="@champion: not in the registry"):
        tracking.rollback(uri, "lfmim")
    for score in (0.5, 0.6, 0.55):
        another_version(trained, score)
    assert aliases(uri) == {"champion": "2", "challenger": "3"}
    assert tracking.resolve_version(uri, "lfmim", "challenger") == "3"
    assert tracking.resolve_version(uri, "lfmim", "nobody") is None
    with pytest.raises(InputError, match="version 9: not in the registry"):
        tracking.resolve_version(uri, "lfmim", "9")
    tracking.set_champion(uri, "lfmim", "3")
    assert aliases(uri) == {"champion": "3"}
    assert tracking.rollback(uri, "lfmim") == ("3", "2")
    assert aliases(uri) == {"champion": "2", "challenger": "3"}
    assert tracking.rollback(uri, "lfmim") == ("2", "1")
    with pytest.raises(InputError, match="version 1 has no predecessor"):
        tracking.rollback(uri, "lfmim")
    client = MlflowClient(uri)
    # by hand: 1, then 2, are remembered all the same
    client.set_registered_model_alias("lfmim", "champion", "2")
    tracking.set_champion(uri, "lfmim", "3")
    client.delete_model_version("lfmim", "2")
    assert tracking.rollback(uri, "lfmim") == ("3", "1")


def test_a_version_has_tags_and_a_card_that_names_data_figures_uses_and_limits(trained):
    _, uri, run_id, _, meta, _ = trained
    register(trained)
    version = MlflowClient(uri).get_model_version_by_alias("lfmim", "champion")
    assert version.tags["data"] == "d1"
    assert version.tags["feature_spec"] == SPEC.fingerprint
    assert float(version.tags["score"]) == meta.best_score
    mlflow.set_tracking_uri(uri)
    folder = Path(mlflow.artifacts.download_artifacts(artifact_uri="models:/lfmim@champion"))
    card = (folder / "artifacts" / "model_card.md").read_text(encoding="utf-8")
    assert (
        card == version.description == mlflow.artifacts.load_text(f"runs:/{run_id}/model_card.md")
    )
    best = meta.history[meta.best_epoch]["valid"]
    for head in HEADS:
        row = next(
            line
            for line in card.split("## Figures")[1].splitlines()
            if line.startswith(f"| {head} |")
        )
        assert f"{best[head]['accuracy']:.3f}" in row
        f1, support = best[head]["f1"], [sum(row) for row in best[head]["confusion"]]
        assert [f"{f1[e]:.3f}" if support[EMOTIONS.index(e)] else "–" for e in REPORT_ORDER] == [
            c.strip() for c in row.split("|")[7:-1]
        ]
    for part in (
        "## What it is",
        "## Data",
        "## Intended uses",
        "## Unsuitable uses",
        "## Limits",
        "61",
        "23",
        "`d1`",
    ):
        assert part in card


def test_promote_moves_the_alias_on_a_significant_gain_or_says_why_not(trained, tmp_path, capsys):
    from lfmim.cli.promote import promote

    config, uri, _, _, _, store = trained
    good = dataclasses.replace(
        config, train=dataclasses.replace(config.train, epochs=25, lr=0.01, selection="text")
    )
    splits = [load_split(store, s, SMALL) for s in ("train", "valid")]
    train(good, SPEC, *splits, on_epoch=lambda report, save: save(tmp_path / "good"))
    run_id = tracking.start_run(good, SPEC, uri=uri, run_name="good", tags={})

    def run(**fields) -> str:
        assert promote(**{"store": str(store), "head": "text", "mlflow": uri, **fields}) == 0
        return capsys.readouterr().out

    with pytest.raises(InputError, match="@challenger: not in the registry"):
        run()
    assert register(trained).promoted
    # chosen by another head
    assert not register(trained, run_id=run_id, checkpoint=tmp_path / "good").promoted
    tracking.set_champion(uri, "lfmim", "2")
    assert "nothing to do: version 2" in run(challenger="2")
    assert "not promoted: version 2 stays champion" in run(challenger="1")
    assert aliases(uri)["champion"] == "2"
    assert "version 1 again, no longer 2" in run(rollback=True)
    assert "may be chance" in run(alpha=1e-9)
    out = run()
    assert "promoted: version 2 is champion of lfmim, version 1 was; significant gain" in out
    assert aliases(uri) == {"champion": "2"}
    with pytest.raises(InputError, match="name the feature store"):
        run(store="")


@pytest.mark.slow
def test_served_over_http_it_answers_as_in_process_and_gives_the_torch_module(trained, tmp_path):
    _, uri, _, _, _, store = trained
    register(trained)
    mlflow.set_tracking_uri(uri)
    model, given = mlflow.pyfunc.load_model("models:/lfmim@champion"), frame(store)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "mlflow"),
        "models",
        "serve",
        "-m",
        "models:/lfmim@champion",
        "--env-manager",
        "local",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PATH": path}
    log = (tmp_path / "serve.log").open("w+")
    server = subprocess.Popen(
        command, env=env, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
    )

    def ask(frame: pd.DataFrame, **more) -> pd.DataFrame:
        body = json.dumps(
            {"dataframe_split": json.loads(frame.to_json(orient="split", index=False)), **more}
        )
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            body.encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return pd.DataFrame(json.loads(answer.read())["predictions"], dtype=object)

    try:
        deadline = time.monotonic() + 240
        while True:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.5)
        gap = given.copy()
        gap.at[1, "audio_features"] = None
        for asked in (given, given[["text_features"]], gap):
            here, there = model.predict(asked), ask(asked)
            for head in HEADS:
                assert there[f"label_{head}"].tolist() == here[f"label_{head}"].tolist()
                for a, b in zip(
                    there[f"probabilities_{head}"], here[f"probabilities_{head}"], strict=True
                ):
                    assert (a is None) == (b is None)
                    assert a is None or np.allclose(a, b, atol=1e-6)
        other = dataclasses.replace(SPEC, sampling={"seed": 5}).to_json()
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(given, params={"feature_spec": other})
        assert "sampling.seed" in refused.value.read().decode()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
    module = model.unwrap_python_model().predictor.model
    assert isinstance(module, torch.nn.Module)
    features = {
        m.value: torch.tensor(np.stack([np.float32(given[FEATURE_COLUMNS[m]][0])]))
        for m in MODALITIES
    }
    masks = {m: torch.ones(1, x.shape[1], dtype=torch.bool) for m, x in features.items()}
    p = module(features, masks).logits["text"].softmax(1)[0].tolist()
    assert p == pytest.approx(model.predict(given)["probabilities_text"][0], abs=1e-5)


def test_report_and_missing_models(trained, tmp_path):
    _, uri, _, ckpt, _, store = trained
    predictor = Predictor.from_checkpoint(ckpt)
    report = evaluate_store(predictor, store, "test")
    data = load_split(store, "test", SMALL)
    p = predictor.predict(
        {m: [data.sequence(m, i).numpy() for i in range(len(data))] for m in Modality}
    )
    accuracy = (p["audio"].argmax(1) == data.labels[:, 1].numpy()).mean()
    assert report["heads"]["audio"]["accuracy"] == pytest.approx(accuracy)
    page = write_report(tmp_path / "report", report, predictor, title="t<est")
    # confusion and reliability of each head, learning curves
    assert page.read_text().count("data:image/png;base64,") == 2 * len(HEADS) + 1
    with pytest.raises(InputError, match="not in the registry"):
        tracking.load_predictor(uri, "models:/nothing@champion")


def closure(requirements: list[str]) -> set[str]:
    """Distributions that pip would install for the requirements, as far as they are installed
    here."""
    todo, seen = [Requirement(r) for r in requirements], set()
    while todo:
        requirement = todo.pop()
        extras = [{"extra": e} for e in requirement.extras] or [{"extra": ""}]
        name = requirement.name.lower().replace("_", "-")
        try:
            found = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a marker of another platform
        if (name, bool(requirement.extras)) in seen:
            continue
        seen.add((name, bool(requirement.extras)))
        for line in found.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate(e) for e in extras):
                todo.append(needed)
    return {name for name, _ in seen}


@pytest.mark.slow
def test_loads_where_only_the_listed_requirements_are(trained, tmp_path):
    _, uri, _, _, _, store = trained
    register(trained)
    mlflow.set_tracking_uri(uri)
    listed = (
        Path(mlflow.pyfunc.get_model_dependencies("models:/lfmim@champion"))
        .read_text()
        .splitlines()
    )
    names = closure([line for line in listed if line.strip()])
    assert "ray" not in names
    assert "lfmim-on-ray" not in names
    venv.create(tmp_path / "clean", with_pip=False, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = tmp_path / "clean" / "lib" / version / "site-packages"
    for name in names:  # what pip would put there, linked rather than downloaded
        for file in importlib.metadata.distribution(name).files or []:
            top = file.parts[0]
            if top != ".." and not (site / top).exists():
                (site / top).symlink_to(
                    Path(importlib.metadata.distribution(name).locate_file(top))
                )
    frame(store).to_json(tmp_path / "in.json")
    code = f"""
import importlib.util, mlflow, pandas as pd
assert importlib.util.find_spec("ray") is None and importlib.util.find_spec("lfmim") is None
mlflow.set_tracking_uri({uri!r})
model = mlflow.pyfunc.load_model("models:/lfmim@champion")
print(model.predict(pd.read_json({str(tmp_path / "in.json")!r}))["label_multimodal"].tolist())
import lfmim; print(lfmim.__file__)
"""
    (tmp_path / "empty").mkdir()
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL"))}
    done = subprocess.run(
        [str(tmp_path / "clean" / "bin" / "python"), "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path / "empty",
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    labels, where = done.stdout.strip().splitlines()[-2:]
    expected = (
        mlflow.pyfunc.load_model("models:/lfmim@champion")
        .predict(frame(store))["label_multimodal"]
        .tolist()
    )
    assert labels == repr(expected)
    assert "runs" in where  # the code that travelled with the model, not this checkout


def test_a_tracking_server_that_fails_is_named_and_costs_a_running_job_only_figures(
    tmp_path, caplog
):
    database = tmp_path / "mlflow.db"
    database.write_bytes(b"no database" * 999)
    with (
        pytest.raises(
            InputError,
            match=r"tracking server sqlite:.*file is not a database.*MLFLOW_TRACKING_URI",
        ),
        tracking.job_run(f"sqlite:///{database}", TrackingConfig(), "extract", {}),
    ):
        raise AssertionError("not reached")
    database = tmp_path / "live.db"
    with tracking.job_run(f"sqlite:///{database}", TrackingConfig(), "extract", {}) as log:
        log({"a": 1.0}, 0)
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute("
                "'drop table latest_metrics')",
                str(database),
            ],
            check=True,
        )
        log({"a": 2.0}, 1)
    assert "no such table" in caplog.text
