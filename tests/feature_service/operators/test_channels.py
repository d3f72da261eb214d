"""Channels to mono: the mix is FFmpeg's own unless it cancels what the channels hold."""

from __future__ import annotations

import wave

import av
import numpy as np
import pytest

from feature_service.operators.decode import decode_clip
from tests.support.clips import write_clip

RATE = 16_000
RNG = np.random.default_rng(0)


def write_wav(path, channels: np.ndarray):
    """Channels [C, N] in [-1, 1] as 16 bit PCM. No layout is written: FFmpeg guesses one up to 2
    channels."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(len(channels))
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((channels * 32_767).round().astype("<i2").T.tobytes())
    return path


def voice(seconds: float = 2.0, pitch: float = 140.0) -> np.ndarray:
    t = np.arange(int(seconds * RATE)) / RATE
    harmonics = sum(np.sin(2 * np.pi * pitch * k * t + k) / k for k in range(1, 12))
    return 0.2 * harmonics * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))


def sound(path) -> np.ndarray:
    return decode_clip(path, key="k").waveform


def plain_mix(path) -> np.ndarray:
    resampler = av.AudioResampler(format="flt", layout="mono", options={"rematrix_maxval": "1.0"})
    with av.open(str(path)) as container:
        frames = [out for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate([f.to_ndarray()[0] for f in [*frames, *resampler.resample(None)]])


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine, whatever the sign."""
    return float(abs(a @ b) / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("right", [-1.0, -0.8, -0.5, -1.5])
def test_one_channel_inverted_gives_the_louder_one(tmp_path, right):
    left = 0.6 * voice()
    mono = sound(write_wav(tmp_path / "mono.wav", left[None] * max(1.0, abs(right))))
    both = sound(write_wav(tmp_path / "both.wav", np.stack([left, right * left])))
    if right == -1.0:
        np.testing.assert_array_equal(both, mono)
    assert likeness(both, mono) > 0.999
    assert both.std() == pytest.approx(mono.std(), rel=0.01)


def test_noise_an_offset_or_half_a_clip_do_not_hide_it(tmp_path):
    left = voice()
    noise = RNG.normal(0, 0.01, (2, len(left)))
    for name, channels in {
        "noise": np.stack([left, -left]) + noise,
        "offset": np.stack([left, -left]) + 0.2,
        "second_half": np.stack(
            [left, np.where(np.arange(len(left)) < len(left) / 2, left, -left)]
        ),
        "after_silence": np.stack([left, -left]) * (np.arange(len(left)) > 1.4 * RATE),
    }.items():
        both = sound(write_wav(tmp_path / f"{name}.wav", channels))
        assert likeness(both - both.mean(), channels[0] - channels[0].mean()) > 0.98, name


@pytest.mark.parametrize(
    "name",
    [
        "same",
        "louder",
        "left_only",
        "unrelated",
        "delayed",
        "silent",
        "offset",
        "slightly_opposite",
    ],
)
def test_channels_that_do_not_cancel_are_mixed_as_ever(tmp_path, name):
    left, other = voice(), voice(pitch=190)
    channels = {
        "same": (left, left),
        "louder": (left, 0.3 * left),
        "left_only": (left, 0 * left),
        "unrelated": (left, other),
        "delayed": (left, np.roll(left, 8)),
        "silent": (0 * left, 0 * left),
        "offset": (left + 0.1, left - 0.1),
        "slightly_opposite": (left, 0.9 * other - 0.2 * left),
    }[name]
    path = write_wav(tmp_path / "a.wav", 0.8 * np.stack(channels))
    np.testing.assert_array_equal(sound(path), plain_mix(path))


@pytest.mark.parametrize(
    ("layout", "gains", "lost"),
    [
        ("stereo", (1, 1), False),
        ("stereo", (1, -1), True),
        ("5.1", (1, 1, 1, 1, 1, 1), False),
        ("5.1", (1, -1, 0, 0, 0, 0), True),
        ("5.1", (0, 0, 0, 0, 1, -1), True),
        ("5.1", (0.3, -0.3, 1, 0, 0, 0), False),
        ("7.1", (1, -1, 0, 0, 0, 0, 0, 0), True),
        ("7.1", (1, 1, 1, 1, 1, 1, 1, 1), False),
        ("quad", (1, -1, 1, -1), True),
    ],
)
@pytest.mark.parametrize(
    ("name", "codec"), [("a.mka", "aac"), ("a.mka", "flac"), ("a.mkv", "pcm_s24le")]
)
def test_layouts_and_codecs(tmp_path, layout, gains, lost, name, codec):
    if codec == "aac" and layout == "quad":
        pytest.skip("AAC has no such layout")
    path = write_clip(
        tmp_path / name, frames=0, audio=codec, rate=48_000, layout=layout, gains=gains
    )
    both = sound(path)
    if not lost:
        np.testing.assert_array_equal(both, plain_mix(path))
    assert both[4000:28_000].std() == pytest.approx(0.3 * np.sqrt(0.5), rel=0.1) or not lost


@pytest.mark.parametrize("count", [3, 4, 6, 8, 16])
def test_channels_without_a_layout(tmp_path, count):
    left = voice()
    alone = [1, -1] + [0] * (count - 2)
    both = sound(write_wav(tmp_path / "a.wav", np.array(alone)[:, None] * left))
    assert likeness(both, left) > 0.999
    assert both.std() == pytest.approx(left.std(), rel=0.01)


def test_a_layout_that_changes_midway(tmp_path):
    """MPEG audio may: two files one after the other."""
    left = write_clip(
        tmp_path / "a.mp3", frames=0, audio="mp3", layout="stereo", gains=(1, -1), rate=24_000
    )
    mono = write_clip(tmp_path / "b.mp3", frames=0, audio="mp3", rate=24_000)
    (tmp_path / "c.mp3").write_bytes(left.read_bytes() + mono.read_bytes())
    both = sound(tmp_path / "c.mp3")
    assert both[6000:36_000].std() > 0.15
    assert both[60_000:90_000].std() > 0.15
