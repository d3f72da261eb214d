"""Media file -> sampled RGB frames and a mono waveform, through PyAV (FFmpeg) and decord. Imports
no torch: it runs in the small processes of isolation.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, BinaryIO

import av

from feature_service.operators.clip import SAMPLE_RATE, ClipError, DecodedClip, DecodeOptions
from feature_service.operators.container import (
    TAIL,
    Packet,
    audio_packets,
    check_duration,
    check_memory,
    joint_seconds,
    open_container,
    video_streams,
)
from feature_service.operators.frames import (
    NO_PICTURES,
    Pictures,
    decode_video,
    sample_frame_indices,
)
from feature_service.operators.media import file_size, open_media, sha256, stated_size
from feature_service.operators.sound import SILENCE, Sound, decode_audio, from_the_start
from feature_service.operators.stretch import ENDS_WITHIN, Clock, pictures_of, sound_of
from lfmim.storage import StorageError

__all__ = [
    "SAMPLE_RATE",
    "ClipError",
    "DecodeOptions",
    "DecodedClip",
    "decode_clip",
    "sample_frame_indices",
]


def decode_clip(
    video: str | Path,
    *,
    key: str,
    options: DecodeOptions = DecodeOptions(),  # noqa: B008 (frozen)
    stretch: tuple[float, float] | None = None,
) -> DecodedClip:
    """Decode the sampled frames and the whole audio of the first video and the first audio stream,
    or of a `stretch` of them from one second to another: the sound's samples [round(start * rate),
    round(end * rate)) and the frames shown in [start, end).

    `key` (the utterance's id) seeds the sampling; that of a stretch is seeded by the file's bytes
    and the stretch, whatever its row is called and wherever the file lies. Only the sampled frames
    are converted and kept.
    Raises ClipError if the file cannot be read, is empty, no media, damaged, truncated, larger than
    `max_bytes` or longer than `max_duration_s`, needs too much memory, or has neither video nor
    audio (of sound alone, `pictures` False, the waveform is then None), or if it ends before the
    stretch does; StorageError if the object store it is in cannot be used.
    """
    try:
        with open_media(str(video), max_bytes=options.max_bytes) as file:
            if not file.read(1):
                raise ClipError("decode", "the file is empty")
            file.seek(0)
            return _decode(file, key, options, stretch)
    # isolation.py limits the memory of this process, so that an allocation fails here and not the
    # whole machine
    except MemoryError as error:
        raise ClipError("decode", "decoding it needs more memory than a clip may take") from error
    # What every clip there would meet is the job's end, and no fault of this one.
    except StorageError as error:
        if error.general:
            raise
        raise ClipError("decode", f"cannot be read: {error.reason}") from error
    # fsspec's file systems raise FileNotFoundError(path): no errno, and so no strerror
    except OSError as error:
        raise ClipError(
            "decode", f"cannot be read: {error.strerror or _first_line(error)}"
        ) from error
    except ValueError as error:
        raise ClipError("decode", f"cannot be used: {_first_line(error)}") from error


def _decode(
    file: BinaryIO, key: str, options: DecodeOptions, stretch: tuple[float, float] | None
) -> DecodedClip:
    size, whole = file_size(file), stated_size(file)
    if stretch:
        # Before it is opened: a container expects the file where it left off.
        key = f"{sha256(file, keep=True)} {float(stretch[0])!r} {float(stretch[1])!r}"
    try:
        opened = open_container(file)
    except (av.FFmpegError, ValueError) as error:
        check_memory(error)
        raise ClipError(
            "decode", f"is no audio or video file, or its header is damaged ({_first_line(error)})"
        ) from error

    with opened as container:
        videos = video_streams(container)
        audios = container.streams.audio
        stated = (container.duration or 0) / av.time_base
        # By the header already: a film of three hours is not decoded to be refused.
        check_duration(stretch[1] - stretch[0] if stretch else stated, options)
        if whole is not None and size < (1 - TAIL) * whole:
            raise ClipError("decode", f"is truncated: {size} of {whole} bytes")

        streams = _Streams(file, container, videos, list(audios), stated, whole)
        try:
            pictures, sound, seconds = (
                _stretch_of(streams, key, options, stretch)
                if stretch
                else _whole(streams, key, options)
            )
        except av.FFmpegError as error:
            check_memory(error)
            raise ClipError("decode", f"the stream is damaged: {_first_line(error)}") from error
        counts = len(videos), len(audios)

    return DecodedClip(
        pictures.frames,
        pictures.indices,
        pictures.times,
        sound.wave,
        sound.rate,
        pictures.reader,
        seconds,
        *counts,
        sha256(file, keep=stretch is not None),
    )


@dataclasses.dataclass(frozen=True, slots=True)
class _Streams:
    """An open file and what it has; `stated`: seconds by its header, or 0, `size`: bytes by its
    header, or None."""

    file: BinaryIO
    container: Any
    videos: list[Any]
    audios: list[Any]
    stated: float
    size: int | None


def _whole(s: _Streams, key: str, options: DecodeOptions) -> tuple[Pictures, Sound, float]:
    shown: list[Packet] = []
    first = [*s.videos[:1], *s.audios[:1]]
    packets = audio_packets(s.file, s.container, first, shown, options)
    again = lambda: from_the_start(s.file, s.audios[0].index)  # noqa: E731
    # The sound first: `packets` is lazy, and `shown` is whole only when it is used up.
    sound, pictures = decode_audio(packets, again, options), NO_PICTURES
    if s.videos and options.pictures:
        pictures = decode_video(s.file, s.container, s.videos[0], shown, key, s.stated, options)
    # Of sound alone, whether nothing is too little is up to who asked: there may be a text.
    if pictures.frames is None and sound.wave is None and options.pictures:
        raise ClipError("decode", "has neither a video nor an audio stream with content")

    seconds = joint_seconds(pictures.span, sound.span, s.stated)
    # In company the stated duration may be another stream's (subtitles, a second sound).
    only_ours = len(s.container.streams) == len(s.videos) + len(s.audios) == len(first)
    # A tenth and half a second of room: FLAC and FLV never state quite what they hold. Sound
    # may end before the pictures that nobody looked at.
    looked = options.pictures or not s.videos
    if looked and only_ours and seconds < 0.9 * s.stated - 0.5:
        if s.size is None or pictures.frames is None:
            raise ClipError("decode", f"is truncated: ends at {seconds:.1f} s of {s.stated:.1f} s")
        seconds = s.stated  # no byte is missing: the last picture stays that long
    starts = [x.start for x in (pictures.span, sound.span) if x.start is not None]
    return _counted_from(min(starts, default=0.0), pictures), sound, seconds


def _stretch_of(
    s: _Streams, key: str, options: DecodeOptions, stretch: tuple[float, float]
) -> tuple[Pictures, Sound, float]:
    start, end = stretch
    if s.stated and start >= s.stated + ENDS_WITHIN:
        raise _beyond(end, s.stated)
    video, audio = (streams[0] if streams else None for streams in (s.videos, s.audios))
    clock = Clock(s.file, video, audio)

    sound, pictures = SILENCE, NO_PICTURES
    ends: list[float | None] = []
    if audio is not None:
        heard = sound_of(s.file, s.container, audio, clock, stretch, options)
        sound = heard.sound
        ends.append(heard.end)
    if video is not None and options.pictures:
        seen = pictures_of(s.file, s.container, video, clock, stretch)
        window = seen.low, seen.high
        pictures = decode_video(
            s.file, s.container, video, seen.packets, key, 0.0, options, window=window
        )
        ends.append(seen.end)

    # One stream may end before the other.
    known = [e for e in ends if e is not None]
    last = max(known, default=0.0) if len(known) == len(ends) else end
    if end > last + ENDS_WITHIN:
        raise _beyond(end, last)
    if pictures.frames is None and sound.wave is None and options.pictures:
        raise ClipError("decode", "its stretch has neither a picture nor a sound")
    return _counted_from(float(clock.zero), pictures), sound, min(end, last) - start


def _counted_from(zero_s: float, pictures: Pictures) -> Pictures:
    return dataclasses.replace(pictures, times=pictures.times - zero_s)


def _beyond(end: float, last: float) -> ClipError:
    return ClipError("decode", f"its stretch ends at {end:.3f} s, the recording at {last:.3f} s")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
