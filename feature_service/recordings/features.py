"""The features that a recording's rows were predicted from, kept for whoever corrects them: a
feature store beside the result, with a part for each utterance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from feature_service.recordings.predict import Predicted
from lfmim.data.corrections import FEATURES, row_id
from lfmim.data.store import open_part, rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import (
    END,
    ID,
    LABEL_COLUMNS,
    MEDIA_SHA256,
    SPEAKER,
    SPLIT,
    START,
    TEXT,
    VIDEO,
    FeatureSpec,
    InputError,
    LabelSpec,
)
from lfmim.storage import remove_folder

UNLABELLED = {SPLIT: "", **dict.fromkeys(LABEL_COLUMNS.values())}


def features_folder(stem: Path) -> Path:
    """Where the features of the result `<stem>.json` are, if they are kept."""
    return stem.with_name(f"{stem.name}{FEATURES}")


def begin(folder: Path, spec: FeatureSpec, labels: LabelSpec) -> None:
    """An empty store there, whatever was."""
    remove_folder(folder)
    write_spec(folder, spec, labels)


def keep(
    folder: Path,
    number: int,
    first: int,
    predicted: Sequence[Predicted],
    *,
    media: Path,
    sha256: str,
    spec: FeatureSpec,
) -> None:
    """Keep utterance `number`; again, it is the same part. `first`: index of its first row among
    the result's. Rows with an error have no features. Raises WriteError."""
    rows = [
        {
            **one.features,
            **UNLABELLED,
            ID: row_id(sha256, first + n),
            VIDEO: media.name,
            MEDIA_SHA256: sha256,
            SPEAKER: one.row[SPEAKER],
            TEXT: one.row[TEXT] or "",
            START: one.row["start_s"],
            END: one.row["end_s"],
        }
        for n, one in enumerate(predicted)
        if one.row["error"] is None
    ]
    if rows:
        schema = store_schema(spec.dims, (START, END))
        write_part(folder, rows_to_table(rows, schema, spec.dims), _part(number))


def copy_row(source: Path, target: Path, number: int, id: str) -> None:
    """Copy the row `id` of utterance `number` from one such store into another, which is made if it
    is not there. Raises InputError if it is not in `source`, and WriteError."""
    path = source / _part(number)
    if not path.is_file():
        raise InputError(f"{path}: the features of this utterance were not kept")
    table = open_part(str(path)).read()
    table = table.filter(pc.equal(table[ID], id))
    if not len(table):
        raise InputError(f"{path}: has no row {id}")
    write_spec(target, FeatureSpec.load(source), LabelSpec.load(source))
    write_part(target, table, f"part-{id}.parquet")


def _part(number: int) -> str:
    return f"part-{number:07}.parquet"
