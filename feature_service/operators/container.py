"""What a container says of its streams: their packets, how many there should be, and its clock."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import av
from av.stream import Disposition

from feature_service.operators.clip import ClipError, DecodeOptions

FORMATS = (
    "3gp,aac,aiff,amr,asf,ast,au,avi,caf,dv,flac,flv,gxf,ivf,m4v,matroska,mov,mp3,mp4,"
    "mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm,w64,wav,webm,wv"
)
"""FFmpeg demuxers that may open a file: no pictures, no text, and none that follows references to
other files."""
TAIL = 0.02
"""Share of a stream that may be missing at its end before the clip counts as truncated."""


def open_container(file: BinaryIO, **options: str) -> Any:
    """The file from its first packet."""
    # Always a new open: a seek to 0 in an open container leads to a keyframe of the video, behind
    # sound that begins earlier and packets that an edit list hides; FLV refuses it.
    file.seek(0)
    return av.open(file, options={"format_whitelist": FORMATS, **options})


def video_streams(container: Any) -> list[Any]:
    """Those that move: cover art counts as a video stream in FFmpeg."""
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


def check_memory(error: Exception) -> None:
    """Raise MemoryError if an error of FFmpeg says that this process may have no more memory or
    threads (EAGAIN), which says nothing of the file."""
    if isinstance(error, av.FFmpegError) and error.errno in (errno.ENOMEM, errno.EAGAIN):
        raise MemoryError from error


@contextlib.contextmanager
def passing_over_damage() -> Iterator[None]:
    """Suppress what FFmpeg says of a damaged file. Raises MemoryError."""
    try:
        yield
    except av.FFmpegError as error:
        check_memory(error)


def frames_of(container: Any, streams: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each frame of the streams, behind its stream; a damaged packet is passed over."""
    for packet in container.demux(streams):
        with passing_over_damage():
            for frame in packet.decode():
                yield packet.stream, frame


@contextlib.contextmanager
def opened_again(file: BinaryIO, **options: str) -> Iterator[Any]:
    """The file opened beside a container that goes on reading it afterwards."""
    # Both read through one file object, and the first expects it where it left off.
    at = file.tell()
    with open_container(file, **options) as container:
        yield container
    file.seek(at)


def check_duration(seconds: float, options: DecodeOptions) -> None:
    """Raise ClipError if the clip is longer than `max_duration_s`."""
    if seconds > options.max_duration_s:
        raise ClipError(
            "decode",
            f"is {seconds:.0f} s long, more than max_duration_s {options.max_duration_s:g}; "
            "cut it into utterances",
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Seconds of a stream, and when it starts on the container's clock (None: it does not say)."""

    start: float | None
    seconds: float


NOTHING = Span(None, 0.0)


def joint_seconds(a: Span, b: Span, stated: float) -> float:
    """From the first start to the last end, on the one clock that both streams have."""
    longest = max(a.seconds, b.seconds)
    if a.start is None or b.start is None:
        return longest

    joint = max(a.start + a.seconds, b.start + b.seconds) - min(a.start, b.start)
    # a cut leaves frames behind the stated end
    return max(longest, min(joint, stated) if stated else joint)


@dataclasses.dataclass(frozen=True, slots=True)
class Packet:
    """What the index of frames needs of a video packet; times in the stream's time base."""

    pts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    """False outside the container's edit list."""
    is_fresh: bool = True
    """False of a keyframe that shows a whole picture only some frames later (H.264)."""

    @classmethod
    def of(cls, packet: Any) -> Packet:
        fresh = not packet.is_keyframe or _is_fresh(packet)
        return cls(
            packet.pts, packet.duration or 0, packet.is_keyframe, not packet.is_discard, fresh
        )


def _is_fresh(packet: Any) -> bool:
    codec = packet.stream.codec_context
    # none where the codec is not known: decoding says so
    if codec is None or codec.name != "h264":
        return True
    # MP4 and Matroska: units after their lengths; the first slice's type is 5 in a picture that
    # nothing before is needed for, 1 in others.
    data, at = memoryview(packet), 0
    while at + 5 <= len(data):
        kind = data[at + 4] & 31
        if kind in (1, 5):
            return kind == 5
        at += 4 + int.from_bytes(data[at : at + 4])
    return False


def audio_packets(
    file: BinaryIO,
    container: Any,
    streams: Sequence[Any],
    shown: list[Packet],
    options: DecodeOptions,
) -> Iterator[Any]:
    """The audio's packets from one pass over a container just opened; `shown` gets the video's.

    Raises ClipError if the video is longer than `max_duration_s`, or MP4 or MOV lack packets.
    """
    counts, low, high = dict.fromkeys((s.index for s in streams), 0), None, None
    for packet in container.demux(streams):
        # PyAV ends each stream with an empty packet, at which the decoder gives what it holds
        # back: the sound's is passed on, and none is counted.
        counts[packet.stream_index] += packet.size > 0
        if packet.stream.type == "audio":
            yield packet
        elif packet.size:
            shown.append(Packet.of(packet))
            # A recording that was never closed states no duration: its packets' times are then
            # all that can stop one that is too long.
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                low, high = (stamp, stamp) if low is None else (min(low, stamp), max(high, stamp))
                check_duration(float((high - low) * (packet.time_base or 0)), options)

    for stream in streams:
        _check_count(file, counts[stream.index], container, stream)


def _check_count(file: BinaryIO, packets: int, container: Any, stream: Any) -> None:
    # MP4 and MOV say how many packets there should be; what other containers say is not to be
    # relied on.
    enough = (1 - TAIL) * stream.frames - 1
    if "mov" not in container.format.name or packets >= enough:
        return

    # the count includes packets that an edit list hides
    with opened_again(file, ignore_editlist="1") as again:
        packets = sum(p.size > 0 for p in again.demux(again.streams[stream.index]))
    if packets < enough:
        raise ClipError(
            "decode", f"the {stream.type} stream is truncated: {packets} of {stream.frames} packets"
        )
