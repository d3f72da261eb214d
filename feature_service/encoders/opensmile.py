"""Waveforms -> openSMILE's eGeMAPS low-level descriptors, every 10 ms.

The package is an extra, for its licence is not an open one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.operators.clip import SAMPLE_RATE
from lfmim.schema import InputError, Modality

FEATURE_SET, LEVEL = "eGeMAPSv02", "LowLevelDescriptors"
LEAST = 960
"""Samples of its longest window; of fewer it makes NaN."""
LICENCE = (
    "audEERING's Research License: research, teaching and other non-commercial use; for products, "
    "features and models made with it included, audEERING sells another"
)


@register_encoder("opensmile", modality=Modality.AUDIO)
class OpenSmileEncoder(Encoder):
    """Loudness, spectral slopes and flux, four MFCCs, pitch, jitter, shimmer, harmonics, and three
    formants (Eyben et al. 2016, doi:10.1109/TAFFC.2015.2457417): 25 numbers every 10 ms, smoothed
    over 30 ms; pitch and what goes with it 0 where there is no voice. No weights: chosen with
    `encoders.audio_family opensmile`.

    Raises InputError without the package.
    """

    dim = 25

    def __init__(self, source: str, *, revision: str | None = None, device: str = "cpu") -> None:
        super().__init__(source, revision=revision, device=device)
        opensmile = _package()
        self.smile = opensmile.Smile(
            feature_set=opensmile.FeatureSet[FEATURE_SET],
            feature_level=opensmile.FeatureLevel[LEVEL],
        )
        version = opensmile.__version__
        self.settings |= {"feature_set": FEATURE_SET, "level": LEVEL, "opensmile": version}

    def digest(self) -> str:
        return hashlib.sha256(str(sorted(self.settings.items())).encode()).hexdigest()

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [S] at 16 kHz -> float16 [T, 25], T = (max(S, 960) - 960) // 160 + 2; one
        waveform a pass, on the CPU."""
        return [self._encode(np.asarray(w, np.float32)) for w in waveforms]

    def _encode(self, wave: np.ndarray) -> np.ndarray:
        wave = np.pad(wave, (0, max(0, LEAST - len(wave))))
        found: np.ndarray = self.smile.process_signal(wave, SAMPLE_RATE).to_numpy(np.float16)
        return found


def _package() -> Any:
    try:
        import opensmile
    except ImportError as error:
        raise InputError(
            "encoders.audio_family: opensmile needs a package that is not installed: "
            f"pip install opensmile. Its licence is {LICENCE}."
        ) from error
    return opensmile
