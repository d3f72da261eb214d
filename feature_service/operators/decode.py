"""Media file -> sampled RGB frames and a 16 kHz mono waveform, through PyAV (FFmpeg). Imports no
torch: it runs in the small processes of isolation.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from av.stream import Disposition

from feature_service.operators.clip import SAMPLE_RATE, ClipError, DecodedClip, DecodeOptions
from feature_service.operators.container import (
    NOTHING,
    TAIL,
    Packet,
    audio_packets,
    check_duration,
    joint_seconds,
    open_container,
)
from feature_service.operators.frames import decode_video, sample_frame_indices
from feature_service.operators.media import file_size, open_media, stated_size
from feature_service.operators.sound import decode_audio
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
) -> DecodedClip:
    """Decode the sampled frames and the whole audio of the first video and the first audio stream.

    `key` (the utterance's id) seeds the sampling. Only the sampled frames are converted and kept.
    Raises ClipError if the file cannot be read, is empty, no media, damaged, truncated, larger than
    `max_bytes` or longer than `max_duration_s`, needs too much memory, or has neither video nor
    audio (of sound alone, `pictures` False, the waveform is then None). StorageError if the object
    store it is in cannot be used.
    """
    try:
        with open_media(str(video), max_bytes=options.max_bytes) as file:
            if not file.read(1):
                raise ClipError("decode", "the file is empty")
            file.seek(0)
            return _decode(file, key, options)
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


def _decode(file: BinaryIO, key: str, options: DecodeOptions) -> DecodedClip:
    size, whole = file_size(file), stated_size(file)
    try:
        opened = open_container(file)
    except (av.FFmpegError, ValueError) as error:
        raise ClipError(
            "decode", f"is no audio or video file, or its header is damaged ({_first_line(error)})"
        ) from error

    with opened as container:
        # Cover art counts as a video stream in FFmpeg.
        videos = [
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        ]
        audios = container.streams.audio
        stated = (container.duration or 0) / av.time_base
        # By the header already: a film of three hours is not decoded to be refused.
        check_duration(stated, options)
        if whole is not None and size < (1 - TAIL) * whole:
            raise ClipError("decode", f"is truncated: {size} of {whole} bytes")

        try:
            shown: list[Packet] = []
            frames, indices, seen = None, np.empty(0, np.int32), NOTHING
            packets = audio_packets(file, container, [*videos[:1], *audios[:1]], shown, options)
            # The sound first: `packets` is lazy, and `shown` is whole only when it is used up.
            waveform, heard = decode_audio(file, packets, options)
            if videos and options.pictures:
                frames, indices, seen = decode_video(
                    file, container, videos[0], shown, key, stated, options
                )
        except av.FFmpegError as error:
            raise ClipError("decode", f"the stream is damaged: {_first_line(error)}") from error
        # Of sound alone, whether nothing is too little is up to who asked: there may be a text.
        if frames is None and waveform is None and options.pictures:
            raise ClipError("decode", "has neither a video nor an audio stream with content")

        seconds = joint_seconds(seen, heard, stated)
        # In company the stated duration may be another stream's (subtitles, a second sound).
        only_ours = (
            len(container.streams) == len(videos) + len(audios) == len(videos[:1]) + len(audios[:1])
        )
        # A tenth and half a second of room: FLAC and FLV never state quite what they hold. Sound
        # may end before the pictures that nobody looked at.
        looked = options.pictures or not videos
        if looked and only_ours and seconds < 0.9 * stated - 0.5:
            if whole is None or frames is None:
                raise ClipError(
                    "decode", f"is truncated: ends at {seconds:.1f} s of {stated:.1f} s"
                )
            seconds = stated  # no byte is missing: the last picture stays that long
        counts = len(videos), len(audios)

    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    return DecodedClip(frames, indices, waveform, seconds, *counts, digest)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
