"""A model of one's own, in one file: found, trained by a job, pulled without that file."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from lfmim.config import ModelConfig
from lfmim.data.manifest import read_manifest
from lfmim.models import MODELS, build_model
from lfmim.registry import PLUGINS, Registry, load_plugin
from lfmim.schema import InputError, Modality
from tests.support.toy import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
MODEL, _, IMPORTER = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
MODEL = MODEL.replace('l("mean")', 'l("NAME")')
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


@pytest.mark.slow
@pytest.mark.integration
def test_a_plugin_model_is_trained_registered_and_pulled_without_its_file(toy_store, tmp_path):
    """The model of docs/extending.md, by its command."""
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


@pytest.mark.integration
def test_an_importer_is_added_by_one_file(tmp_path):
    """The importer of docs/extending.md, by its command."""
    (tmp_path / "named_clips.py").write_text(IMPORTER)
    for clip in ("happiness-1.mp4", "fear-1.mp4", "fear-2.mp4"):
        (tmp_path / "clips").mkdir(exist_ok=True)
        (tmp_path / "clips" / clip).touch()
    command = [sys.executable, str(ROOT / "jobs" / "import_dataset.py"), "named_clips"]
    command += ["--source", "clips", "--output", "clips.csv"]
    given = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
    unknown = subprocess.run(command, **given)
    assert unknown.returncode == 2
    done = subprocess.run([*command, "--plugin", "named_clips.py"], **given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "3 clips" in done.stdout
    rows = read_manifest(str(tmp_path / "clips.csv"))
    assert list(rows.id) == ["fear-1", "fear-2", "happiness-1"]
    assert list(rows.label_multimodal) == ["fear", "fear", "happiness"]
    (tmp_path / "clips" / "cheerful-1.mp4").touch()
    bad = subprocess.run([*command, "--plugin", "named_clips.py"], **given)
    assert bad.returncode == 2
    assert "cheerful" in bad.stderr
