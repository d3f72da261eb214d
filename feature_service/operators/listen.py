"""The sound of a recording of any length, from its first to its last sample, and what its container
says of the rest. Imports no torch: it runs in the small processes of isolation.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any, BinaryIO

import av
import numpy as np

from feature_service.operators.clip import SAMPLE_RATE, ClipError
from feature_service.operators.container import check_memory, open_container, video_streams
from feature_service.operators.frames import picture_size
from feature_service.operators.sound import Decoding

PIECE = SAMPLE_RATE
"""Samples of a piece at least: a second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Outline:
    """Of a recording: `start_s`, when its sound begins, after the first of its sound and pictures;
    `stated_s`, how long it is by its header, or 0; `pictures`, whether it has some; their
    `picture_size`, as `frames.picture_size` has it, None also where nobody asked."""

    start_s: float
    stated_s: float
    pictures: bool
    picture_size: tuple[int, int] | None


def listen(
    file: BinaryIO, *, max_s: float = math.inf, longest: int = 0
) -> Generator[np.ndarray | Outline, None, None]:
    """The first sound of an open recording in pieces, float32 [S], 16 kHz mono, none if there is no
    sound; then the Outline.

    `longest`: side of the picture, for its size; 0: no picture is decoded, else the first. Raises
    ClipError for what is no media, damaged, or longer than `max_s` seconds.
    """
    try:
        yield (yield from _listen(file, max_s, longest))
    except MemoryError as error:
        raise ClipError("decode", "needs more memory than a recording may take") from error


def _listen(file: BinaryIO, max_s: float, longest: int) -> Generator[np.ndarray, None, Outline]:
    try:
        opened = open_container(file)
    except (av.FFmpegError, ValueError) as error:
        check_memory(error)
        raise ClipError("decode", f"is no audio or video file, or damaged ({error})") from error
    try:
        with opened as container:
            start_s = yield from _sound_of(container, max_s)
            stated, pictures = (container.duration or 0) / av.time_base, video_streams(container)
        size = None
        if longest and pictures:
            with open_container(file) as again:
                size = picture_size(again, longest)
    except av.FFmpegError as error:
        check_memory(error)
        raise ClipError("decode", f"the stream is damaged ({error})") from error
    return Outline(start_s, stated, bool(pictures), size)


def _sound_of(container: Any, max_s: float) -> Generator[np.ndarray, None, float]:
    """Pieces; returns when the sound begins, as an Outline has it."""
    _check_length((container.duration or 0) / av.time_base, max_s)
    if not container.streams.audio:
        return 0.0
    sound, samples = _Sound(container, container.streams.audio[0]), 0
    for piece in _gathered(sound):
        samples += len(piece)
        # A header may lie.
        _check_length(samples / SAMPLE_RATE, max_s)
        yield piece
    videos = [s for s in video_streams(container) if s.start_time is not None]
    first = sound.first_s or 0.0
    return first - min([first, *(float(s.start_time * s.time_base) for s in videos[:1])])


def _check_length(seconds: float, max_s: float) -> None:
    if seconds > max_s:
        raise ClipError("decode", f"is longer than {max_s:g} s; cut it into several")


def _gathered(pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """As few, of at least PIECE samples each."""
    held: list[np.ndarray] = []
    for piece in pieces:
        held.append(piece)
        if sum(map(len, held)) >= PIECE:
            yield np.concatenate(held)
            held.clear()
    if held:
        yield np.concatenate(held)


class _Sound:
    """A stream's pieces as 16 kHz mono. `first_s`: when it begins on the container's clock, once
    the first piece is there."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.first_s: float | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        decoding = Decoding()
        resampler: Any = None
        kind: tuple[str, str, int] | None = None
        for frames in decoding.frames(self.container.demux(self.stream)):
            for frame in frames:
                if self.first_s is None:
                    self.first_s = frame.time
                # rate or channels may change midway
                its = frame.layout.name, frame.format.name, frame.sample_rate
                if kind != its:
                    kind = its
                    yield from _mixed(resampler.resample(None) if resampler else [])
                    resampler = _resampler(frame.layout.nb_channels)
                yield from _mixed(resampler.resample(frame))
        # the filter holds the last samples back until it is told that no more come
        if resampler:
            yield from _mixed(resampler.resample(None))
        decoding.check()


def _resampler(channels: int) -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder (5.1: 3.4x).
    return av.AudioResampler(
        format="fltp",
        layout="mono" if channels == 1 else "stereo",
        rate=SAMPLE_RATE,
        options={"rematrix_maxval": "1.0"},
    )


def _mixed(frames: Iterable[Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        channels = frame.to_ndarray()
        mix = channels.mean(axis=0)
        # Channels of opposite sign cancel; what one of them holds is heard by itself.
        power = channels.var(axis=1)
        if len(channels) > 1 and mix.var() < power.sum() / len(channels) ** 2 / 2:
            mix = channels[power.argmax()]
        yield np.ascontiguousarray(mix, np.float32)
