"""The Python door: what it offers, what it loads, and that it answers as the jobs do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lfmim
from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig


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
