"""Reading pictures by decord: of which clips it gives the same bytes as PyAV, and those."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from feature_service.operators.container import Packet

DECORD = "decord"
CONTAINERS = ("mov", "matroska")
CODECS = ("h264", "vp8", "vp9")
PIXELS = ("yuv420p", "yuvj420p")
BATCH, SPARE = 8, 32
"""Frames copied out of decord at a time, and room for those that it holds meanwhile."""


@functools.cache
def _decord() -> Any:
    """The library, or None where there is no wheel of it (macOS, ARM)."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    # FFmpeg's remarks would be taken for the last words of a decoder that crashed
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def reads(container: Any, stream: Any, packets: Sequence[Packet], first: Any) -> bool:
    """Whether decord is here and gives the frames of this stream as PyAV does, by what the
    container and the `first` frame say. Its pictures must be shown as they are stored: neither
    turned nor scaled.

    decord follows no edit list and picks the stream itself; its FFmpeg (of 2018) begins at
    keyframes that are none (intra refresh) with half a picture, and converts interlaced and 10 bit
    pictures otherwise.
    """
    return (
        container.format.name.split(",")[0] in CONTAINERS
        and stream.codec_context.name in CODECS
        and first.format.name in PIXELS
        and not first.interlaced_frame
        and len(container.streams.video) == 1
        and all(p.is_shown and p.is_fresh for p in packets)
        and _decord() is not None
    )


def read(
    file: BinaryIO, count: int, picks: Sequence[int], height: int, width: int
) -> np.ndarray | None:
    """The picked frames, uint8 [len(picks), height, width, 3] RGB, of a stream of `count` frames;
    None if decord cannot decode them or finds others, as where the stream is damaged."""
    decord = _decord()
    images = np.empty((len(picks), height, width, 3), np.uint8)
    # Where memory ends inside decord, so does the process: what it may take is asked for first.
    np.empty((SPARE, height, width, 3), np.uint8)
    try:
        # By a name of the open file: a copy from object storage has none of its own.
        reader = decord.VideoReader(f"/proc/self/fd/{file.fileno()}", num_threads=1)
        if len(reader) != count:
            return None
        for i in range(0, len(picks), BATCH):
            frames = reader.get_batch(list(picks[i : i + BATCH])).asnumpy()
            if frames.shape[1:] != images.shape[1:]:
                return None
            images[i : i + BATCH] = frames
    except (decord.DECORDError, IndexError) as error:
        logging.getLogger(__name__).debug("decord: %s", error)
        return None
    return images
