"""Video file -> sampled RGB frames and a 16 kHz mono waveform, through decord."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from pathlib import Path

import decord
import numpy as np
import torch
import torchaudio

SAMPLE_RATE = 16_000
"""Hz, what wav2vec2 reads."""


class ClipError(RuntimeError):
    """This clip cannot be used; the row is quarantined with `stage` and the message."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedClip:
    """`frames` uint8 [F, H, W, 3] RGB at native size or None, `waveform` float32 [S] at 16 kHz or None."""

    frames: np.ndarray | None
    frame_indices: np.ndarray
    waveform: np.ndarray | None
    duration_s: float


def sample_frame_indices(
    num_frames: int, *, segments: int = 8, frames_per_segment: int = 8, seed: int = 0, key: str = ""
) -> np.ndarray:
    """Ascending int32 [segments * frames_per_segment]: random frames of each of the even segments (paper §3.3).

    Without repetition where a segment has enough frames, with it otherwise. Depends on (seed, key) alone, so neither
    order nor process nor restart changes the draw.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be positive, not {num_frames}")
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))
    edges = np.linspace(0, num_frames, segments + 1)
    picks = []
    for low, high in itertools.pairwise(edges):
        first = min(int(low), num_frames - 1)
        last = max(int(np.ceil(high)) if high - int(low) < 1 else int(high), first + 1)
        pool = np.arange(first, last)
        picks.append(rng.choice(pool, frames_per_segment, replace=len(pool) < frames_per_segment))
    return np.sort(np.concatenate(picks)).astype(np.int32)


def decode_clip(
    path: str | Path, *, key: str, segments: int = 8, frames_per_segment: int = 8, seed: int = 0
) -> DecodedClip:
    """Decode the sampled frames and the whole audio of the file's first streams.

    Raises ClipError if the file is empty, is no media, breaks midway, or has neither video nor audio.
    """
    path = str(path)
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise ClipError("decode", f"cannot be opened: {error.strerror}") from error
    if size == 0:
        raise ClipError("decode", "the file is empty")
    frames, indices, video_seconds = _decode_frames(path, segments, frames_per_segment, seed, key)
    waveform, failure = _decode_audio(path)
    if frames is None and waveform is None:
        raise ClipError("decode", f"neither a video nor an audio stream can be read ({failure})")
    audio_seconds = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
    return DecodedClip(frames, indices, waveform, max(video_seconds, audio_seconds))


def _decode_frames(
    path: str, segments: int, frames_per_segment: int, seed: int, key: str
) -> tuple[np.ndarray | None, np.ndarray, float]:
    nothing = None, np.empty(0, np.int32), 0.0
    try:
        reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (RuntimeError, decord.DECORDError):
        return nothing  # no video stream, or no media at all: the audio decides
    if len(reader) == 0:
        return nothing
    indices = sample_frame_indices(
        len(reader), segments=segments, frames_per_segment=frames_per_segment, seed=seed, key=key
    )
    unique, inverse = np.unique(indices, return_inverse=True)
    try:
        frames = reader.get_batch(unique.tolist()).asnumpy()
        fps = float(reader.get_avg_fps())
    except (RuntimeError, decord.DECORDError) as error:
        raise ClipError("decode", f"the video stream is damaged: {_first_line(error)}") from error
    return frames[inverse], indices, len(reader) / fps if fps > 0 else 0.0


def _decode_audio(path: str) -> tuple[np.ndarray | None, str]:
    try:
        # mono=True mixes inside the decoder; the native rate keeps decord's own resampler (which drops the tail) out.
        reader = decord.AudioReader(path, ctx=decord.cpu(0), sample_rate=-1, mono=True)
        samples = reader[:].asnumpy()[0]
        rate = _native_rate(path)
    except (RuntimeError, decord.DECORDError, IndexError) as error:
        return None, _first_line(error)
    if samples.size == 0 or rate <= 0:
        return None, "no audio samples"
    wave = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return torchaudio.functional.resample(wave, rate, SAMPLE_RATE).numpy(), ""


def _native_rate(path: str) -> int:
    import av

    # decord does not tell the stream's rate.
    with av.open(path) as container:
        return int(container.streams.audio[0].rate)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
