"""A recording as its prediction leaves it, with learnable features, and corrections of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lfmim.data.corrections import CORRECTIONS, FEATURES, Correction, append_correction, row_id
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import END, HEADS, ID, LABEL_COLUMNS, MEDIA_SHA256, SPEAKER, START, LabelSpec
from tests.support.toy import DIMS, LABELS, SPEC, toy_rows

VALID, TRAIN = "00" * 32, "ff" * 32
"""Hashes of recordings that a fifth for validation puts into this split."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """`<stem>.features`, and what each row's labels would be."""

    folder: Path
    media: str
    truth: list[dict[str, str]]
    stem: str = "talk"

    @property
    def file(self) -> Path:
        return self.folder / f"{self.stem}{CORRECTIONS}"

    @property
    def features(self) -> Path:
        return self.folder / f"{self.stem}{FEATURES}"

    def correct(self, row: int, head: str, label: str | None, **fields: object) -> None:
        known = Correction(
            media_sha256=self.media,
            row=row,
            start_s=2.0 * row,
            end_s=2.0 * row + 2,
            head=head,
            label=label,
            predicted="anger",
            model="models:/lfmim/1",
            who="me",
            when="2026-11-28T01:02:03Z",
            seen=True,
        )
        append_correction(self.file, dataclasses.replace(known, **fields))


def write_recording(
    folder: Path,
    media: str = TRAIN,
    *,
    count: int = 6,
    seed: int = 5,
    stem: str = "talk",
    labels: LabelSpec = LABELS,
    shift: float = 0.0,
    **columns: object,
) -> Recording:
    """Features of `count` utterances of 2 s each, the first from `shift` on; `columns` are values
    of every row."""
    rows = toy_rows(count, seed, split="", classes=labels.classes)
    truth = [{h: row.pop(LABEL_COLUMNS[h]) for h in HEADS} for row in rows]
    for i, row in enumerate(rows):
        row |= {ID: row_id(media, i), MEDIA_SHA256: media, SPEAKER: "unknown"}
        row |= {START: shift + 2.0 * i, END: shift + 2.0 * i + 2, **columns}
    recording = Recording(folder, media, truth, stem)
    write_spec(recording.features, SPEC, labels)
    table = rows_to_table(rows, store_schema(DIMS, (START, END)), DIMS)
    write_part(recording.features, table)
    return recording
