"""Waveforms at the rate of the encoders, by torchaudio. For the processes that have torch: the
decoder hands on what the file holds."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torchaudio.transforms import Resample

from feature_service.operators.clip import SAMPLE_RATE

KAISER = {
    "resampling_method": "sinc_interp_kaiser",
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "beta": 14.769656459379492,
}
"""torchaudio's equal of resampy's "kaiser_best". Its default, a Hann window over 6 zero crossings,
lets 9 kHz through to 7 kHz at -17 dB, this at -118 dB and less (docs/benchmarks.md)."""
RESAMPLER = "torchaudio sinc_interp_kaiser 64"
"""What a FeatureSpec calls it."""


class Resampler:
    """Any rate that the decoder hands on -> SAMPLE_RATE."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        # the kernel of a rate takes longer to make than a short clip to filter
        self._to = functools.lru_cache(maxsize=16)(self._resample)

    def __call__(self, wave: np.ndarray, rate: int) -> np.ndarray:
        """float32 [S] at `rate` Hz -> float32 [ceil(S * 16,000 / rate)]."""
        if rate == SAMPLE_RATE:
            return wave
        # a copy: a waveform from another process is a view of memory that may not be written
        given = torch.from_numpy(np.array(wave, np.float32)).to(self.device)
        # TF32, which convolutions on a GPU use by default, would leave noise at -60 dB
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            return np.asarray(self._to(rate)(given).cpu())

    def _resample(self, rate: int) -> Resample:
        return Resample(rate, SAMPLE_RATE, **KAISER).to(self.device)
