"""Waveforms -> hand-crafted speech features: 20 MFCCs, pitch and level, every 20 ms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torchaudio.functional import detect_pitch_frequency
from torchaudio.transforms import MFCC

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.operators.clip import SAMPLE_RATE
from lfmim.schema import Modality

HOP, WINDOW = 320, 400
SETTINGS = {"n_mfcc": 20, "melkwargs": {"n_fft": WINDOW, "hop_length": HOP, "n_mels": 40}}
PITCH = {"frame_time": HOP / SAMPLE_RATE, "win_length": 15, "freq_low": 60, "freq_high": 500}
LEAST = SAMPLE_RATE // 4
"""Samples that pitch needs around a frame; less is filled up with silence."""
VERSION = 1
"""Higher when the code below gives other numbers."""


@register_encoder("mfcc_pitch", modality=Modality.AUDIO)
class MfccPitchEncoder(Encoder):
    """20 MFCCs, log2 of the fundamental frequency over 100 Hz (torchaudio's, by normalised
    cross-correlation), and the level in decibels / 10: 22 numbers every 20 ms. No weights: chosen
    with `encoders.audio_family mfcc_pitch`."""

    dim = SETTINGS["n_mfcc"] + 2  # type: ignore[operator]

    def __init__(self, source: str, *, revision: str | None = None, device: str = "cpu") -> None:
        super().__init__(source, revision=revision, device=device)
        self.mfcc = MFCC(SAMPLE_RATE, **SETTINGS).to(device)

    def digest(self) -> str:
        return hashlib.sha256(f"{SETTINGS} {PITCH} {VERSION}".encode()).hexdigest()

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [S] -> float16 [T, 22], T = max(S, 4,000) // 320; one waveform a pass."""
        return [self._encode(np.asarray(w, np.float32)) for w in waveforms]

    def _encode(self, wave: np.ndarray) -> np.ndarray:
        wave = np.pad(wave, (0, max(0, LEAST - len(wave))))
        x = torch.from_numpy(wave).to(self.device)
        count = len(wave) // HOP
        level = x[: count * HOP].view(count, HOP).square().mean(dim=1).clamp_min(1e-8).log10()

        pitch = detect_pitch_frequency(x[None], SAMPLE_RATE, **PITCH)[0].clamp_min(1.0)
        # its smoothing takes some frames off the end
        pitch = torch.cat([pitch, pitch[-1:].expand(max(0, count - len(pitch)))])[:count]
        rows = [self.mfcc(x)[:, :count], (pitch / 100).log2()[None], level[None]]
        return torch.cat(rows).T.to(torch.float16).cpu().numpy()
