"""MER 2023 and 2024 (Lian et al.): a csv of names, emotions and valences, and a folder of videos ->
manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, media_files, write_corpus
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path, output_file

NAMES = ("name",)
EMOTIONS = ("discrete", "emotion", "discrete_emotion")
VALENCES = ("valence",)
TEXTS = ("sentence", "chinese", "text", "subtitle", "content")
"""What the columns are called, the first that is there; in any case of letters."""


def import_mer(
    source: Path,
    output: Path,
    *,
    media: Path | None = None,
    text: Path | None = None,
    labels: str = "",
    seed: int = 0,
) -> list[str]:
    """Write the manifest of the table `source`; returns lines of a report.

    The emotion is label_multimodal, the valence, on its scale from -5 to 5, sentiment_multimodal.
    The speakers are not known, so the split is at random. Raises InputError naming file, row and
    field.
    """
    labeller = Labeller(labels, "mer2023")
    frame = read_rows(str(source), ())
    name, emotion = _column(source, frame, NAMES), _column(source, frame, EMOTIONS)
    valence = _find(frame, VALENCES)
    words = _texts(text) if text else {}
    clips = {p.stem: p for p in media_files(media)} if media else {}

    rows: list[dict[str, Any]] = []
    for number, record in enumerate(frame.to_dict("records"), start=1):
        where, key = f"{source}: row {number}", cell(record[name])
        if not key:
            raise InputError(f"{where}, field '{name}': empty")
        row: dict[str, Any] = {
            ID: key,
            VIDEO: str(clips.get(key, "")),
            TEXT: words.get(key, ""),
            LABEL_COLUMNS[MULTIMODAL]: labeller(record[emotion], f"{where}, field '{emotion}'"),
        }
        if valence:
            # Read for its errors; a manifest has scores on the corpus's own scale.
            labeller.spec.parse_sentiment(record[valence], where=f"{where}, field '{valence}'")
            row[SENTIMENT_COLUMNS[MULTIMODAL]] = cell(record[valence])
        rows.append(row)

    lost = {"video": media and sum(not r[VIDEO] for r in rows)}
    lost["text"] = text and sum(not r[TEXT] for r in rows)
    notes = [f"{n} rows have no {what}: the column is empty there" for what, n in lost.items() if n]
    return write_corpus(rows, output, labeller, seed=seed, notes=notes)


def _find(frame: pd.DataFrame, names: tuple[str, ...]) -> str:
    lower = {str(c).strip().lower(): str(c) for c in reversed(frame.columns)}
    return next((lower[n] for n in names if n in lower), "")


def _column(path: Path, frame: pd.DataFrame, names: tuple[str, ...]) -> str:
    found = _find(frame, names)
    if not found:
        raise InputError(
            f"{path}: no column {' or '.join(map(repr, names))}; found: "
            f"{', '.join(map(str, frame.columns))}"
        )
    return found


def _texts(path: Path) -> dict[str, str]:
    frame = read_rows(str(path), ())
    name, text = _column(path, frame, NAMES), _column(path, frame, TEXTS)
    return {cell(r[name]): cell(r[text]) for r in frame.to_dict("records")}


@register_importer("mer")
def mer(
    *,
    source: str,
    output: str,
    media: str = "",
    text: str = "",
    labels: str = "",
    seed: int = 0,
) -> list[str]:
    """MER 2023 or 2024: a csv of names, emotions and valences -> manifest.

    Args:
        source: table with the columns name, discrete and, if it has them, valence.
        output: manifest to write (.csv, .jsonl, .parquet).
        media: folder with NAME.mp4 or NAME.avi.
        text: table with the columns name and sentence (or chinese).
        labels: label spec, a shipped name or a YAML file; empty: mer2023.
        seed: of the split.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    lines = import_mer(
        given,
        made,
        media=local_path(media, "--media") if media else None,
        text=local_path(text, "--text") if text else None,
        labels=labels,
        seed=seed,
    )
    return written(lines, output)
