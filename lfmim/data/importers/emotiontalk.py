"""EmotionTalk's label table -> manifest of text only (the table comes without media)."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from lfmim.data.importers.base import register_importer, written
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows, write_manifest
from lfmim.schema import ID, LABEL_COLUMNS, SPEAKER, SPLIT, TEXT, VIDEO, default_labels
from lfmim.storage import local_path, output_file

TRANSCRIPT = "transcript"
# [over/]...[/over], [interrupted], [laughing] and their misspellings ("[over/我" keeps what was
# said, "/over]").
MARKS = re.compile(r"\[+/?[A-Za-z]+/?\]?|/?over/?\]+|[\[\]]")


def strip_marks(transcript: str) -> str:
    """The words alone, without marks of overlap, interruption and laughter."""
    return MARKS.sub("", transcript).strip()


def import_emotiontalk(source: Path, output: Path) -> list[str]:
    """Read the label table `source`, write the manifest `output`; returns lines of a report."""
    frame = read_rows(str(source), (ID, TRANSCRIPT, SPLIT, SPEAKER, *LABEL_COLUMNS.values()))

    texts = [strip_marks(cell(t)) for t in frame[TRANSCRIPT]]
    # The table comes without media, yet a manifest has to have the column.
    manifest = pd.DataFrame({ID: frame[ID].map(cell), VIDEO: "", TEXT: texts})
    for column in (SPLIT, SPEAKER, *(["dialogue"] if "dialogue" in frame else [])):
        manifest[column] = frame[column].map(cell)
    for column in LABEL_COLUMNS.values():
        manifest[column] = [
            default_labels().parse(v, where=f"{source}: row {r}, field '{column}'")
            for r, v in enumerate(frame[column], start=1)
        ]
    write_manifest(manifest, output)

    unread = [str(c) for c in frame if c != TRANSCRIPT and c not in manifest]
    # A speaker in two splits makes figures look better than they are on strangers, so it is said.
    speakers = manifest.groupby(SPLIT)[SPEAKER].agg(set)
    shared = {s for i, a in enumerate(speakers) for b in speakers[i + 1 :] for s in a & b}

    return [
        f"{len(manifest)} utterances: "
        + ", ".join(f"{s} {n}" for s, n in manifest[SPLIT].value_counts().items()),
        f"{(manifest[TEXT] == '').sum()} transcripts hold nothing but marks",
        "no speaker is in two splits"
        if not shared
        else f"{len(shared)} speakers are in more than one split",
        *([f"columns not carried over: {', '.join(unread)}"] if unread else []),
    ]


@register_importer("emotiontalk")
def emotiontalk(*, source: str, output: str) -> list[str]:
    """EmotionTalk's label table -> manifest of text only.

    Args:
        source: the label table.
        output: manifest to write (.csv, .jsonl, .parquet).
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return written(import_emotiontalk(given, made), output)
