"""What decoding a clip gives, what it may cost, and how it fails."""

from __future__ import annotations

import dataclasses

import numpy as np

SAMPLE_RATE = 16_000
"""Hz of a waveform, what wav2vec2 reads."""


class ClipError(RuntimeError):
    """This clip cannot be used; the row is quarantined with `stage` and the message."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedClip:
    """`frames` uint8 [F, H, W, 3] RGB, upright, or None; `frame_indices` int32 [F], the frames'
    positions in the stream (of a stretch: in that), ascending, or empty; `frame_times` float64 [F],
    when they are shown, in seconds after the first of the recording's sound and pictures, NaN where
    the container does not tell; `waveform` float32 [S], mono, at `sample_rate` Hz, the file's own,
    or None.

    H, W: the displayed size, reduced to `max_frame_side` at most. `frame_reader`: decord, pyav, or
    None without frames. `sha256`: of the media's bytes, all of them.
    """

    frames: np.ndarray | None
    frame_indices: np.ndarray
    frame_times: np.ndarray
    waveform: np.ndarray | None
    sample_rate: int
    frame_reader: str | None
    duration_s: float
    video_streams: int
    audio_streams: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What changes the result, and the bounds a clip must keep."""

    pictures: bool = True
    """False: the sound alone is decoded."""
    segments: int = 8
    frames_per_segment: int = 8
    seed: int = 0
    max_duration_s: float = 600.0
    max_frame_side: int = 1920
    max_bytes: int = 2 << 30
    """Of media that is fetched from elsewhere."""
