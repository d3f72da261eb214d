"""Real MLflow on SQLite: runs, the registry, and the registered model in an environment without this project."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from conftest import SPEC
from mlflow.tracking import MlflowClient
from packaging.requirements import Requirement

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.data.batches import load_split
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.predictor import Predictor
from lfmim.schema import EMOTIONS, FEATURE_COLUMNS, HEADS, MODALITIES, InputError, Modality
from lfmim.training.loop import train

SMALL = ModelConfig(width=16, heads=2, layers=2, max_text=16, max_audio=16, max_vision=16)


@pytest.fixture
def trained(toy_store, tmp_path):
    config = ExperimentConfig(store=str(toy_store), model=SMALL, run=RunConfig(storage=str(tmp_path / "runs")),
                              train=TrainConfig(optimizer="adamw", lr=0.003, epochs=3, batch_size=16))
    uri = tracking.tracking_uri(config.tracking, config.run.storage)
    run_id = tracking.start_run(config, SPEC, uri=uri, run_name="r", tags={"data": "d1"})

    def on_epoch(report, save):
        tracking.log_epoch(uri, run_id, report)
        save(tmp_path / "ckpt")

    splits = [load_split(toy_store, s, SMALL.max_lengths) for s in ("train", "valid")]
    meta = train(config, SPEC, *splits, on_epoch=on_epoch)
    tracking.finish_run(uri, run_id, meta)
    return config, uri, run_id, tmp_path / "ckpt", meta, toy_store


def frame(store: Path, rows: int = 3) -> pd.DataFrame:
    table = read_table(store, list(FEATURE_COLUMNS.values()), "test").slice(0, rows)
    return pd.DataFrame({FEATURE_COLUMNS[m]: [x.astype(float).tolist() for x in sequences(table, m)]
                         for m in MODALITIES})


def register(trained, data="d1", run_id=None, checkpoint=None):
    _, uri, run, ckpt, _, store = trained
    return tracking.register(uri, run_id or run, checkpoint or ckpt, model_name="lfmim", example=frame(store),
                             data_fingerprint=data)


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
    assert {"config.yaml", "feature_spec.json", "figures/learning_curves.png", "figures/confusion_valid.png"} <= names
    assert not Path("mlruns").exists()


def test_champion_moves_only_if_validation_improves_on_the_same_data(trained, tmp_path):
    config, uri, _, ckpt, meta, _ = trained
    first = register(trained)
    assert (first.promoted, first.uri) == (True, "models:/lfmim@champion")
    assert register(trained).version == first.version  # one run is registered once

    def another(score: float, data: str):
        raw = json.loads((ckpt / "checkpoint.json").read_text())
        (ckpt / "checkpoint.json").write_text(json.dumps({**raw, "best_score": score}))
        run_id = tracking.start_run(config, SPEC, uri=uri, run_name="other", tags={})
        return register(trained, data=data, run_id=run_id)

    worse, elsewhere = another(meta.best_score, "d1"), another(2.0, "d2")
    assert (worse.promoted, elsewhere.promoted) == (False, False)
    assert "other data" in elsewhere.reason
    better = another(meta.best_score + 0.1, "d1")
    assert better.promoted
    assert MlflowClient(uri).get_model_version_by_alias("lfmim", "champion").run_id != trained[2]


def test_pyfunc_equals_the_plain_predictor_and_takes_any_subset(trained):
    _, uri, _, ckpt, _, store = trained
    register(trained)
    mlflow.set_tracking_uri(uri)
    model, given = mlflow.pyfunc.load_model("models:/lfmim@champion"), frame(store)
    plain = Predictor.from_checkpoint(ckpt).predict({m: [np.float32(v) for v in given[FEATURE_COLUMNS[m]]]
                                                     for m in MODALITIES})
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


def test_report_and_missing_models(trained, tmp_path):
    _, uri, _, ckpt, _, store = trained
    predictor = Predictor.from_checkpoint(ckpt)
    report = evaluate_store(predictor, store, "test")
    data = load_split(store, "test", SMALL.max_lengths)
    p = predictor.predict({m: [x[:n].numpy() for x, n in zip(data.features[m], data.lengths[m], strict=True)]
                           for m in Modality})
    accuracy = (p["audio"].argmax(1) == data.labels[:, 1].numpy()).mean()
    assert report["heads"]["audio"]["accuracy"] == pytest.approx(accuracy)
    page = write_report(tmp_path / "report", report, predictor, title="t<est")
    assert page.read_text().count("data:image/png;base64,") == 2
    with pytest.raises(InputError, match="not in the registry"):
        tracking.load_predictor(uri, "models:/nothing@champion")


def closure(requirements: list[str]) -> set[str]:
    """Distributions that pip would install for the requirements, as far as they are installed here."""
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


def test_loads_where_only_the_listed_requirements_are(trained, tmp_path):
    _, uri, _, _, _, store = trained
    register(trained)
    mlflow.set_tracking_uri(uri)
    listed = Path(mlflow.pyfunc.get_model_dependencies("models:/lfmim@champion")).read_text().splitlines()
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
                (site / top).symlink_to(Path(importlib.metadata.distribution(name).locate_file(top)))
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
    done = subprocess.run([str(tmp_path / "clean" / "bin" / "python"), "-c", code], capture_output=True, text=True,
                          cwd=tmp_path / "empty", env=env, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    labels, where = done.stdout.strip().splitlines()[-2:]
    expected = mlflow.pyfunc.load_model("models:/lfmim@champion").predict(frame(store))["label_multimodal"].tolist()
    assert labels == repr(expected)
    assert "runs" in where  # the code that travelled with the model, not this checkout
