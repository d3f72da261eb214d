"""Small media files of any kind, encoded on the spot.

Frame i is flat grey of level 4 i, with a white top left quarter.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from feature_service.operators.clip import DecodedClip


def write_clip(
    path: Path,
    *,
    frames: int = 20,
    fps: int = 10,
    size: tuple[int, int] = (64, 48),
    times_ms: list[int] | None = None,
    video: str = "libx264",
    audio: str = "aac",
    seconds: float = 2.0,
    rate: int = 24_000,
    layout: str = "mono",
    streams: int = 1,
    rotation: int = 0,
    gains: Sequence[float] = (),
    sweep: float = 0.0,
    last_ms: int = 0,
    muxer: dict[str, str] | None = None,
    coder: dict[str, str] | None = None,
) -> Path:
    """`frames=0`: audio alone; `seconds=0`: silent. `streams`: of each kind; stream k sounds at 220
    (k + 1) Hz, rising by `sweep` Hz a second; `gains` of its channels. `last_ms`: how long the last
    frame is shown. `muxer`, `coder`: options of the container and of the sound's encoder."""
    with av.open(str(path), "w", options=muxer or {}) as out:
        videos, audios = [], []
        for _ in range(streams if frames else 0):
            stream = out.add_stream(video, rate=fps, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
            if rotation:
                stream.set_display_rotation(rotation)
            videos.append(stream)
        for _ in range(streams if seconds else 0):
            audios.append(out.add_stream(audio, rate=rate, layout=layout, options=coder or {}))
        for k, stream in enumerate(videos):
            packets = []
            for i in range(frames):
                picture = np.full((size[1], size[0], 3), 4 * i + 2 * k, np.uint8)
                picture[: size[1] // 2, : size[0] // 2] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times_ms:
                    frame.time_base, frame.pts = Fraction(1, 1000), times_ms[i]
                packets += stream.encode(frame)
            packets += stream.encode()
            if last_ms:
                last = max(packets, key=lambda p: p.pts)
                last.duration = round(last_ms / 1000 / last.time_base)
            out.mux(packets)
        for k, stream in enumerate(audios):
            t = np.arange(int(seconds * rate)) / rate
            wave = (0.3 * np.sin(2 * np.pi * (220 * (k + 1) * t + sweep * t**2 / 2))).astype(
                np.float32
            )
            for start in range(0, len(wave), 1024):
                channels = np.tile(
                    wave[start : start + 1024], (stream.codec_context.layout.nb_channels, 1)
                )
                if gains:
                    channels *= np.array(gains, np.float32)[:, None]
                # PyAV takes no eight planes
                packed = np.ascontiguousarray(channels.T).reshape(1, -1)
                sound = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
                sound.sample_rate, sound.pts = rate, start
                out.mux(stream.encode(sound))
            out.mux(stream.encode())
    return path


def remux(source: Path, target: Path, **options: str) -> Path:
    """The same packets in another container, or with other options of its muxer."""
    with av.open(str(source)) as file, av.open(str(target), "w", options=options) as out:
        streams = {s.index: out.add_stream_from_template(s) for s in file.streams}
        for packet in file.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    return target


def set_matrix(path: Path, matrix: Sequence[float]) -> Path:
    """Give an MP4's (MOV's) first track the display matrix a, b, c, d."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (round(v * 65536) for v in matrix)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def show_only(path: Path, start_s: float, seconds: float) -> Path:
    """Let the edit lists of an MP4 show this part alone; every packet stays, as editors that trim
    do it."""
    data = bytearray(path.read_bytes())
    at = 0
    (scale,) = struct.unpack_from(">I", data, data.index(b"mvhd") + 16)
    while (at := data.find(b"elst", at + 1)) >= 0:
        (media_scale,) = struct.unpack_from(">I", data, data.index(b"mdhd", at) + 16)
        (first,) = struct.unpack_from(">i", data, at + 16)
        struct.pack_into(
            ">Ii", data, at + 12, round(seconds * scale), first + round(start_s * media_scale)
        )
    path.write_bytes(data)
    return path


def heard(clip: DecodedClip) -> np.ndarray:
    """The waveform as encoders get it, at 16 kHz."""
    # here, for it imports torch, and most tests of decoding need none
    from feature_service.operators.resample import Resampler

    assert clip.waveform is not None
    return Resampler()(clip.waveform, clip.sample_rate)
