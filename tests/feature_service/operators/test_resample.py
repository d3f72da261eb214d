"""Resampled sound against sines, whose values at any rate are known."""

from __future__ import annotations

import numpy as np
import pytest

from feature_service.operators.decode import decode_clip
from feature_service.operators.resample import Resampler
from tests.support.clips import heard, write_clip

RATES = [8000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000]
EDGE = 1600
"""Samples at each end, where the filter looks beyond the sound."""


def sine(hz: float, rate: int, samples: int) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(samples) / rate)


def level(wave: np.ndarray) -> float:
    """Decibels over a sine of amplitude one, away from the ends."""
    return float(10 * np.log10(2 * (wave[EDGE:-EDGE].astype(float) ** 2).mean() + 1e-20))


@pytest.mark.parametrize("rate", RATES)
def test_tones_keep_their_values_and_none_are_added(rate):
    resample = Resampler()
    for hz in (100, 1000, 3300, 7000):
        if hz < 0.43 * rate:
            wave = resample(sine(hz, rate, 2 * rate).astype(np.float32), rate)
            assert wave.dtype == np.float32
            assert len(wave) == 32_000
            assert level(wave - sine(hz, 16_000, len(wave))) < -90, hz
    for hz in (8600, 12_000, 20_000):  # what 16 kHz cannot hold
        if hz < rate / 2:
            wave = resample(sine(hz, rate, 2 * rate).astype(np.float32), rate)
            assert level(wave) < -90, hz


@pytest.mark.parametrize("samples", [1, 2, 3, 100, 44_101])
def test_lengths(samples):
    wave = np.ones(samples, np.float32)
    assert len(Resampler()(wave, 44_100)) == -(-samples * 16_000 // 44_100)
    assert Resampler()(wave, 16_000) is wave
    wave.setflags(write=False)  # as what comes from another process
    Resampler()(wave, 8000)


@pytest.mark.parametrize("rate", [8000, 16_000, 44_100, 96_000, 192_000, 16_001, 44_056, 384_000])
def test_of_any_rate_a_file_may_have(tmp_path, rate):
    path = write_clip(tmp_path / "a.wav", frames=0, audio="pcm_f32le", rate=rate, seconds=1.0)
    clip = decode_clip(path, key="k")
    assert clip.sample_rate == (48_000 if rate in (16_001, 44_056, 384_000) else rate)
    wave = heard(clip)
    assert abs(len(wave) - 16_000) <= 16
    least = min(len(wave), 16_000)
    assert level(wave[:least] - 0.3 * sine(220, 16_000, least)) < -60


def test_a_rate_that_changes_midway(tmp_path):
    for name, rate in (("a", 24_000), ("b", 16_000)):
        write_clip(tmp_path / f"{name}.mp3", frames=0, audio="mp3", rate=rate, seconds=1.0)
    both = b"".join((tmp_path / f"{n}.mp3").read_bytes() for n in "ab")
    (tmp_path / "c.mp3").write_bytes(both)
    clip = decode_clip(tmp_path / "c.mp3", key="k")
    assert clip.sample_rate == 24_000
    assert abs(len(clip.waveform) / 24_000 - 2.1) < 0.2
    for part in (clip.waveform[4000:20_000], clip.waveform[30_000:46_000]):
        assert abs(np.abs(np.fft.rfft(part, 24_000)).argmax() - 220) <= 2
