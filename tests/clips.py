"""Small media files of any kind, encoded on the spot.

Frame i is flat grey of level 4 i, with a white top left quarter.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def write_clip(
    path: Path, *, frames: int = 20, fps: int = 10, size: tuple[int, int] = (64, 48), times_ms: list[int] | None = None,
    video: str = "libx264", audio: str = "aac", seconds: float = 2.0, rate: int = 24_000, layout: str = "mono",
    streams: int = 1, rotation: int = 0,
) -> Path:
    """`frames=0`: audio alone; `seconds=0`: silent. `streams`: of each kind; stream k sounds at 220 (k + 1) Hz."""
    with av.open(str(path), "w") as out:
        videos, audios = [], []
        for _ in range(streams if frames else 0):
            stream = out.add_stream(video, rate=fps, options={"threads": "1"})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
            if rotation:
                stream.set_display_rotation(rotation)
            videos.append(stream)
        for _ in range(streams if seconds else 0):
            audios.append(out.add_stream(audio, rate=rate, layout=layout))
        for k, stream in enumerate(videos):
            for i in range(frames):
                picture = np.full((size[1], size[0], 3), 4 * i + 2 * k, np.uint8)
                picture[: size[1] // 2, : size[0] // 2] = 255
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                if times_ms:
                    frame.time_base, frame.pts = Fraction(1, 1000), times_ms[i]
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        for k, stream in enumerate(audios):
            t = np.arange(int(seconds * rate)) / rate
            wave = (0.3 * np.sin(2 * np.pi * 220 * (k + 1) * t)).astype(np.float32)
            for start in range(0, len(wave), 1024):
                channels = np.tile(wave[start : start + 1024], (stream.codec_context.layout.nb_channels, 1))
                sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
                sound.sample_rate, sound.pts = rate, start
                out.mux(stream.encode(sound))
            out.mux(stream.encode())
    return path
