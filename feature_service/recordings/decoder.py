"""What reads a recording's file: its sound as a whole, and stretch after stretch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

from feature_service.operators.clip import ClipError
from feature_service.operators.media import sha256
from feature_service.pipeline.stages import Row, build_stage
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
    """In this process, which has a child that decodes stretches.

    A recording of more than `max_s` seconds is refused."""

    def __init__(self, config: ExtractConfig, *, max_s: float = math.inf) -> None:
        self.stage, self.max_s = build_stage("decode", config), max_s

    def hear(self, media: Path) -> tuple[Heard, str]:
        try:
            with open(media, "rb") as file:
                return hear(file, max_s=self.max_s), sha256(file)
        except ClipError as error:
            raise InputError(f"{media}: {error}") from error
        except OSError as error:
            raise InputError(f"{media}: cannot be read: {error.strerror}") from error

    def decode(self, row: Row) -> Row:
        (row,) = self.stage([row])
        return row
