"""What reads a recording's file: its sound as a whole, and stretch after stretch."""

from __future__ import annotations

import contextlib
import math
import threading
from pathlib import Path
from typing import Protocol

from feature_service.operators.clip import ClipError
from feature_service.operators.media import sha256
from feature_service.pipeline.stages import Row, build_decoder, decode_stage
from feature_service.recordings.speech import Heard, hear
from lfmim.config import ExtractConfig
from lfmim.schema import InputError


class Decoder(Protocol):
    """In this process, or wherever else."""

    def hear(self, media: Path) -> tuple[Heard, str]:
        """The sound, and the file's SHA-256 in hex. Raises InputError for what is no recording."""

    def decode(self, row: Row) -> Row:
        """A row of `stages.new_row` -> the same with what the stage `decode` adds."""


class LocalDecoder:
    """In a child of this process, which itself opens no media: a file that ends the child costs
    that file.

    A recording of more than `max_s` seconds is refused.
    """

    def __init__(self, config: ExtractConfig, *, max_s: float = math.inf) -> None:
        self.child, self.max_s = build_decoder(config), max_s
        self.stage = decode_stage(self.child, config)
        # The child answers one after the other.
        self._lock = threading.Lock()

    def hear(self, media: Path) -> tuple[Heard, str]:
        try:
            with (
                self._lock,
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
        with self._lock:
            (row,) = self.stage([row])
        return row
