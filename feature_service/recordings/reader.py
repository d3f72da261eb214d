"""What reads a recording's file: its sound as a whole, and the faces of stretch after stretch."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from feature_service.operators.clip import ClipError
from feature_service.operators.media import sha256
from feature_service.pipeline.stages import (
    ERROR,
    FRAMES,
    Row,
    build_decoder,
    decode_stage,
    guarded,
)
from feature_service.recordings.faces import Eyes, FaceFinder, Shown
from feature_service.recordings.speech import Heard, hear
from lfmim.config import ExtractConfig
from lfmim.schema import FRAME_INDICES, FRAME_TIMES, InputError


class Seen(NamedTuple):
    """A stretch that was looked at."""

    row: Row
    """What the stage `decode` adds, without its frames."""
    shown: Sequence[Shown]
    """The faces, that which the stretch's row is about first."""
    tracker: Mapping[str, Any] | None
    """The tracker's state behind the stretch."""


class Reader(Protocol):
    """In this process, or wherever else: of a recording, sound and crops are all that leave it."""

    def hear(self, media: Path) -> tuple[Heard, str]:
        """The sound, and the file's SHA-256 in hex. Raises InputError for what is no recording."""

    def decode(self, row: Row) -> Row:
        """A row of `stages.new_row` -> what `look` takes: decoded, or as it is, for `look` to do
        it where that is elsewhere."""

    def look(self, row: Row, kind: str, heard: Heard, tracker: Mapping[str, Any] | None) -> Seen:
        """The faces of a stretch, of `kind` as an utterance has it, of a recording that was
        `heard`; `tracker`: its state behind the stretch before, None for the first."""


class LocalReader:
    """In this process, which itself opens no media: a child does, and a file that ends the child
    costs that file.

    A recording of more than `max_s` seconds is refused.
    """

    def __init__(
        self,
        config: ExtractConfig,
        eyes: Eyes = Eyes(),  # noqa: B008 (frozen)
        *,
        max_s: float = math.inf,
    ) -> None:
        self.child, self.max_s, self.eyes = build_decoder(config), max_s, eyes
        self.stage = decode_stage(self.child, config)
        self._finder: FaceFinder | None = None
        # The child answers one after the other, and a finder follows one recording at a time.
        self._reads, self._looks = threading.Lock(), threading.Lock()

    def hear(self, media: Path) -> tuple[Heard, str]:
        try:
            with (
                self._reads,
                contextlib.closing(self.child.listen(str(media), max_s=self.max_s)) as sound,
            ):
                heard = hear(sound)
            with open(media, "rb") as file:
                return heard, sha256(file)
        except ClipError as error:
            raise InputError(f"{media}: {error}") from error
        except OSError as error:
            raise InputError(f"{media}: cannot be read: {error.strerror}") from error

    def decode(self, row: Row) -> Row:
        with self._reads:
            (row,) = self.stage([row])
        return row

    def look(self, row: Row, kind: str, heard: Heard, tracker: Mapping[str, Any] | None) -> Seen:
        # Frames are by far the most of a row: nothing keeps them once the crops are cut.
        frames = row.pop(FRAMES, None)
        if frames is None or row[ERROR]:
            return Seen(row, [], tracker)
        shown: list[Shown] = []
        with self._looks:
            self._finder = self._finder or FaceFinder(self.eyes)
            finder = self._finder
            finder.follow(tracker)

            def find(row: Row) -> None:
                shown.extend(finder(frames, row[FRAME_INDICES], row[FRAME_TIMES], kind, heard))

            row = guarded("face", find, row)
            return Seen(row, shown, finder.tracker.state())
