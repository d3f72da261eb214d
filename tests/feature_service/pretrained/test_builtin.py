"""What answers before a model is trained, and the encoders that a model names itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import lfmim
from feature_service.pipeline.predict import encoders_of
from feature_service.pipeline.predict_store import NOTE, prediction_schema
from feature_service.pipeline.stages import build_feature_spec
from feature_service.pretrained.builtin import LIMITS, builtin_face
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import Modality
from tests.feature_service.pretrained.test_real import gold


def test_its_answer_is_the_packages_own():
    given = gold("vision/face_expression_io.npz")
    predictor = builtin_face()
    frames = [x[None].astype(np.float32) for x in given["features"]]
    # Features are stored in 16 bits, which turns the fourth digit.
    found = predictor.predict({Modality.VISION: frames})
    np.testing.assert_allclose(found["vision"], given["probabilities"], atol=1e-3)
    # Over several frames: their mean. A row without a face, and the other heads, do not answer.
    two = predictor.predict({Modality.VISION: [given["features"][:2], None]})
    np.testing.assert_allclose(two["vision"][0], given["probabilities"][:2].mean(0), atol=1e-3)
    assert np.isnan(two["vision"][1]).all()
    assert all(np.isnan(two[h]).all() for h in ("text", "audio", "multimodal"))


def test_an_empty_folder_gets_a_face_and_the_limits(media, tmp_path, tmp_path_factory, monkeypatch):
    # Before anything was fetched: what answers comes with the package.
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path_factory.mktemp("cache")))
    smiling = str(media / "single_face.mp4")
    job = [sys.executable, "-m", "lfmim", "predict", "--video", smiling, "--text", "hello"]
    done = subprocess.run(job, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "happy" in done.stdout
    assert done.stdout.count("absent") == 3
    assert LIMITS in done.stderr
    assert list(tmp_path.iterdir()) == []

    model = lfmim.load_model("builtin:face")
    row = model.predict_clip(smiling)
    assert row["label_vision"] == "happy"
    assert row["label_multimodal"] is None
    assert model.labels[:3] == ("neutral", "happy", "sad")
    # Files of answers say it in every row.
    assert NOTE in prediction_schema(model.predictor).names


@pytest.mark.slow
@pytest.mark.parametrize("model", ["models:/lfmim/1", "models:/mine@champion"])
def test_a_model_that_was_asked_for_is_not_replaced(model, media, tmp_path):
    job = [
        sys.executable,
        "-m",
        "lfmim",
        "predict",
        "--model",
        model,
        "--video",
        str(media / "single_face.mp4"),
    ]
    done = subprocess.run(job, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "builtin" not in done.stderr


@pytest.mark.parametrize(
    "encoders",
    [
        EncoderConfig(),
        EncoderConfig(audio_family="mfcc_pitch", vision_crop="loose"),
        EncoderConfig(text_layer="1", audio_layer="0-1"),
    ],
)
def test_a_model_names_its_encoders(encoders):
    spec = build_feature_spec(ExtractConfig(manifest="-", store="-", encoders=encoders))
    again = encoders_of(spec)
    found = build_feature_spec(ExtractConfig(manifest="-", store="-", encoders=again))
    assert not spec.differences(found)


def test_a_preset_is_found_in_this_machines_cache():
    spec = builtin_face().meta.spec
    assert encoders_of(spec) == EncoderConfig(preset="real", vision_crop="box")
