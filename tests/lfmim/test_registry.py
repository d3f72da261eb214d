"""A model of one's own, in one file: found, trained by a job, pulled without that file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from lfmim.config import ModelConfig
from lfmim.models import MODELS, build_model
from lfmim.registry import PLUGINS, Registry, load_plugin
from lfmim.schema import InputError, Modality

MODEL = '''
"""Mean of the projected modalities, one linear layer per head."""

import torch
from torch import nn

from lfmim.models import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Pooling, init_weights, input_projections
from lfmim.schema import MULTIMODAL


@register_model("NAME")
class Mean(EmotionNet):
    answers = (MULTIMODAL,)

    def __init__(self, config, dims):
        super().__init__()
        self.inputs = input_projections(config, dims)
        self.pool = Pooling("mean", config.width)
        self.head = nn.Linear(config.width, config.outputs)
        self.apply(init_weights)

    def forward(self, features, masks):
        pooled = [self.pool(self.inputs[m](x), masks[m]) for m, x in features.items()]
        h = torch.stack(pooled).mean(dim=0)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
'''
PULL = """
import sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/lfmim@champion")
dims = model.unwrap_python_model().predictor.meta.spec.dims
row = {f"{m}_features": [[[0.1] * d] * 3] for m, d in dims.items()}
print(model.predict(pd.DataFrame(row)).label_multimodal[0])
"""


def test_a_plugin_is_found_by_its_name_and_read_once(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(MODEL.replace("NAME", "mine-once"))
    load_plugin(file)
    load_plugin(file)
    dims = {Modality.TEXT: 4, Modality.AUDIO: 3, Modality.VISION: 2}
    assert build_model(ModelConfig(name="mine-once"), dims).answers == ("multimodal",)
    other = tmp_path / "other.py"
    other.write_text(MODEL.replace("NAME", "mine-once"))
    with pytest.raises(InputError, match=r"other\.py: ValueError: model 'mine-once' is registered"):
        load_plugin(other)
    with pytest.raises(InputError, match=r"none\.py: no such file"):
        load_plugin(tmp_path / "none.py")
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"bad\.py: ZeroDivisionError"):
        load_plugin(tmp_path / "bad.py")


def test_an_unknown_name_lists_what_there_is_the_nearest_first():
    assert {"lfmim", "mlf-dnn", "upstream"} <= set(MODELS)
    with pytest.raises(InputError, match=r"unknown model 'lfmin'; known: lfmim, .*--plugin FILE"):
        MODELS["lfmin"]


def test_two_of_one_name_are_refused():
    registry: Registry[type] = Registry("thing", "lfmim.models")
    registry.register("one")(int)
    with pytest.raises(ValueError, match="thing 'one' is registered already"):
        registry.register("one")(MODELS["lfmim"])


@pytest.mark.integration
def test_a_plugin_model_is_trained_registered_and_pulled_without_its_file(toy_store, tmp_path):
    """By the commands of docs/extending.md."""
    file, runs = tmp_path / "mine.py", tmp_path / "runs"
    file.write_text(MODEL.replace("NAME", "mine"))
    env = {k: v for k, v in os.environ.items() if k != PLUGINS}
    train = [sys.executable, str(ROOT / "jobs" / "train.py"), "--store", str(toy_store)]
    train += ["--model.name", "mine", "--train.epochs", "2", "--run.storage", str(runs)]
    without = subprocess.run(train, capture_output=True, text=True, check=False, env=env)
    assert without.returncode == 2
    assert "unknown model 'mine'" in without.stderr
    assert not (runs / "mlflow.db").exists()
    done = subprocess.run(
        [*train, "--plugin", str(file)], capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    file.unlink()
    pulled = subprocess.run(
        [sys.executable, "-c", PULL, f"sqlite:///{runs}/mlflow.db"],
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in env.items() if k != "PYTHONPATH"},
        cwd=tmp_path,
    )
    assert pulled.returncode == 0, pulled.stderr[-2000:]
    assert (
        pulled.stdout.strip().splitlines()[-1]
        in "anger disgust fear happiness neutrality sadness surprise"
    )
