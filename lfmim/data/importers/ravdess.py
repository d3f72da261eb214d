"""RAVDESS (Livingstone & Russo, 2018) -> manifest, by the fields of its file names:
MODALITY-CHANNEL-EMOTION-INTENSITY-STATEMENT-REPETITION-ACTOR."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lfmim.data.importers.array_files import ENCODER_KEY
from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, media_files, write_corpus
from lfmim.data.manifest import cell
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    SPLIT,
    VIDEO,
    InputError,
    Modality,
)
from lfmim.storage import local_path, new_file, output_file

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
STATEMENTS = ("Kids are talking by the door.", "Dogs are sitting by the door.")
FIELDS = {
    "modality": 3,
    "vocal channel": 2,
    "emotion": len(EMOTIONS),
    "intensity": 2,
    "statement": len(STATEMENTS),
    "repetition": 2,
    "actor": 24,
}
"""Fields of a name, and the largest value of each; the least is 01."""
PICTURE, SOUND = 2, 3
PREFERRED = (1, SOUND, PICTURE)
"""Modalities of which an utterance has one row: both, then sound alone, then picture alone."""
SONG = 2
LAST_TRAIN, LAST_VALID = 15, 18
"""Actors up to here train and validate, the rest test."""
AU_ENCODER = "openface-au-means"


def import_ravdess(
    source: Path,
    output: Path,
    *,
    aus: Path | None = None,
    song: bool = False,
    labels: str = "",
    folds: int = 0,
    seed: int = 0,
) -> list[str]:
    """Write the manifest of the clips below `source`; returns lines of a report.

    The emotion is the one that the actor was asked for, so it is one label for voice, face and both
    together. The two fixed sentences carry none: they are in the column 'statement', and 'text' and
    'label_text' are not written. An utterance that is there in several modalities is one row. `aus`
    is read by `read_aus`. Raises InputError naming file and field.
    """
    clips, others = _clips(source, song)
    labeller = Labeller(labels, "ravdess8")
    vectors, columns = read_aus(aus) if aus else ({}, [])
    rows = []

    for key, path in sorted(clips.items()):
        modality, _, emotion, intensity, statement, repetition, actor = _fields(path)
        label = labeller(EMOTIONS[emotion - 1], f"{path}, field 'emotion'")
        split = "train" if actor <= LAST_TRAIN else "valid" if actor <= LAST_VALID else "test"
        rows.append(
            {
                ID: key,
                VIDEO: str(path),
                SPLIT: split,
                SPEAKER: f"Actor_{actor:02}",
                LABEL_COLUMNS["audio"]: label if modality != PICTURE else None,
                LABEL_COLUMNS["vision"]: label if modality != SOUND or key in vectors else None,
                LABEL_COLUMNS[MULTIMODAL]: label,
                "gender": "male" if actor % 2 else "female",
                "intensity": "strong" if intensity == 2 else "normal",
                "statement": STATEMENTS[statement - 1],
                "repetition": str(repetition),
            }
        )

    notes = [f"{n} files were left out: {why}" for why, n in others.items() if n]
    beside = output.with_name(f"{output.stem}.{Modality.VISION}.parquet")
    known = {k: v for k, v in vectors.items() if k in clips}
    if aus:
        if not known:
            raise InputError(f"{aus}, field 'name': none names a clip below {source}")
        notes += [
            f"{len(known)} of {len(clips)} clips have {len(columns)} action units in {beside.name}",
            "  as their vision modality: a model of it answers for feature stores, not for videos",
        ]

    # Of an earlier import with action units: they would be taken for this one's.
    beside.unlink(missing_ok=True)
    lines = write_corpus(rows, output, labeller, folds=folds, seed=seed, notes=notes)
    if known:
        _write_arrays(known, beside, columns)
    return lines


def read_aus(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """A table with `;` between its cells, `name` (a clip's) and columns AU* -> vectors float32 [D]
    by the id of the utterance, and the columns' names. Raises InputError naming row and field."""
    try:
        frame = pd.read_csv(path, sep=";", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a table: {error}") from error
    columns = [c for c in map(str, frame) if c.startswith("AU")]
    if "name" not in frame or not columns:
        raise InputError(f"{path}: a column 'name' and columns AU..., separated by ;, are needed")

    values = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise InputError(
            f"{path}: row {row + 1}, field '{columns[column]}': "
            f"{frame[columns[column]][row]!r} is no number"
        )

    vectors: dict[str, np.ndarray] = {}
    for row, name in enumerate(frame["name"], start=1):
        key = cell(name).partition("-")[2]
        if not key or key in vectors:
            raise InputError(f"{path}: row {row}, field 'name': {name!r} is empty or there twice")
        vectors[key] = values[row - 1]
    return vectors, columns


def _clips(source: Path, song: bool) -> tuple[dict[str, Path], dict[str, int]]:
    """Utterance -> its clip; reason -> how many files were left out for it."""
    found: dict[str, Path] = {}
    others = {"songs (--song takes them)": 0, "another name": 0, "another modality is there": 0}

    for path in media_files(source):
        if not re.fullmatch(r"\d\d(-\d\d){6}", path.stem):
            others["another name"] += 1
            continue
        fields = _fields(path)
        if fields[1] == SONG and not song:
            others["songs (--song takes them)"] += 1
            continue

        # The name without its first field: one utterance in all its modalities.
        key = path.stem[3:]
        if key in found:
            others["another modality is there"] += 1
            if PREFERRED.index(fields[0]) >= PREFERRED.index(_fields(found[key])[0]):
                continue
        found[key] = path

    if not found:
        raise InputError(
            f"{source}: no clip of RAVDESS is there; expected for example "
            "Actor_01/03-01-05-01-01-01-01.wav"
        )
    return found, others


def _fields(path: Path) -> list[int]:
    values = [int(v) for v in path.stem.split("-")]
    for value, (field, largest) in zip(values, FIELDS.items(), strict=True):
        if not 1 <= value <= largest:
            raise InputError(f"{path}, field '{field}': {value:02} is not in 01 to {largest:02}")
    return values


def _write_arrays(vectors: dict[str, np.ndarray], path: Path, columns: list[str]) -> None:
    # What makes two such tables comparable.
    named = hashlib.sha256(" ".join(columns).encode()).hexdigest()[:8]
    encoder = f"{AU_ENCODER} ({len(columns)} columns, {named})"
    table = pa.table({ID: list(vectors), "features": [v.tolist() for v in vectors.values()]})
    table = table.replace_schema_metadata({ENCODER_KEY: encoder})
    with new_file(path) as temporary:
        pq.write_table(table, temporary)


@register_importer("ravdess")
def ravdess(
    *,
    source: str,
    output: str,
    aus: str = "",
    song: bool = False,
    labels: str = "",
    folds: int = 0,
    seed: int = 0,
) -> list[str]:
    """RAVDESS -> manifest: eight emotions, split by actor.

    Args:
        source: folder with Actor_01/ ... of .wav, .ogg or .mp4 files.
        output: manifest to write (.csv, .jsonl, .parquet).
        aus: table of clip-level action units (separated by ;, columns name and AU...), which become
            the vision modality.
        song: take sung clips, too.
        labels: label spec, a shipped name or a YAML file; empty: ravdess8.
        folds: write so many manifests for cross-validation as well, by whole actors.
        seed: of the folds.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    lines = import_ravdess(
        given,
        made,
        aus=local_path(aus, "--aus") if aus else None,
        song=song,
        labels=labels,
        folds=folds,
        seed=seed,
    )
    return written(lines, output)
