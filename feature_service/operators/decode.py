"""Media file -> sampled RGB frames and a 16 kHz mono waveform, through PyAV (FFmpeg). Imports no torch: it runs in the
small processes of isolation.py."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.stream import Disposition

from feature_service.operators.media import open_media

SAMPLE_RATE = 16_000
"""Hz, what wav2vec2 reads."""
FORMATS = ("3gp,aac,aiff,amr,asf,ast,au,avi,caf,dv,flac,flv,gxf,ivf,m4v,matroska,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,"
           "nut,ogg,rm,w64,wav,webm,wv")
"""FFmpeg demuxers that may open a file: no pictures, no text, and none that follows references to other files."""
TAIL = 0.02
"""Share of a stream that may be missing at its end before the clip counts as truncated."""
BAD_AUDIO = 0.1
"""Share of audio packets that may fail to decode (first and last packets of sound streams often do)."""


class ClipError(RuntimeError):
    """This clip cannot be used; the row is quarantined with `stage` and the message."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedClip:
    """`frames` uint8 [F, H, W, 3] RGB, upright, or None; `waveform` float32 [S] at 16 kHz or None.

    H, W: the displayed size, reduced to `max_frame_side` at most. `sha256`: of the media's bytes.
    """

    frames: np.ndarray | None
    frame_indices: np.ndarray
    waveform: np.ndarray | None
    duration_s: float
    video_streams: int
    audio_streams: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What changes the result, and the bounds a clip must keep."""

    segments: int = 8
    frames_per_segment: int = 8
    seed: int = 0
    max_duration_s: float = 600.0
    max_frame_side: int = 1920
    max_bytes: int = 2 << 30
    """Of media that is fetched from elsewhere."""


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


def decode_clip(video: str | Path, *, key: str, options: DecodeOptions = DecodeOptions()) -> DecodedClip:
    """Decode the sampled frames and the whole audio of the first video and the first audio stream.

    `key` (the utterance's id) seeds the sampling. Only the sampled frames are converted and kept. Raises ClipError if
    the file is empty, is no media, is damaged or longer than `max_duration_s`, or has neither video nor audio.
    """
    try:
        with open_media(str(video), max_bytes=options.max_bytes) as file:
            if not file.read(1):
                raise ClipError("decode", "the file is empty")
            file.seek(0)
            return _decode(file, key, options)
    except MemoryError as error:
        raise ClipError("decode", "decoding it needs more memory than a clip may take") from error
    except OSError as error:
        raise ClipError("decode", f"cannot be read: {error.strerror or _first_line(error)}") from error
    except ValueError as error:
        raise ClipError("decode", f"cannot be used: {_first_line(error)}") from error


def _decode(file: BinaryIO, key: str, options: DecodeOptions) -> DecodedClip:
    try:
        container = av.open(file, options={"format_whitelist": FORMATS})
    except (av.FFmpegError, ValueError) as error:
        raise ClipError("decode", f"is no audio or video file, or its header is damaged ({_first_line(error)})"
                        ) from error
    with container:
        # Cover art counts as a video stream in FFmpeg.
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        audios = container.streams.audio
        stated = (container.duration or 0) / av.time_base
        _check_duration(stated, options)
        try:
            frames, indices, video_s = None, np.empty(0, np.int32), 0.0
            if videos:
                frames, indices, video_s = _decode_video(container, videos[0], key, options)
            waveform = _decode_audio(container, audios[0], options) if audios else None
        except av.FFmpegError as error:
            raise ClipError("decode", f"the stream is damaged: {_first_line(error)}") from error
        audio_s = 0.0 if waveform is None else len(waveform) / SAMPLE_RATE
        if frames is None and waveform is None:
            raise ClipError("decode", "has neither a video nor an audio stream with content")
        only_ours = len(container.streams) == len(videos) + len(audios) == len(videos[:1]) + len(audios[:1])
        if only_ours and max(video_s, audio_s) < 0.9 * stated - 0.5:
            raise ClipError("decode", f"is truncated: ends at {max(video_s, audio_s):.1f} s of {stated:.1f} s")
        counts = len(videos), len(audios)
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    return DecodedClip(frames, indices, waveform, max(video_s, audio_s), *counts, digest)


def _check_duration(seconds: float, options: DecodeOptions) -> None:
    if seconds > options.max_duration_s:
        raise ClipError("decode", f"is {seconds:.0f} s long, more than max_duration_s {options.max_duration_s:g}; "
                        "cut it into utterances")


@dataclasses.dataclass(frozen=True, slots=True)
class _FrameIndex:
    """Where a stream's frames lie, from its packets alone: nothing is decoded for it."""

    times: list[int]
    """Presentation times in display order; positions where the container does not tell them."""
    keys: list[int]
    """Times at which decoding can start."""
    timed: bool


def _index_frames(container: Any, stream: Any, options: DecodeOptions) -> _FrameIndex:
    times: list[int | None] = []
    keys, packets, low, high = [], 0, None, None
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            packets += 1
            if packet.is_keyframe and packet.pts is not None:
                keys.append(packet.pts)
            if not packet.is_discard:  # outside the container's edit list: never shown
                times.append(packet.pts)
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                low, high = (stamp, stamp) if low is None else (min(low, stamp), max(high, stamp))
                _check_duration(float((high - low) * (stream.time_base or 0)), options)
    except av.error.EOFError:
        pass
    _check_count(packets, container, stream)
    known = [t for t in times if t is not None]
    timed = bool(keys) and len(set(known)) == len(times)
    return _FrameIndex(sorted(known) if timed else list(range(len(times))), sorted(keys), timed)


def _check_count(packets: int, container: Any, stream: Any) -> None:
    # MP4 and MOV say how many packets there should be; what other containers say is not to be relied on.
    if "mov" in container.format.name and packets < (1 - TAIL) * stream.frames - 1:
        raise ClipError("decode", f"the {stream.type} stream is truncated: {packets} of {stream.frames} packets")


def _decode_video(
    container: Any, stream: Any, key: str, options: DecodeOptions
) -> tuple[np.ndarray | None, np.ndarray, float]:
    index = _index_frames(container, stream, options)
    if not index.times:
        return None, np.empty(0, np.int32), 0.0
    indices = sample_frame_indices(len(index.times), segments=options.segments, seed=options.seed, key=key,
                                   frames_per_segment=options.frames_per_segment)
    unique, inverse = np.unique(indices, return_inverse=True)
    pick = _frames_at if index.timed else _frames_in_order
    images: np.ndarray | None = None
    for n, frame in enumerate(pick(container, stream, index, unique.tolist())):
        image = _upright(frame, stream, options.max_frame_side if images is None else images.shape[1:3])
        if images is None:
            images = np.empty((len(unique), *image.shape), np.uint8)
        images[n] = image
    rate = float(stream.average_rate or 0)
    if index.timed:
        seconds = float((index.times[-1] - index.times[0]) * stream.time_base) + (1 / rate if rate else 0.0)
    else:
        seconds = len(index.times) / rate if rate else 0.0
    assert images is not None
    return images if len(unique) == len(indices) else images[inverse], indices, seconds


def _frames_at(container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]) -> Iterator[Any]:
    """The frames shown at the picked times: seek to the keyframe before each, decode no further than it."""
    frames: Iterator[Any] = iter(())
    current: Any = None
    exact = True  # until a container turns out to seek behind the frame wanted
    for pick in picks:
        wanted = index.times[pick]
        start = index.keys[max(bisect.bisect_right(index.keys, wanted) - 1, 0)]
        seeks = current is None or (exact and current.pts < start)
        if seeks:
            container.seek(start, stream=stream)
            frames, current = iter(container.decode(stream)), None
        if current is None or current.pts < wanted:
            current = _first_at(frames, wanted)
        if seeks and exact and (current is None or current.pts > wanted):
            exact = False
            _rewind(container)
            frames = iter(container.decode(stream))
            current = _first_at(frames, wanted)
        if current is None:
            raise ClipError("decode", f"the video stream is damaged: no frame {pick} of {len(index.times)}")
        yield current


def _rewind(container: Any) -> None:
    # MPEG streams: from a second ahead, or the first keyframe is missed.
    container.seek((container.start_time or 0) - av.time_base if "mpeg" in container.format.name else 0)


def _first_at(frames: Iterator[Any], wanted: int) -> Any:
    return next((f for f in frames if f.pts is not None and f.pts >= wanted), None)


def _frames_in_order(container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]) -> Iterator[Any]:
    """For streams without times: decode from the start and count. The last frame stands in for a missing tail."""
    _rewind(container)
    left, last, count = list(picks), None, 0
    for last in container.decode(stream):
        while left and left[0] == count:
            yield last
            left.pop(0)
        count += 1
        if not left:
            return
    if last is None or count < (1 - TAIL) * len(index.times) - 2:  # two: B-frames of packed AVI streams
        raise ClipError("decode", f"the video stream is damaged: {count} of {len(index.times)} frames")
    for _ in left:
        yield last


def _upright(frame: Any, stream: Any, size: Any) -> np.ndarray:
    """RGB as a player shows it: square pixels, rotated by the display matrix. `size`: (H, W) or the longest side."""
    turns = round(frame.rotation / 90) % 4  # anticlockwise, as np.rot90
    if isinstance(size, tuple):
        height, width = size[::-1] if turns % 2 else size
    else:
        aspect = float(stream.sample_aspect_ratio or 1)
        width, height = frame.width * max(aspect, 1.0), frame.height / min(aspect, 1.0)
        scale = min(1.0, size / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    return np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), turns)


def _decode_audio(container: Any, stream: Any, options: DecodeOptions) -> np.ndarray | None:
    """The stream as 16 kHz mono, frame by frame: the native samples are never held whole."""
    _rewind(container)
    limit = int(options.max_duration_s * SAMPLE_RATE)
    resampler, packets, bad, samples = _resampler(), 0, 0, 0
    parts: list[np.ndarray] = []
    for packet in container.demux(stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.EOFError:
            break
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            bad += 1
            continue
        for frame in frames:
            try:
                out = resampler.resample(frame)
            except ValueError:  # rate or channels change midway
                out, resampler = resampler.resample(None), _resampler()
                out += resampler.resample(frame)
            parts += [f.to_ndarray()[0] for f in out]
            samples += sum(f.samples for f in out)
        if samples > limit:
            break
    if samples:
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    wave = np.concatenate(parts) if parts else np.empty(0, np.float32)
    _check_duration(len(wave) / SAMPLE_RATE, options)
    _check_count(packets, container, stream)
    if bad > max(2, BAD_AUDIO * packets) or (bad and not wave.size):
        raise ClipError("decode", f"the audio stream is damaged: {bad} of {packets} packets cannot be decoded")
    return np.ascontiguousarray(wave, np.float32) if wave.size else None


def _resampler() -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder.
    return av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options={"rematrix_maxval": "1.0"})


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
