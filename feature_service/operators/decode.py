"""Media file -> sampled RGB frames and a 16 kHz mono waveform, through PyAV (FFmpeg). Imports no torch: it runs in the
small processes of isolation.py."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from feature_service.operators.channels import ChannelPower
from feature_service.operators.media import file_size, open_media, stated_size

SAMPLE_RATE = 16_000
"""Hz, what wav2vec2 reads."""
FORMATS = ("3gp,aac,aiff,amr,asf,ast,au,avi,caf,dv,flac,flv,gxf,ivf,m4v,matroska,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,"
           "nut,ogg,rm,w64,wav,webm,wv")
"""FFmpeg demuxers that may open a file: no pictures, no text, and none that follows references to other files."""
TAIL = 0.02
"""Share of a stream that may be missing at its end before the clip counts as truncated."""
BAD_AUDIO = 0.1
"""Share of audio packets that may fail to decode (first and last packets of sound streams often do)."""
UPRIGHT = (1.0, 0.0, 0.0, 1.0)
"""A display matrix that changes nothing."""


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
    size, whole = file_size(file), stated_size(file)
    try:
        opened = _open(file)
    except (av.FFmpegError, ValueError) as error:
        raise ClipError("decode", f"is no audio or video file, or its header is damaged ({_first_line(error)})"
                        ) from error
    with opened as container:
        # Cover art counts as a video stream in FFmpeg.
        videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        audios = container.streams.audio
        stated = (container.duration or 0) / av.time_base
        _check_duration(stated, options)
        if whole is not None and size < (1 - TAIL) * whole:
            raise ClipError("decode", f"is truncated: {size} of {whole} bytes")
        try:
            shown: list[_Packet] = []
            frames, indices, seen = None, np.empty(0, np.int32), NOTHING
            packets = _audio_packets(file, container, [*videos[:1], *audios[:1]], shown, options)
            waveform, heard = _decode_audio(file, packets, options)
            if videos:
                frames, indices, seen = _decode_video(file, container, videos[0], shown, key, stated, options)
        except av.FFmpegError as error:
            raise ClipError("decode", f"the stream is damaged: {_first_line(error)}") from error
        if frames is None and waveform is None:
            raise ClipError("decode", "has neither a video nor an audio stream with content")
        seconds = _joint_seconds(seen, heard, stated)
        only_ours = len(container.streams) == len(videos) + len(audios) == len(videos[:1]) + len(audios[:1])
        if only_ours and seconds < 0.9 * stated - 0.5:
            if whole is None or frames is None:
                raise ClipError("decode", f"is truncated: ends at {seconds:.1f} s of {stated:.1f} s")
            seconds = stated  # no byte is missing: the last picture stays that long
        counts = len(videos), len(audios)
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    return DecodedClip(frames, indices, waveform, seconds, *counts, digest)


def _open(file: BinaryIO, **options: str) -> Any:
    """The file from its first packet. (A seek to 0 is not that: it leads to a keyframe, or is refused.)"""
    file.seek(0)
    return av.open(file, options={"format_whitelist": FORMATS, **options})


@contextlib.contextmanager
def _again(file: BinaryIO, **options: str) -> Iterator[Any]:
    """The file opened beside a container that goes on reading it afterwards."""
    at = file.tell()
    with _open(file, **options) as container:
        yield container
    file.seek(at)


def _check_duration(seconds: float, options: DecodeOptions) -> None:
    if seconds > options.max_duration_s:
        raise ClipError("decode", f"is {seconds:.0f} s long, more than max_duration_s {options.max_duration_s:g}; "
                        "cut it into utterances")


@dataclasses.dataclass(frozen=True, slots=True)
class _Span:
    """Seconds of a stream, and when it starts on the container's clock (None: it does not say)."""

    start: float | None
    seconds: float


NOTHING = _Span(None, 0.0)


def _joint_seconds(a: _Span, b: _Span, stated: float) -> float:
    """From the first start to the last end, on the one clock that both streams have."""
    longest = max(a.seconds, b.seconds)
    if a.start is None or b.start is None:
        return longest
    joint = max(a.start + a.seconds, b.start + b.seconds) - min(a.start, b.start)
    return max(longest, min(joint, stated) if stated else joint)  # a cut leaves frames behind the stated end


@dataclasses.dataclass(frozen=True, slots=True)
class _FrameIndex:
    """Where a stream's frames lie, from its packets alone: nothing is decoded for it."""

    times: list[int]
    """Presentation times in display order; positions where the container does not tell them."""
    keys: list[int]
    """Times at which decoding can start."""
    timed: bool


@dataclasses.dataclass(frozen=True, slots=True)
class _Packet:
    """What the index needs of a video packet; times in the stream's time base."""

    pts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    """False outside the container's edit list."""


def _audio_packets(
    file: BinaryIO, container: Any, streams: Sequence[Any], shown: list[_Packet], options: DecodeOptions
) -> Iterator[Any]:
    """The audio's packets from one pass over a container just opened; `shown` gets the video's."""
    counts, low, high = dict.fromkeys((s.index for s in streams), 0), None, None
    for packet in container.demux(streams):
        counts[packet.stream_index] += packet.size > 0
        if packet.stream.type == "audio":
            yield packet
        elif packet.size:
            shown.append(_Packet(packet.pts, packet.duration or 0, packet.is_keyframe, not packet.is_discard))
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                low, high = (stamp, stamp) if low is None else (min(low, stamp), max(high, stamp))
                _check_duration(float((high - low) * (packet.time_base or 0)), options)
    for stream in streams:
        _check_count(file, counts[stream.index], container, stream)


def _index_frames(packets: Sequence[_Packet]) -> _FrameIndex:
    times = [p.pts for p in packets if p.is_shown]
    keys = sorted(p.pts for p in packets if p.is_key and p.pts is not None)
    known = [t for t in times if t is not None]
    timed = bool(keys) and len(set(known)) == len(times)
    return _FrameIndex(sorted(known) if timed else list(range(len(times))), keys, timed)


def _check_count(file: BinaryIO, packets: int, container: Any, stream: Any) -> None:
    # MP4 and MOV say how many packets there should be; what other containers say is not to be relied on.
    enough = (1 - TAIL) * stream.frames - 1
    if "mov" not in container.format.name or packets >= enough:
        return
    with _again(file, ignore_editlist="1") as again:  # the count includes packets that an edit list hides
        packets = sum(p.size > 0 for p in again.demux(again.streams[stream.index]))
    if packets < enough:
        raise ClipError("decode", f"the {stream.type} stream is truncated: {packets} of {stream.frames} packets")


def _decode_video(
    file: BinaryIO, container: Any, stream: Any, packets: Sequence[_Packet], key: str, stated: float,
    options: DecodeOptions,
) -> tuple[np.ndarray | None, np.ndarray, _Span]:
    index = _index_frames(packets)
    if not index.times:
        return None, np.empty(0, np.int32), NOTHING
    indices = sample_frame_indices(len(index.times), segments=options.segments, seed=options.seed, key=key,
                                   frames_per_segment=options.frames_per_segment)
    unique, inverse = np.unique(indices, return_inverse=True)
    pick = _frames_at if index.timed else _frames_in_order
    images: np.ndarray | None = None
    matrix: tuple[float, ...] = UPRIGHT
    for n, frame in enumerate(pick(file, container, stream, index, unique.tolist())):
        if images is None:
            matrix = _display_matrix(frame)
        size = options.max_frame_side if images is None else images.shape[1:3]
        image = _upright(frame, stream, matrix, size)
        if images is None:
            images = np.empty((len(unique), *image.shape), np.uint8)
        images[n] = image
    assert images is not None
    span = _video_span(index, packets, stream, stated)
    return images if len(unique) == len(indices) else images[inverse], indices, span


def _video_span(index: _FrameIndex, packets: Sequence[_Packet], stream: Any, stated: float) -> _Span:
    frame_s = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    if not index.timed:
        return _Span(None, len(index.times) * frame_s)
    base, first, last = float(stream.time_base), index.times[0], index.times[-1]
    lasts = max(p.duration for p in packets if p.pts == last)  # a slide's may be long, or not be told
    length = (last - first) * base
    seconds = length + (lasts * base or frame_s)
    return _Span(first * base, min(seconds, max(stated, length)) if stated else seconds)


def _frames_at(
    file: BinaryIO, container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]
) -> Iterator[Any]:
    """The frames shown at the picked times: seek to the keyframe before each, decode no further than it.

    Where a seek is refused or leads behind the frame wanted, all frames are decoded from the start instead.
    """
    frames: Iterator[Any] = iter(())
    current: Any = None
    with contextlib.ExitStack() as opened:
        seeks = True
        for pick in picks:
            wanted = index.times[pick]
            start = index.keys[max(bisect.bisect_right(index.keys, wanted) - 1, 0)]
            if seeks and (current is None or current.pts < start):
                with contextlib.suppress(av.FFmpegError):
                    current = None
                    container.seek(start, stream=stream)
                    frames = iter(container.decode(stream))
                    current = _first_at(frames, wanted)
                if current is None or current.pts > wanted:
                    seeks, again = False, opened.enter_context(_again(file))
                    frames = iter(again.decode(again.streams[stream.index]))
                    current = _first_at(frames, wanted)
            elif current is not None and current.pts < wanted:
                current = _first_at(frames, wanted)
            if current is None:
                raise ClipError("decode", f"the video stream is damaged: no frame {pick} of {len(index.times)}")
            yield current


def _first_at(frames: Iterator[Any], wanted: int) -> Any:
    return next((f for f in frames if f.pts is not None and f.pts >= wanted), None)


def _frames_in_order(
    file: BinaryIO, container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]
) -> Iterator[Any]:
    """For streams without times: decode from the start and count. The last frame stands in for a missing tail."""
    left, last, count = list(picks), None, 0
    with _again(file) as again:
        for last in again.decode(again.streams[stream.index]):
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


def _upright(frame: Any, stream: Any, matrix: tuple[float, ...], size: Any) -> np.ndarray:
    """RGB as a player shows it: square pixels, turned and mirrored by the display matrix (a, b, c, d).

    `size`: (H, W) or the longest side.
    """
    a, b, c, d = matrix
    swaps = abs(b) + abs(c) > abs(a) + abs(d)
    if isinstance(size, tuple):
        height, width = size[::-1] if swaps else size
    else:
        aspect = float(stream.sample_aspect_ratio or 1)
        if swaps and b and c and abs(abs(b / c) - 1) > 0.01:
            aspect = abs(b / c)  # FFmpeg takes it from the matrix, but does not see that the sides change places
        width, height = frame.width * max(aspect, 1.0), frame.height / min(aspect, 1.0)
        scale = min(1.0, size / max(width, height))
        width, height = max(1, round(width * scale)), max(1, round(height * scale))
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    if swaps:
        image, a, d = image.swapaxes(0, 1), c, b
    return np.asarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])



def _display_matrix(frame: Any) -> tuple[float, ...]:
    """a, b, c, d: the pixel (x, y) is shown at (ax + cy, bx + dy), but for an offset."""
    # A frame asked for its side data is kept until the next garbage collection: ask a small copy.
    side = frame.reformat(width=2, height=2, format="rgb24").side_data.get(SideData.DISPLAYMATRIX)
    return UPRIGHT if side is None else tuple(np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].tolist())


_Kind = tuple[str, str, int]
"""Layout, sample format and rate of a frame of sound: they may change midway."""
_Mixes = dict[_Kind, ChannelPower]


def _decode_audio(
    file: BinaryIO, packets: Iterable[Any], options: DecodeOptions
) -> tuple[np.ndarray | None, _Span]:
    """The packets' sound as 16 kHz mono, and when it was. Frame by frame: the native samples are never held whole.

    Channels are mixed as FFmpeg does, by their mean for stereo. Where that cancels what they hold (one of them has the
    opposite sign), the loudest is taken alone.
    """
    mixes: _Mixes = {}
    wave, span, index = _mono(packets, options, mixes, {})
    best = {kind: (power, power.best_alone()) for kind, power in mixes.items()}
    if any(which is not None for _, which in best.values()):
        with _again(file) as again:
            wave, _, _ = _mono(again.demux(again.streams[index]), options, {}, best)
    return wave, span


def _mono(
    packets: Iterable[Any], options: DecodeOptions, mixes: _Mixes,
    best: Mapping[_Kind, tuple[ChannelPower, int | None]],
) -> tuple[np.ndarray | None, _Span, int]:
    """`mixes` gets what the mix does to the channels; `best`: the channel that is taken in place of the mix."""
    limit = int(options.max_duration_s * SAMPLE_RATE)
    resampler, count, bad, samples, start, index = _resampler(), 0, 0, 0, None, 0
    parts: list[np.ndarray] = []
    for packet in packets:
        count += packet.size > 0
        index = packet.stream_index
        try:
            frames = packet.decode()
        except av.error.EOFError:
            continue
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            bad += 1
            continue
        for frame in frames:
            start = frame.time if start is None else start
            kind = frame.layout.name, frame.format.name, frame.sample_rate
            power, which = best.get(kind, (None, None))
            if power is not None and which is not None:
                frame = power.alone(frame, which)
            elif frame.layout.nb_channels > 1 and not best:
                if kind not in mixes:
                    mixes[kind] = ChannelPower(frame.layout.name, _resampler(), SAMPLE_RATE)
                mixes[kind].add(frame)
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
    seconds = len(wave) / SAMPLE_RATE
    _check_duration(seconds, options)
    if bad > max(2, BAD_AUDIO * count) or (bad and not wave.size):
        raise ClipError("decode", f"the audio stream is damaged: {bad} of {count} packets cannot be decoded")
    return np.ascontiguousarray(wave, np.float32) if wave.size else None, _Span(start, seconds), index


def _resampler() -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder.
    return av.AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE, options={"rematrix_maxval": "1.0"})


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
