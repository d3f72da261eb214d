"""What browsers play of foreign media, and the rest as an MP4 that they do. It is the child of
preview.py, which opens the files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from feature_service.operators.child import Message, serve
from feature_service.operators.clip import ClipError
from feature_service.operators.container import frames_of, open_container, video_streams
from feature_service.operators.frames import Upright, picture_size

if TYPE_CHECKING:
    from feature_service.recordings.blur import FaceBlur

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


def answer(request: Mapping[str, Any]) -> Iterator[Message]:
    """Of `media`, with no more: whether browsers play it, how many seconds it has, and of what the
    preview at `target` was made, null without one. With `to`, it is converted into that file,
    marked as made `of` that, with faces hidden if `blur_faces`; parts tell the seconds done."""
    media = Path(request["media"])
    if "to" in request:
        for second in convert(media, Path(request["to"]), request["of"], request["blur_faces"]):
            yield {"second": second}, {}
    else:
        with _opened(media) as container:
            seconds = round((container.duration or 0) / av.time_base)
            plays = _playable(container, media.suffix.lower())
        yield {"plays": plays, "seconds": seconds, "made": made_of(Path(request["target"]))}, {}


def playable(media: Path) -> bool:
    """Whether browsers play the file with its picture, by container and codec, and count its time
    as results do. Raises ClipError."""
    with _opened(media) as container:
        return _playable(container, media.suffix.lower())


def _playable(container: Any, suffix: str) -> bool:
    codecs = PLAYED.get(SAME_AS.get(suffix, suffix), set())
    streams = [s for s in (_pictures(container), *container.streams.audio[:1]) if s]
    return (container.start_time or 0) <= STARTS_BY_S * av.time_base and all(
        s.codec_context is not None
        and s.codec_context.name in codecs
        and getattr(s.codec_context, "pix_fmt", None) in PIXELS
        for s in streams
    )


def made_of(target: Path) -> str | None:
    """What `convert` has marked a preview with; None of what is none."""
    if not target.is_file():
        return None
    try:
        with _opened(target) as container:
            found: str | None = container.metadata.get("comment")
            return found
    except ClipError:
        return None


def convert(media: Path, target: Path, of: str, blur_faces: bool) -> Iterator[int]:
    """Write `target`, H.264 of at most LONGEST pixels and AAC in MP4 on the results' clock; yields
    the seconds done. Raises ClipError, and OSError of the disk."""
    blur = None
    if blur_faces:
        # torch: it is long in coming, and few ask.
        from feature_service.recordings.blur import FaceBlur

        blur = FaceBlur()
    with _opened(media) as container:
        size = picture_size(container, LONGEST)
    with _opened(media) as container:
        try:
            with av.open(str(target), "w", format="mp4", options=STREAMED) as out:
                out.metadata["comment"] = of
                yield from _convert(container, out, size, blur)
        except av.FFmpegError as error:
            if isinstance(error, OSError):
                raise
            raise ClipError("convert", f"cannot be converted for the page ({error})") from error


def _convert(
    container: Any, out: Any, size: tuple[int, int] | None, blur: FaceBlur | None
) -> Iterator[int]:
    video, sound = _pictures(container), next(iter(container.streams.audio), None)
    streams = [s for s in (video, sound) if s is not None and s.codec_context is not None]
    starts = [s.start_time * s.time_base for s in streams if s.start_time is not None]
    zero = float(min(starts, default=Fraction(0)))
    # Both before the first packet, with which the file's head is written.
    shown: Any = _picture_stream(out, size) if size else None
    heard: Any = out.add_stream("aac", rate=RATE, layout="stereo") if sound in streams else None
    upright = Upright(video, LONGEST)
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
    next_s, samples, second = 0.0, 0, -1

    def write(at: float, pixels: np.ndarray) -> None:
        image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        image = image.reformat(width=shown.width, height=shown.height, format="yuv420p")
        image.pts, image.time_base = round(at * 1000), MS
        out.mux(shown.encode(image))

    for stream, frame in frames_of(container, streams):
        at = (zero if frame.time is None else frame.time) - zero
        if int(at) > second:
            second = int(at)
            yield second
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


@contextlib.contextmanager
def _opened(media: Path) -> Iterator[Any]:
    try:
        file = open(media, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise ClipError("decode", f"cannot be read: {error.strerror}") from error
    with file:
        try:
            container = open_container(file)
        except (av.FFmpegError, ValueError) as error:
            raise ClipError("decode", f"is no audio or video file ({error})") from error
        with container:
            yield container


if __name__ == "__main__":
    serve(lambda setup: answer)
