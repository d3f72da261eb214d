"""A clip as a plain script reads it: decord, or PyAV on a machine for which decord has no wheel."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from feature_service.operators.decode import SAMPLE_RATE, decode_clip, sample_frame_indices
from feature_service.operators.resample import Resampler

try:
    import decord
except ImportError:  # macOS, ARM: see pyproject.toml
    decord = None

READER = f"decord {decord.__version__}" if decord else f"PyAV {av.__version__}"


def read_clip(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The frames that the pipeline samples, uint8 [64, H, W, 3], and the sound, float32 [S] at
    16 kHz, if there is any. Both give the same frames of the clips that by_decord.py names."""
    return by_decord(path, key) if decord else by_pyav(path, key)


def by_decord(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    video = decord.VideoReader(str(path))
    frames = video.get_batch(sample_frame_indices(len(video), key=key)).asnumpy()
    try:
        sound = decord.AudioReader(str(path), sample_rate=SAMPLE_RATE, mono=True)
    except decord.DECORDError:  # there is none
        return frames, None
    return frames, sound[:].asnumpy()[0]


def by_pyav(path: Path, key: str) -> tuple[np.ndarray, np.ndarray | None]:
    clip = decode_clip(path, key=key)
    assert clip.frames is not None, f"{path}: has no video"
    sound = clip.waveform
    return clip.frames, None if sound is None else Resampler()(sound, clip.sample_rate)
