"""Decoding in a process of its own: a clip that crashes or hangs the decoder costs that clip. One
child lives beside each decode actor."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from feature_service.operators.child import Answer, Child, Message, serve
from feature_service.operators.clip import ClipError, DecodedClip, DecodeOptions
from feature_service.operators.decode import decode_clip
from feature_service.operators.listen import Outline, listen


class IsolatedDecoder(Child):
    """`decode_clip` and `listen` in a child process, with a time limit per clip (fetching
    included), and per second or so of what is listened to."""

    def __init__(self, options: DecodeOptions, *, timeout_s: float) -> None:
        self.options = options
        super().__init__(__name__, dataclasses.asdict(options), timeout_s=timeout_s)

    def __call__(
        self, video: str, *, key: str, stretch: tuple[float, float] | None = None
    ) -> DecodedClip:
        """As `decode_clip`; ClipError also if the decoder crashed or took more than `timeout_s`."""
        ((head, arrays),) = self.ask({"video": video, "key": key, "stretch": stretch})
        frames = arrays.get("frames")
        which = arrays["frame_indices"], arrays["frame_times"]
        # each frame travels once, however often it was sampled
        if frames is not None:
            order = np.unique(arrays["frame_indices"], return_inverse=True)[1]
            frames = frames if len(order) == len(frames) else frames[order]
        return DecodedClip(frames, *which, arrays.get("waveform"), **head)

    def listen(
        self, media: str, *, max_s: float = math.inf
    ) -> Generator[np.ndarray | Outline, None, None]:
        """As `listen` of the file, which is on a disk; ClipError also if it cannot be read, or the
        decoder crashed. Close what is not taken to its end."""
        for head, arrays in self.ask({"media": media, "max_s": max_s}):
            if "outline" in head:
                size = head["outline"].pop("picture_size")
                yield Outline(**head["outline"], picture_size=size and (size[0], size[1]))
            else:
                yield arrays["sound"]


def _prepare(setup: dict[str, Any]) -> Answer:
    options = DecodeOptions(**setup)

    def answer(request: dict[str, Any]) -> Iterator[Message]:
        if "media" in request:
            yield from _heard(request, options)
        else:
            yield _decoded(request, options)

    return answer


def _decoded(request: dict[str, Any], options: DecodeOptions) -> Message:
    clip = decode_clip(
        request["video"],
        key=request["key"],
        options=options,
        stretch=tuple(request["stretch"]) if request["stretch"] else None,
    )
    head = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)}
    frames = head.pop("frames")
    if frames is not None:
        frames = frames[np.unique(clip.frame_indices, return_index=True)[1]]
    found = {
        "frames": frames,
        "frame_indices": head.pop("frame_indices"),
        "frame_times": head.pop("frame_times"),
        "waveform": head.pop("waveform"),
    }
    return head, {name: a for name, a in found.items() if a is not None}


def _heard(request: dict[str, Any], options: DecodeOptions) -> Iterator[Message]:
    longest = options.max_frame_side if options.pictures else 0
    try:
        with open(request["media"], "rb") as file:
            for part in listen(file, max_s=request["max_s"], longest=longest):
                if isinstance(part, Outline):
                    yield {"outline": dataclasses.asdict(part)}, {}
                else:
                    yield {}, {"sound": part}
    except OSError as error:
        raise ClipError("decode", f"cannot be read: {error.strerror or error}") from error


if __name__ == "__main__":
    serve(_prepare)
