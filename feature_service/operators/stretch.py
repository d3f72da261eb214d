"""A stretch of a recording, decoded without what lies before it.

Times are seconds after the first of its sound and pictures, as players and annotation tools count
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

from feature_service.operators.clip import ClipError, DecodeOptions
from feature_service.operators.container import Packet, opened_again, passing_over_damage
from feature_service.operators.sound import (
    SILENCE,
    Cut,
    Packets,
    Sound,
    decode_audio,
    from_the_start,
)

ENDS_WITHIN = 0.1
"""Seconds that a stretch may end behind its recording: players and annotation tools round."""
PREROLL = 1
"""Seconds of sound decoded before a stretch: what a packet holds builds on those before it."""
SEEKABLE = ("mov", "matroska", "wav", "ogg", "flac")
CODECS = ("aac", "opus", "flac", "mp3float", "pcm_")
"""Demuxers and codecs (by how they begin) of which a second of run-up gives the samples of a decode
from the start, but for the noise that AAC leaves to the decoder to invent, and Opus' last bits.
Elsewhere a seek guesses (a file of MP3, raw AAC), or nobody tried: the sound is decoded from the
start."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Head:
    """The first frames of a sound stream."""

    start: Fraction
    """Seconds on the container's clock."""
    rate: int
    sizes: list[int]


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """What a stream holds of a stretch; `end`: seconds at which it ends if that is before the
    stretch does, else None."""

    packets: Sequence[Packet] = ()
    """The video's, from the keyframe before the stretch."""
    low: int = 0
    high: int = 0
    """The stretch in the video's time base."""
    sound: Sound = SILENCE
    end: float | None = None


class Clock:
    """The recording's zero: when the first of its streams begins."""

    def __init__(self, file: BinaryIO, video: Any, audio: Any) -> None:
        self.head = _head(file, audio.index) if audio else None
        starts = [self.head.start] if self.head else []
        if video is not None and video.start_time is not None:
            starts.append(video.start_time * video.time_base)
        self.zero: Fraction = min(starts, default=Fraction(0))


def sound_of(
    file: BinaryIO,
    container: Any,
    stream: Any,
    clock: Clock,
    stretch: tuple[float, float],
    options: DecodeOptions,
) -> Part:
    """The samples [round(start * rate), round(end * rate)) of the sound, counted from the clock's
    zero: those that a decode of the whole recording gives."""
    head = clock.head
    if head is None:
        return Part(end=0.0)

    late = float(head.start - clock.zero)
    low, high = (max(0, round((t - late) * head.rate)) for t in stretch)
    first, seconds = 0, max(stretch[0] - late - PREROLL, 0.0)
    packets: Packets = lambda: from_the_start(file, stream.index)  # noqa: E731
    if (
        seconds > PREROLL
        and container.format.name.split(",")[0] in SEEKABLE
        and stream.codec_context.name.startswith(CODECS)
    ):
        found = _position(file, stream, head, seconds)
        if found is not None and found <= low:
            first = found
            packets = lambda: _from(file, stream, head, seconds)  # noqa: E731

    with packets() as given:
        sound = decode_audio(given, packets, options, Cut(first, low, high))
    end = None if sound.end >= high else sound.end / head.rate + late
    return Part(sound=sound, end=end)


def _head(file: BinaryIO, index: int) -> _Head | None:
    with from_the_start(file, index) as packets:
        frames = list(itertools.islice(_frames(packets), 4))
    if not frames:
        return None
    start = Fraction(0) if frames[0].pts is None else frames[0].pts * frames[0].time_base
    return _Head(start, frames[0].sample_rate, [f.samples for f in frames])


@contextlib.contextmanager
def _from(file: BinaryIO, stream: Any, head: _Head, seconds: float) -> Iterator[Iterable[Any]]:
    with opened_again(file) as again:
        there = again.streams[stream.index]
        again.seek(int((head.start + Fraction(seconds)) / there.time_base), stream=there)
        yield again.demux(there)


def _position(file: BinaryIO, stream: Any, head: _Head, seconds: float) -> int | None:
    """Which sample of the stream decoding begins with after that seek; None where times do not
    tell."""
    frames: list[Any] = []
    with passing_over_damage(), _from(file, stream, head, seconds) as packets:
        frames = list(itertools.islice(_frames(packets), 4))
    # Of the first frames after a seek samples may be dropped: a later one is placed by its time.
    if len(frames) < 4 or frames[2].pts is None:
        return None
    *before, placed, after = frames
    at = (placed.pts * placed.time_base - head.start) * head.rate
    tick = placed.time_base * head.rate

    position: int
    if tick <= 1:
        position = round(at)
    else:
        # Matroska counts milliseconds, which tell a frame apart but not a sample: frames of one
        # length lie on a grid.
        size = after.samples
        if {*head.sizes[1:], before[1].samples, placed.samples} != {size} or size < 4 * tick:
            return None
        position = head.sizes[0] + round((at - head.sizes[0]) / size) * size
        if abs(position - at) > 2 * tick:
            return None
    return position - sum(int(f.samples) for f in before)


def _frames(packets: Iterable[Any]) -> Iterator[Any]:
    for packet in packets:
        with passing_over_damage():
            yield from packet.decode()


def pictures_of(
    file: BinaryIO, container: Any, stream: Any, clock: Clock, stretch: tuple[float, float]
) -> Part:
    """The video's packets from the keyframe before the stretch to its end. Raises ClipError if the
    container does not say when frames are shown."""
    low, high = (
        -int(-(clock.zero + Fraction(t)) // stream.time_base) for t in stretch
    )  # rounded up: a frame is in the stretch if it is shown at `start` or later, before `end`
    packets: list[Packet] = []
    more = False
    with passing_over_damage():
        container.seek(low, stream=stream)
        packets, more = _until(container.demux(stream), low, high)
    # what refuses to seek, or lands behind the stretch's start
    if not packets or not any(p.is_key and p.pts is not None and p.pts <= low for p in packets):
        with from_the_start(file, stream.index) as given:
            packets, more = _until(given, low, high)

    if any(p.pts is None for p in packets):
        raise ClipError(
            "decode", "its pictures have no times, by which a stretch is found; convert it to MP4"
        )
    last = max(packets, key=lambda p: p.pts or 0, default=None)
    end = None
    if not more:
        ticks = 0 if last is None or last.pts is None else last.pts + last.duration
        end = float(ticks * stream.time_base - clock.zero)
    return Part(packets, low, high, end=end)


def _until(packets: Iterable[Any], low: int, high: int) -> tuple[list[Packet], bool]:
    """The packets from the last keyframe before `low` on, and whether there are more at `high`."""
    kept: list[Packet] = []
    for packet in packets:
        if not packet.size:
            continue
        if packet.is_keyframe and packet.pts is not None and packet.pts <= low:
            kept.clear()
        kept.append(Packet.of(packet))
        # no frame is shown before it is decoded
        if packet.dts is not None and packet.dts >= high:
            return kept, True
    return kept, False
