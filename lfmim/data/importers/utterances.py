"""Recordings that somebody divided into utterances (ELAN, Praat, Label Studio) -> manifest."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lfmim.data.importers.corpora import Labeller, media_files, write_corpus
from lfmim.schema import (
    DEFAULT_LABELS,
    END,
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    START,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path

EMOTION = "emotion"
"""What a tier of the multimodal label is called, besides the column's own name."""
COLUMNS = (TEXT, SPEAKER, *LABEL_COLUMNS.values())


@dataclasses.dataclass(frozen=True)
class Interval:
    """A stretch of a recording, in seconds, with what somebody wrote there."""

    start: float
    end: float
    value: str
    speaker: str = ""


def tier_columns(names: Iterable[str], given: str, where: str) -> dict[str, str]:
    """Tier -> manifest column. Tiers that are called as a column, or 'emotion', need not be
    `given` (TIER=COLUMN,...). Raises InputError, which names the tiers that are there."""
    names = list(names)
    columns = {n: n for n in names if n in COLUMNS}
    columns |= {n: LABEL_COLUMNS[MULTIMODAL] for n in names if n.lower() == EMOTION}

    for pair in filter(None, (p.strip() for p in given.split(","))):
        tier, equals, column = pair.rpartition("=")
        column = LABEL_COLUMNS[MULTIMODAL] if column == EMOTION else column
        if not equals or tier not in names or column not in COLUMNS:
            raise InputError(
                f"--tiers {pair!r}: TIER=COLUMN is expected, with a tier of {where} "
                f"({', '.join(names)}) and a column of {', '.join(COLUMNS)}"
            )
        columns[tier] = column

    if not any(c in LABEL_COLUMNS.values() or c == TEXT for c in columns.values()):
        raise InputError(
            f"{where}: no tier is called as a column of labels or '{TEXT}'; name one with --tiers "
            f"TIER={EMOTION}. Its tiers: {', '.join(names) or 'none'}"
        )
    return columns


def utterances(
    tiers: Mapping[str, Sequence[Interval]], columns: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The stretches of the labels' tiers (without labels: of the text's), in time, each with what
    the other tiers say at its middle. Stretches without a word are pauses."""
    of_labels = {t: c for t, c in columns.items() if c in LABEL_COLUMNS.values()}
    base = of_labels or {t: c for t, c in columns.items() if c == TEXT}
    found: dict[tuple[float, float, str], dict[str, Any]] = {}

    for tier, column in base.items():
        for part in tiers[tier]:
            if part.value.strip():
                row = found.setdefault((part.start, part.end, part.speaker), {})
                row[column] = part.value.strip()

    for (start, end, speaker), row in found.items():
        middle = (start + end) / 2
        row |= {START: start, END: end}
        row.setdefault(SPEAKER, speaker)
        for tier, column in columns.items():
            at = [p for p in tiers[tier] if p.start <= middle < p.end]
            # In a talk of several, a stretch of another speaker may lie over it.
            at = [p for p in at if p.speaker == speaker] or at
            if at and at[0].value.strip() and not row.get(column):
                row[column] = at[0].value.strip()
    return [found[key] for key in sorted(found)]


def write_utterances(
    rows: Sequence[Mapping[str, Any]],
    output: Path,
    recording: str,
    *,
    labels: str = "",
    media: Path | None = None,
    clips: Path | None = None,
    where: str,
) -> list[str]:
    """The manifest of a recording's `utterances`; returns lines of a report.

    'video' is the file `media` of the recording with the stretch's times, or <id>.* of the folder
    `clips` where that is there (a clip cut out: all of it, without times), or else empty. Raises
    InputError naming `where` and the stretch.
    """
    labeller = Labeller(labels, DEFAULT_LABELS)
    if not rows:
        raise InputError(f"{where}: no stretch of its tiers holds a word")
    cut = {p.stem: p for p in media_files(clips)} if clips and clips.is_dir() else {}
    stem = re.sub(r"[^\w.-]", "_", Path(recording).stem) or "recording"

    out = []
    for number, row in enumerate(rows, start=1):
        start, end = row[START], row[END]
        place = f"{where}: {start:.3f} s to {end:.3f} s"
        if not 0 <= start < end:
            raise InputError(f"{place}: ends before it begins")
        key = f"{stem}_{number:04}"
        parsed = {c: labeller(row.get(c), f"{place}, field '{c}'") for c in LABEL_COLUMNS.values()}
        out.append(
            {
                ID: key,
                VIDEO: str(cut.get(key) or media or ""),
                TEXT: row.get(TEXT, ""),
                SPEAKER: row.get(SPEAKER, ""),
                **parsed,
                "recording": recording,
                **times(None if key in cut else (start, end)),
            }
        )

    lost = sum(not row[VIDEO] for row in out)
    notes = [
        f"{lost} stretches have no file: {recording or 'the recording'} is not there; the same "
        "command with --recording FILE fills 'video', or --clips FOLDER with stretches that were "
        "cut out, as <id>.mp4 or <id>.wav"
    ]
    return write_corpus(out, output, labeller, notes=notes if lost else [])


def times(span: tuple[float, float] | None) -> dict[str, str]:
    """The columns start_s and end_s of a stretch, to the millisecond; empty of a whole clip."""
    start, end = (f"{t:.3f}" for t in span) if span else ("", "")
    return {START: start, END: end}


def recording_of(named: str, beside: Iterable[Path], option: str) -> Path | None:
    """The file that was `named` with an option, else the first of `beside` that is there. Raises
    InputError if the named one is not."""
    if named:
        found = local_path(named, option)
        if not found.is_file():
            raise InputError(f"{option}: no such file: {named}")
        return found
    return next((p for p in beside if p.is_file()), None)
