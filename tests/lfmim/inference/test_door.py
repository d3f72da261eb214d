"""The Python door: what it offers, what it loads, and that it answers as the jobs do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lfmim
from feature_service.pipeline.predict_store import predict_store
from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrackingConfig, TrainConfig
from lfmim.evaluation.promotion import compare
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.schema import read_label_spec
from tests.support.toy import write_toy_store


def test_the_door_loads_nothing_and_offers_what_it_lists():
    code = (
        "import sys, time; start = time.perf_counter(); import lfmim; "
        "assert set(dir(lfmim)) == set(lfmim.__all__); "
        "print(sorted({'ray', 'mlflow', 'torch', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert all(callable(getattr(lfmim, name)) for name in lfmim.__all__)
    assert (Path(lfmim.__file__).parent / "py.typed").is_file()
    with pytest.raises(AttributeError, match="no attribute 'emotions'"):
        _ = lfmim.emotions  # type: ignore[attr-defined]


def test_a_feature_store_is_looked_into(toy_store):
    store = lfmim.FeatureStore.open(toy_store)
    assert (len(store), store.splits) == (104, {"train": 61, "valid": 23, "test": 20})
    frame = store.frame("test")
    assert list(frame.id) == sorted(frame.id)
    assert set(frame.split) == {"test"}
    assert frame.text_features[0].shape[1] == store.spec.dims["text"]
    assert frame.text_features[0].dtype == np.float16
    with pytest.raises(lfmim.InputError, match="no rows of split 'dev'"):
        store.frame("dev")
    with pytest.raises(lfmim.InputError, match="not a feature store"):
        lfmim.FeatureStore.open(toy_store.parent / "none")


@pytest.mark.integration
def test_train_load_predict(toy_store, tmp_path):
    config = ExperimentConfig(
        store=str(toy_store),
        model=ModelConfig(d_model=16, num_heads=2, num_layers=1),
        train=TrainConfig(epochs=1),
        run=RunConfig(storage=str(tmp_path / "runs")),
    )
    trained = lfmim.train(config)
    model = lfmim.load_model(storage=config.run.storage)
    assert model.heads == ("text", "audio", "vision", "multimodal")
    assert model.spec == trained.meta.spec
    store = lfmim.FeatureStore.open(toy_store)
    frame = store.frame("test").set_index("id")
    found = model.predict(frame)
    assert list(found.index) == list(frame.index)
    assert set(found.label_multimodal) <= set(model.labels)
    assert np.allclose([sum(p) for p in found.probabilities_text], 1, atol=1e-5)
    whole = model.predict(store)
    assert len(whole) == len(store)
    alone = model.predict({"text_features": [frame.text_features.iloc[0]]})
    assert alone.label_vision[0] is None
    with pytest.raises(lfmim.InputError, match="at least one of the columns"):
        model.predict({"text": ["x"]})
    with pytest.raises(lfmim.InputError, match="a video, a text, or both"):
        model.predict_clip()


@pytest.mark.integration
def test_four_and_eight_classes_go_all_the_way_and_refuse_each_other(tmp_path, empty_database):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    specs = {name: read_label_spec(name) for name in ("iemocap4", "ravdess8")}
    models, stores = {}, {}
    for name, spec in specs.items():
        store = write_toy_store(tmp_path / name, labels=spec)
        trained = lfmim.train(
            ExperimentConfig(
                store=str(store),
                model=ModelConfig(d_model=16, num_heads=2, num_layers=1),
                train=TrainConfig(epochs=1),
                run=RunConfig(storage=str(tmp_path / "runs")),
                tracking=TrackingConfig(model_name=name),
            )
        )
        assert trained.meta.labels == spec
        model = lfmim.load_model(f"models:/{name}@champion", storage=str(tmp_path / "runs"))
        assert model.labels == spec.classes
        assert set(model.predictor.meta.temperature) == set(model.heads)

        report = evaluate_store(model.predictor, store)
        assert list(report["heads"]["text"]["f1"]) == list(spec.classes)
        page = write_report(tmp_path / f"report-{name}", report, model.predictor, title=name)
        html = page.read_text(encoding="utf-8")
        assert f'<th scope="col">F1 {spec.report_order[0]}</th>' in html
        assert "<h2>Calibration</h2>" in html
        stores[name] = lfmim.FeatureStore.open(store)
        found = model.predict(stores[name])
        assert {len(p) for p in found.probabilities_multimodal} == {len(spec.classes)}
        assert set(found.label_multimodal) <= set(spec.classes)
        models[name] = model

    four, eight = models["iemocap4"].predictor, stores["ravdess8"]
    refused = "angry, happy, neutral, sad .iemocap4. vs neutral, calm.*`merges:`.*--labels"
    for use in (
        lambda: models["iemocap4"].predict(eight),
        lambda: evaluate_store(four, eight.path),
        lambda: compare(four, four, eight.path, split="valid", head="text"),
        lambda: predict_store(four, eight.path, tmp_path / "p.jsonl"),
    ):
        with pytest.raises(lfmim.InputError, match=refused):
            use()
    with pytest.raises(lfmim.InputError, match=r"calm.*ravdess8.* vs angry"):
        evaluate_store(models["ravdess8"].predictor, stores["iemocap4"].path)
