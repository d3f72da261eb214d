"""Recognised words: of speech, in a language that is told or detected, and never a loop."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from feature_service.operators.decode import decode_clip
from feature_service.operators.resample import Resampler
from feature_service.recordings.recognition import build_recogniser, repeats
from lfmim.schema import InputError


def test_a_text_that_repeats_itself():
    assert repeats("更多的" * 40)
    assert not repeats("床前明月光，疑是地上霜。举头望明月，低头思故乡。")
    assert not repeats("no no no no")
    assert not repeats("")


def test_what_cannot_be_loaded_is_named(tmp_path):
    for named, said in (
        ("vosk:x", "--asr vosk:x: give one of whisper:FOLDER"),
        ("whisper:", "give one of whisper:FOLDER"),
        ("whisper:/nowhere", "no such folder: /nowhere"),
        (f"whisper:{tmp_path}", str(tmp_path)),
    ):
        with pytest.raises(InputError, match=said):
            build_recogniser(named)


@pytest.fixture(scope="module")
def whisper(media, tmp_path_factory):
    """Whisper base, made by the script beside the media, which fetches 130 MB."""
    script = media.parent / "real" / "audio" / "fetch_audio_encoder.py"
    folder = tmp_path_factory.mktemp("whisper") / "base"
    command = [sys.executable, str(script), str(folder), "--size", "base"]
    if not script.is_file() or subprocess.run(command, check=False).returncode:
        pytest.skip("no Whisper: its script (../shared/real) or its packages are not here")
    return f"whisper:{folder}"


@pytest.mark.slow
def test_words_of_real_speech(whisper, media):
    def wave(name):
        clip = decode_clip(media / name, key="k")
        return Resampler()(clip.waveform, clip.sample_rate)

    recognise = build_recogniser(whisper)
    text, confidence = recognise(wave("talking_head.mp4"))
    assert "more just future for our country" in text
    assert 0.8 < confidence < 1
    assert "明月" in recognise(wave("mandarin_poem_24k.wav")).text
    assert recognise(np.zeros(16_000, np.float32)).confidence < 0.8

    chinese = build_recogniser(whisper, "zh")
    assert "明月" in chinese(wave("mandarin_poem_24k.wav")).text
    assert chinese(wave("talking_head.mp4")) == ("", 0.0)
    with pytest.raises(InputError, match="--language xx: not of this Whisper, which knows"):
        build_recogniser(whisper, "xx")
