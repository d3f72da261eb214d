"""What browsers cannot show of a recording, as an MP4 that they can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from feature_service.operators.container import open_container, video_streams
from feature_service.operators.frames import Upright
from feature_service.recordings.blur import FaceBlur
from lfmim.progress import watch
from lfmim.schema import InputError
from lfmim.storage import new_file

PLAYED = {
    ".mp4": {"h264", "av1", "vp9", "aac", "mp3", "mp3float", "opus", "flac"},
    ".webm": {"vp8", "vp9", "av1", "opus", "vorbis"},
    ".ogg": {"opus", "vorbis", "flac"},
    ".wav": {"pcm_s16le", "pcm_u8", "pcm_s24le", "pcm_f32le"},
    ".mp3": {"mp3", "mp3float"},
    ".flac": {"flac"},
}
"""Suffix -> the codecs that Chromium, Firefox and Safari play in such a file."""
SAME_AS = {".m4v": ".mp4", ".m4a": ".mp4", ".mov": ".mp4", ".oga": ".ogg", ".opus": ".ogg"}
PIXELS = ("yuv420p", "yuvj420p", None)
"""Formats of a picture that decoders of browsers know; None: of sound."""
MS = Fraction(1, 1000)
STREAMED = {"movflags": "+faststart"}
"""A server's player begins before it has all."""
STARTS_BY_S = 0.1
"""Seconds after which a recording's first stream may begin on its container's clock: a player
counts from there, and the results from the first stream."""
LONGEST, CRF = 640, "26"
"""Pixels of the preview's longer side; x264's quality."""
FPS = 30
"""Most pictures a second."""
RATE, GAP_S = 48_000, 0.1
"""Hz of the sound; seconds from which a gap in it is kept."""


def picture_size(media: Path, longest: int) -> tuple[int, int] | None:
    """Width and height of the picture as a player shows it, the longer side reduced to `longest`;
    None without one. Raises InputError."""
    with _opened(media) as container:
        stream = _pictures(container)
        if stream is not None:
            upright = Upright(stream, longest)
            for _, frame in _decoded(container, [stream]):
                height, width = upright(frame).shape[:2]
                return width, height
    return None


def playable(media: Path) -> bool:
    """Whether browsers play the file with its picture, by container and codec, and count its time
    as results do. Raises InputError."""
    suffix = media.suffix.lower()
    codecs = PLAYED.get(SAME_AS.get(suffix, suffix), set())
    with _opened(media) as container:
        streams = [s for s in (_pictures(container), *container.streams.audio[:1]) if s]
        return (container.start_time or 0) <= STARTS_BY_S * av.time_base and all(
            s.codec_context is not None
            and s.codec_context.name in codecs
            and getattr(s.codec_context, "pix_fmt", None) in PIXELS
            for s in streams
        )


def preview(media: Path, target: Path, *, blur_faces: bool = False) -> Path | None:
    """Write `target`, the recording as H.264 of at most LONGEST pixels and AAC in MP4, if browsers
    do not play `media` itself or `blur_faces`; returns it, or None if there is no need. One that is
    there of this very file is left as it is.

    Its seconds are those of the results. Memory does not grow with the length. Raises InputError
    and WriteError.
    """
    if playable(media) and not blur_faces:
        return None
    found = media.stat()
    of = f"{found.st_size} bytes of {found.st_mtime_ns}{', faces hidden' if blur_faces else ''}"
    if _made(target, of):
        return target
    size = picture_size(media, LONGEST)
    with new_file(target) as temporary, _opened(media) as container:
        try:
            with av.open(str(temporary), "w", format="mp4", options=STREAMED) as out:
                out.metadata["comment"] = of
                seconds = round((container.duration or 0) / av.time_base)
                with watch(f"{media.name}: preview", seconds, "s") as show:
                    _convert(container, out, size, FaceBlur() if blur_faces else None, show)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # the disk, which new_file names
                raise
            raise InputError(f"{media}: cannot be converted for the page ({error})") from error
    return target


def _made(target: Path, of: str) -> bool:
    if not target.is_file():
        return False
    try:
        with _opened(target) as container:
            return bool(container.metadata.get("comment") == of)
    except InputError:
        return False


def _convert(
    container: Any,
    out: Any,
    size: tuple[int, int] | None,
    blur: FaceBlur | None,
    show: Callable[[int], None],
) -> None:
    video, sound = _pictures(container), next(iter(container.streams.audio), None)
    streams = [s for s in (video, sound) if s is not None and s.codec_context is not None]
    starts = [s.start_time * s.time_base for s in streams if s.start_time is not None]
    zero = float(min(starts, default=Fraction(0)))
    # Both before the first packet, with which the file's head is written.
    shown: Any = _picture_stream(out, size) if size else None
    heard: Any = out.add_stream("aac", rate=RATE, layout="stereo") if sound in streams else None
    upright = Upright(video, LONGEST)
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
    next_s, samples = 0.0, 0

    def write(at: float, pixels: np.ndarray) -> None:
        image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        image = image.reformat(width=shown.width, height=shown.height, format="yuv420p")
        image.pts, image.time_base = round(at * 1000), MS
        out.mux(shown.encode(image))

    for stream, frame in _decoded(container, streams):
        at = (zero if frame.time is None else frame.time) - zero
        show(int(at))
        if stream is sound:
            # A gap in the sound stays one; what its times jitter by does not.
            if at - samples / RATE > GAP_S:
                samples = round(at * RATE)
            for piece in resampler.resample(frame):
                piece.pts, samples = samples, samples + piece.samples
                out.mux(heard.encode(piece))
        elif shown is not None and at >= next_s:
            pixels = upright(frame)
            for ready in blur(at, pixels) if blur else [(at, pixels)]:
                write(*ready)
            next_s = max(next_s + 1 / FPS, at + 0.5 / FPS)
    for ready in blur.rest() if blur else ():
        write(*ready)
    for stream in (heard, shown):
        if stream is not None:
            out.mux(stream.encode())


def _picture_stream(out: Any, size: tuple[int, int]) -> Any:
    stream = out.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": CRF})
    stream.width, stream.height = (max(2, n // 2 * 2) for n in size)
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = MS
    # A player seeks to keyframes: one every two seconds.
    stream.gop_size = 2 * FPS
    return stream


def _pictures(container: Any) -> Any:
    """The first stream of pictures."""
    return next(iter(video_streams(container)), None)


def _decoded(container: Any, streams: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each frame with its stream; a damaged packet is passed over."""
    for packet in container.demux(streams):
        with contextlib.suppress(av.FFmpegError):
            for frame in packet.decode():
                yield packet.stream, frame


@contextlib.contextmanager
def _opened(media: Path) -> Iterator[Any]:
    with open(media, "rb") as file:
        try:
            container = open_container(file)
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"{media}: is no audio or video file ({error})") from error
        with container:
            yield container
