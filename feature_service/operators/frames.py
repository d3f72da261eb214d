"""The sampled frames of a video stream: which ones, found by seeking, upright in RGB."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from av.sidedata.sidedata import Type as SideData

from feature_service.operators import by_decord
from feature_service.operators.clip import ClipError, DecodeOptions
from feature_service.operators.container import (
    NOTHING,
    TAIL,
    Packet,
    Span,
    frames_of,
    opened_again,
    passing_over_damage,
    video_streams,
)

PYAV = "pyav"
UPRIGHT = (1.0, 0.0, 0.0, 1.0)
"""A display matrix that changes nothing."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pictures:
    """`frames` uint8 [F, H, W, 3] RGB, upright, or None, their `indices` int32 [F] and `times`
    float64 [F], seconds on the container's clock (NaN where it does not tell them), when the stream
    is shown, and which library read them."""

    frames: np.ndarray | None
    indices: np.ndarray
    times: np.ndarray
    span: Span
    reader: str | None


NO_PICTURES = Pictures(None, np.empty(0, np.int32), np.empty(0), NOTHING, None)


def sample_frame_indices(
    num_frames: int, *, segments: int = 8, frames_per_segment: int = 8, seed: int = 0, key: str = ""
) -> np.ndarray:
    """Ascending int32 [segments * frames_per_segment]: random frames of each of the even segments
    (paper §3.3).

    Without repetition where a segment has enough frames, with it otherwise. Depends on (seed, key)
    alone, so neither order nor process nor restart changes the draw. Raises ValueError for
    `num_frames` below 1.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be positive, not {num_frames}")

    # Not hash(): a string's differs from process to process. The zero byte keeps seed 1 of "2x"
    # and seed 12 of "x" apart.
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(digest, np.uint32))

    edges = np.linspace(0, num_frames, segments + 1)
    picks = []
    for low, high in itertools.pairwise(edges):
        # A clip of fewer frames than segments has segments narrower than a frame: such a one takes
        # the frame it begins in, so no pool is empty.
        first = min(int(low), num_frames - 1)
        last = max(int(np.ceil(high)) if high - int(low) < 1 else int(high), first + 1)
        pool = np.arange(first, last)
        picks.append(rng.choice(pool, frames_per_segment, replace=len(pool) < frames_per_segment))
    return np.sort(np.concatenate(picks)).astype(np.int32)


def decode_video(
    file: BinaryIO,
    container: Any,
    stream: Any,
    packets: Sequence[Packet],
    key: str,
    stated: float,
    options: DecodeOptions,
    *,
    window: tuple[int, int] | None = None,
) -> Pictures:
    """The sampled frames of the stream, or of those shown at times in [low, high) of its `window`.

    `packets`: the stream's, all of them or those around the window. `stated`: seconds that the
    container says it lasts, or 0. Raises ClipError where frames that the packets promise cannot be
    decoded.
    """
    index = _index_frames(packets, window)
    if not index.times:
        return NO_PICTURES

    indices = sample_frame_indices(
        len(index.times),
        segments=options.segments,
        seed=options.seed,
        key=key,
        frames_per_segment=options.frames_per_segment,
    )
    # a clip of few frames repeats them: each is decoded and converted once
    unique, inverse = np.unique(indices, return_inverse=True)
    pick = _frames_at if index.timed else _frames_in_order
    frames = pick(file, container, stream, index, unique.tolist())
    first = next(frames)
    matrix = _display_matrix(first)
    height, width = _shown_size(first, stream, matrix, options.max_frame_side)

    as_stored = matrix == UPRIGHT and (first.height, first.width) == (height, width)
    # Of a stretch, PyAV: decord goes through all of a recording to count its frames.
    plain = as_stored and index.timed and window is None
    reader, images = by_decord.DECORD, None
    if plain and by_decord.reads(container, stream, packets, first):
        images = by_decord.read(file, len(index.times), unique.tolist(), height, width)
    if images is None:
        # The first frame sets the size for all: a stream may change its own midway, and they go
        # into one array.
        size = (width, height) if _swaps(matrix) else (height, width)
        reader, images = PYAV, np.empty((len(unique), *size, 3), np.uint8)
        for n, frame in enumerate(itertools.chain([first], frames)):
            images[n] = _upright(frame, matrix, height, width)

    span = _video_span(index, packets, stream, stated)
    images = images if len(unique) == len(indices) else images[inverse]
    shown = np.array(index.times)[indices] * float(stream.time_base)
    times = shown if index.timed else np.full(len(indices), np.nan)
    return Pictures(images, indices, times, span, reader)


@dataclasses.dataclass(frozen=True, slots=True)
class _FrameIndex:
    """Where a stream's frames lie, from its packets alone: nothing is decoded for it."""

    times: list[int]
    """Presentation times in display order; positions where the container does not tell them."""
    keys: list[int]
    """Times at which decoding can start."""
    timed: bool


def _index_frames(packets: Sequence[Packet], window: tuple[int, int] | None) -> _FrameIndex:
    times = [p.pts for p in packets if p.is_shown]
    if window:
        times = [t for t in times if t is not None and window[0] <= t < window[1]]
    # hidden keyframes, too: what is shown first may build on one that the edit list hides
    keys = sorted(p.pts for p in packets if p.is_key and p.pts is not None)
    known = [t for t in times if t is not None]

    # A frame without a time, or two with the same one, cannot be sought by it: then frames are
    # counted.
    timed = bool(keys) and len(set(known)) == len(times)
    return _FrameIndex(sorted(known) if timed else list(range(len(times))), keys, timed)


def _video_span(index: _FrameIndex, packets: Sequence[Packet], stream: Any, stated: float) -> Span:
    frame_s = 1 / float(stream.average_rate) if stream.average_rate else 0.0
    if not index.timed:
        return Span(None, len(index.times) * frame_s)

    base, first, last = float(stream.time_base), index.times[0], index.times[-1]
    # a slide's may be long, or not be told
    lasts = max(p.duration for p in packets if p.pts == last)
    length = (last - first) * base
    seconds = length + (lasts * base or frame_s)
    return Span(first * base, min(seconds, max(stated, length)) if stated else seconds)


def _frames_at(
    file: BinaryIO, container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]
) -> Iterator[Any]:
    """The frames shown at the picked times: seek to the keyframe before each, decode no further
    than it.

    Where a seek is refused or leads behind the frame wanted, all frames are decoded from the start
    instead.
    """
    frames: Iterator[Any] = iter(())
    current: Any = None
    with contextlib.ExitStack() as opened:
        seeks = True
        for pick in picks:
            wanted = index.times[pick]
            # frames may be shown before the first keyframe: without max, -1 would be the last one
            start = index.keys[max(bisect.bisect_right(index.keys, wanted) - 1, 0)]

            if seeks and (current is None or current.pts < start):
                with passing_over_damage():
                    current = None
                    container.seek(start, stream=stream)
                    frames = iter(container.decode(stream))
                    current = _first_at(frames, wanted)
                # FLV refuses to seek without an index, or to a time before its first keyframe;
                # MPEG transport streams land behind the frame.
                if current is None or current.pts > wanted:
                    seeks, again = False, opened.enter_context(opened_again(file))
                    frames = iter(again.decode(again.streams[stream.index]))
                    current = _first_at(frames, wanted)
            elif current is not None and current.pts < wanted:
                current = _first_at(frames, wanted)

            if current is None:
                raise ClipError(
                    "decode", f"the video stream is damaged: no frame {pick} of {len(index.times)}"
                )
            yield current


def _first_at(frames: Iterator[Any], wanted: int) -> Any:
    return next((f for f in frames if f.pts is not None and f.pts >= wanted), None)


def _frames_in_order(
    file: BinaryIO, container: Any, stream: Any, index: _FrameIndex, picks: Sequence[int]
) -> Iterator[Any]:
    """For streams without times: decode from the start and count. The last frame stands in for a
    missing tail."""
    left, last, count = list(picks), None, 0
    with opened_again(file) as again:
        for last in again.decode(again.streams[stream.index]):
            while left and left[0] == count:
                yield last
                left.pop(0)
            count += 1
            if not left:
                return

    # two: B-frames of packed AVI streams
    if last is None or count < (1 - TAIL) * len(index.times) - 2:
        raise ClipError(
            "decode", f"the video stream is damaged: {count} of {len(index.times)} frames"
        )
    for _ in left:
        yield last


def _upright(frame: Any, matrix: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """RGB as a player shows it, of that size before it is turned and mirrored by the display matrix
    (a, b, c, d)."""
    a, _, c, d = matrix
    image = frame.to_ndarray(format="rgb24", width=width, height=height)
    if _swaps(matrix):
        image, a, d = image.swapaxes(0, 1), c, matrix[1]
    return np.asarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _shown_size(
    frame: Any, stream: Any, matrix: tuple[float, ...], longest: int
) -> tuple[int, int]:
    """Height and width with square pixels, the longer reduced to `longest` at most, before the
    frame is turned."""
    _, b, c, _ = matrix
    aspect = float(stream.sample_aspect_ratio or 1)
    if _swaps(matrix) and b and c and abs(abs(b / c) - 1) > 0.01:
        # FFmpeg takes it from the matrix, but does not see that the sides change places
        aspect = abs(b / c)
    # Where pixels are not square, the coarser side is stretched: reducing the other would lose
    # detail.
    width, height = frame.width * max(aspect, 1.0), frame.height / min(aspect, 1.0)
    scale = min(1.0, longest / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _swaps(matrix: tuple[float, ...]) -> bool:
    """Whether height and width change places. A matrix may also lean or stretch: it is taken for
    the nearest of the eight orientations."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def _display_matrix(frame: Any) -> tuple[float, ...]:
    """a, b, c, d: the pixel (x, y) is shown at (ax + cy, bx + dy), but for an offset."""
    # A frame asked for its side data is kept until the next garbage collection: ask a small copy.
    side = frame.reformat(width=2, height=2, format="rgb24").side_data.get(SideData.DISPLAYMATRIX)

    # FFmpeg's `rotation` knows no mirrors and flips. The matrix is 3x3 (a b u, c d v, x y w) in
    # fixed point: signs and ratios are all that is read of it.
    return (
        UPRIGHT
        if side is None
        else tuple(np.frombuffer(bytes(side), np.int32)[[0, 1, 3, 4]].tolist())
    )


class Upright:
    """A stream's frames as a player shows them, uint8 [H, W, 3] RGB with square pixels, the longer
    side of at most `longest`. The first frame sets the size for all."""

    def __init__(self, stream: Any, longest: int) -> None:
        self._stream, self._longest = stream, longest
        self._how: tuple[tuple[float, ...], int, int] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        if self._how is None:
            matrix = _display_matrix(frame)
            self._how = (matrix, *_shown_size(frame, self._stream, matrix, self._longest))
        return _upright(frame, *self._how)


def picture_size(container: Any, longest: int) -> tuple[int, int] | None:
    """Width and height of a container's picture as a player shows it, the longer side reduced to
    `longest`; None if it has none that can be decoded."""
    for stream in video_streams(container)[:1]:
        upright = Upright(stream, longest)
        for _, frame in frames_of(container, [stream]):
            height, width = upright(frame).shape[:2]
            return width, height
    return None
