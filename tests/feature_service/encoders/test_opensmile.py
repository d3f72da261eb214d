"""openSMILE's descriptors, and what is said where the package is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from feature_service.encoders.base import load_encoder
from feature_service.pipeline.stages import build_feature_spec
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import InputError, Modality


def load():
    return load_encoder(Modality.AUDIO, "", family="opensmile")


def test_without_the_package_one_message_has_the_command_and_the_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(
        InputError, match=r"pip install opensmile\. Its licence is audEERING's.*non-commercial"
    ):
        load()


def test_egemaps_descriptors():
    opensmile = pytest.importorskip("opensmile", reason="an extra: pip install opensmile")
    encoder = load()
    seconds = np.arange(16_000) / 16_000
    # a voice, as far as openSMILE can tell: 30 harmonics of 200 Hz
    voice = sum(np.sin(2 * np.pi * 200 * k * seconds) / k for k in range(1, 31)) / 8
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    given = [x.astype(np.float32) for x in (voice, noise, np.zeros(100), np.zeros(16_000))]
    together = encoder(given)
    assert [x.shape for x in together] == [(96, 25), (21, 25), (2, 25), (96, 25)]
    for value, found in zip(given, together, strict=True):
        assert found.dtype == np.float16
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(encoder([value])[0], found)
    # semitones above 27.5 Hz; none in the noise of silence
    pitch = encoder.smile.feature_names.index("F0semitoneFrom27.5Hz_sma3nz")
    assert np.median(together[0][:, pitch]) == pytest.approx(12 * np.log2(200 / 27.5), abs=0.2)
    assert not together[3][:, pitch].any()

    config = ExtractConfig(
        manifest="m", store="s", modalities=["audio"],
        encoders=EncoderConfig(audio_family="opensmile"),
    )  # fmt: skip
    spec = build_feature_spec(config).encoders["audio"]
    assert (spec.name, spec.dim, spec.precision) == ("opensmile", 25, "fp32")
    assert spec.settings == {
        "feature_set": "eGeMAPSv02",
        "level": "LowLevelDescriptors",
        "opensmile": opensmile.__version__,
    }
