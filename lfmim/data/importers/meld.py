"""MELD (Poria et al., ACL 2019): tables of TV dialogue, with or without clips -> manifest."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import av

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, write_corpus
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPLIT,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path, output_file

TABLES = {"train": "train", "dev": "valid", "test": "test"}
"""NAME_sent_emo.csv -> split."""
CLIPS = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
"""Folder of a table's clips, anywhere below --media."""
COLUMNS = ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
TIME = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
LONG_S = 30.0
QUOTES = str.maketrans({"\x91": "‘", "\x92": "’", "\x93": "“", "\x94": "”", "\x85": "…"})
"""What Windows' quotes become where they were read as Latin-1."""


def import_meld(
    source: Path, output: Path, *, media: Path | None = None, labels: str = ""
) -> list[str]:
    """Write the manifest of the tables in `source`; returns lines of a report.

    The splits are MELD's own. Its labels are of whole utterances: label_multimodal and
    sentiment_multimodal. With `media` every clip is opened; one that is missing or cannot be opened
    leaves 'video' empty and is named. Times that do not go forward, and clips over 30 s, are named
    and kept. Raises InputError naming file, row and field.
    """
    labeller = Labeller(labels, "meld")
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for name, split in TABLES.items():
        path = source / f"{name}_sent_emo.csv"
        if not path.is_file():
            notes.append(f"{path.name} is not there")
            continue

        for number, record in enumerate(read_rows(str(path), COLUMNS).to_dict("records"), start=1):
            where = f"{path}: row {number}"
            dialogue, utterance = (_number(record[c], f"{where}, field '{c}'") for c in COLUMNS[4:])
            sentiment = labeller.spec.parse_sentiment(
                record["Sentiment"], where=f"{where}, field 'Sentiment'"
            )
            seconds = _duration(record)
            if seconds is not None and not 0 < seconds <= LONG_S:
                times = f"{cell(record['StartTime'])} to {cell(record['EndTime'])}"
                notes.append(f"{path.name}: row {number}: {seconds:.3f} s long ({times})")

            rows.append(
                {
                    ID: f"{name}_dia{dialogue}_utt{utterance}",
                    VIDEO: "",
                    TEXT: cell(record["Utterance"]).translate(QUOTES),
                    SPLIT: split,
                    SPEAKER: cell(record["Speaker"]).translate(QUOTES),
                    LABEL_COLUMNS[MULTIMODAL]: labeller(
                        record["Emotion"], f"{where}, field 'Emotion'"
                    ),
                    SENTIMENT_COLUMNS[MULTIMODAL]: sentiment,
                    "dialogue": f"{name}_dia{dialogue}",
                    "utterance": str(utterance),
                    # Of one that ends before it begins nothing is known.
                    "table_seconds": f"{seconds:.3f}" if seconds and seconds > 0 else "",
                }
            )

    if not rows:
        raise InputError(f"{source}: no train_sent_emo.csv, dev_sent_emo.csv or test_sent_emo.csv")
    if media is not None:
        notes += _find_clips(rows, media)
    return write_corpus(rows, output, labeller, notes=notes)


def _number(value: object, where: str) -> int:
    if not cell(value).isdecimal():
        raise InputError(f"{where}: {value!r} is no whole number")
    return int(cell(value))


def _duration(record: dict[Any, Any]) -> float | None:
    ends = []
    for column in ("StartTime", "EndTime"):
        found = TIME.fullmatch(cell(record.get(column)))
        if not found:
            return None
        h, m, s, ms = found.groups()
        ends.append(3600 * int(h) + 60 * int(m) + int(s) + float(f"0.{ms}"))
    return ends[1] - ends[0]


def _find_clips(rows: list[dict[str, Any]], media: Path) -> list[str]:
    """Fill the column 'video'; returns what is missing or broken."""
    if not media.is_dir():
        raise InputError(f"--media {media}: no such folder")
    folders = {
        n: next((p for p in sorted(media.rglob(f)) if p.is_dir()), None) for n, f in CLIPS.items()
    }
    if not any(folders.values()):
        raise InputError(f"--media {media}: none of the folders {', '.join(CLIPS.values())} there")

    notes, missing = [], Counter[str]()
    for row in rows:
        name, _, stem = str(row[ID]).partition("_")
        folder = folders[name]
        path = folder / f"{stem}.mp4" if folder else None
        if path is None or not path.is_file():
            missing[name] += 1
        elif why := _broken(path):
            notes.append(f"{path}: cannot be used ({why}): 'video' is left empty")
        else:
            row[VIDEO] = str(path)
    return [*notes, *(f"{n} clips of {name} are missing" for name, n in missing.items())]


def _broken(path: Path) -> str:
    """Why a clip has no stream that can be opened; "" if it has. Frames are not decoded: that is
    done, and a failure told, at extraction."""
    try:
        with av.open(str(path)) as container:
            return "" if container.streams.video or container.streams.audio else "no stream"
    except (OSError, ValueError, av.error.FFmpegError) as error:
        return str(error).partition(":")[0]


@register_importer("meld")
def meld(*, source: str, output: str, media: str = "", labels: str = "") -> list[str]:
    """MELD's tables -> manifest of text, or with --media of clips, in MELD's own splits.

    Args:
        source: folder with train_sent_emo.csv, dev_sent_emo.csv, test_sent_emo.csv.
        output: manifest to write (.csv, .jsonl, .parquet).
        media: folder with train_splits/, dev_splits_complete/, output_repeated_splits_test/.
        labels: label spec, a shipped name or a YAML file; empty: meld.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    clips = local_path(media, "--media") if media else None
    return written(import_meld(given, made, media=clips, labels=labels), output)
