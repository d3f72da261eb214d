"""Corrections of a recording's predictions: a file of lines beside the result, and the rows of the
feature store that they are about.

`<stem>.corrections.jsonl` is UTF-8, a JSON object a line, appended and never changed.
`<stem>.features/` beside it is a feature store (lfmim.data.store) of predicted utterances: `id` as
of `row_id`, `media_sha256`, `text`, `speaker` ("unknown" where nobody knows), `start_s` and
`end_s`, no split and no label. It may hold more rows than were corrected.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from lfmim.schema import HEADS, InputError
from lfmim.storage import append_line
from lfmim.text_files import decode, parse_json, whole

CORRECTIONS, FEATURES = ".corrections.jsonl", ".features"
"""What follows a recording's stem: the file of its corrections, and the folder of its features."""
UTC = "%Y-%m-%dT%H:%M:%SZ"
"""Format of `Correction.when`."""
LONGEST_NAME = 64
"""Characters of `Correction.who`, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correction:
    """What somebody said of one head's answer; checked when made (InputError names the field)."""

    media_sha256: str
    """Of the recording's file, 64 hex digits."""
    row: int
    """Of the result's `utterances`, from 0."""
    start_s: float
    """Where the utterance begins, seconds."""
    end_s: float
    """Where it ends, seconds."""
    head: str
    """One of HEADS."""
    label: str | None
    """The class that is right; None takes back what was said of this row and head before."""
    predicted: str | None
    """What the head answered; None: nothing."""
    model: str
    """Which model answered, as the result names it."""
    who: str
    """Who says so, 1 to 64 characters."""
    when: str
    """UTC, as 2026-11-28T01:02:03Z."""
    seen: bool
    """Whether they had seen the predictions."""

    def __post_init__(self) -> None:
        if not _is(self.media_sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.media_sha256):
            raise _wrong("media_sha256", self.media_sha256, "64 hex digits in lower case")
        if not _is(self.row, int) or self.row < 0:
            raise _wrong("row", self.row, "a whole number from 0")
        for field in ("start_s", "end_s"):
            seconds = getattr(self, field)
            if not _is(seconds, int, float) or not 0 <= seconds < math.inf:
                raise _wrong(field, seconds, "seconds from 0")
        if self.end_s < self.start_s:
            raise _wrong("end_s", self.end_s, f"no less than start_s {self.start_s}")
        if self.head not in HEADS:
            raise _wrong("head", self.head, f"one of {', '.join(HEADS)}")

        for field in ("label", "predicted", "model", "who"):
            text = getattr(self, field)
            if text is None and field in ("label", "predicted"):
                continue
            # Half a character cannot be written as UTF-8.
            if not _is(text, str) or not text.strip() or text != whole(text):
                raise _wrong(field, text, "a text that is not empty")
        if len(self.who) > LONGEST_NAME:
            raise _wrong("who", self.who, f"at most {LONGEST_NAME} characters")
        try:
            datetime.strptime(self.when, UTC)
        except (TypeError, ValueError) as error:
            raise _wrong("when", self.when, "UTC as 2026-11-28T01:02:03Z") from error
        if not _is(self.seen, bool):
            raise _wrong("seen", self.seen, "true or false")


def _is(value: object, *types: type) -> bool:
    # By type alone: True is an int to isinstance.
    return type(value) in types


def _wrong(field: str, value: object, want: str) -> InputError:
    return InputError(f"field '{field}': {value!r} is not {want}")


def row_id(media_sha256: str, row: int) -> str:
    """Id, in the feature store, of a row of a recording's result."""
    return f"{media_sha256[:16]}-{row:06d}"


def read_corrections(path: Path) -> list[Correction]:
    """The corrections of a file in its order, line i + 1 at index i. A last line without newline
    that is no JSON is what a killed writer left: it is passed over.

    Raises InputError naming file, line and field.
    """
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if _is_json(last):
        lines.append(last)
    return [_correction(line, f"{path}: line {i}") for i, line in enumerate(lines, start=1)]


def _correction(line: bytes, where: str) -> Correction:
    try:
        raw: Any = parse_json(decode(line, where)[0])
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{where}: an object of fields and values is expected")

    fields = [f.name for f in dataclasses.fields(Correction)]
    if unknown := [k for k in raw if k not in fields]:
        raise InputError(
            f"{where}: unknown field '{unknown[0]}'; a correction has {', '.join(fields)}"
        )
    if missing := [f for f in fields if f not in raw]:
        raise InputError(f"{where}: no field '{missing[0]}'")
    try:
        return Correction(**raw)
    except InputError as error:
        raise InputError(f"{where}, {error}") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def append_correction(path: Path, correction: Correction) -> None:
    """Add a correction to a file, which is made if it is not there; durable. Several processes may
    do so at once. Raises WriteError."""
    line = json.dumps(dataclasses.asdict(correction), ensure_ascii=False)
    append_line(path, line.encode(), is_whole=_is_json)
