"""The feature store: a folder, local or in an object store, of Parquet parts, `feature_spec.json`,
`label_spec.json` and `errors/` (quarantined rows). What an extraction has not finished is none of
its parts.

Features are `list<fixed_size_list<float16, D>>`, so any Parquet reader gets the numbers and the
true lengths: `column.flatten().flatten().to_numpy().reshape(-1, D)`. An absent modality is null.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pad
import pyarrow.parquet as pq

from lfmim.data.parts import done_shards, not_covered
from lfmim.schema import (
    AUDIO_STREAMS,
    DURATION,
    ERRORS_FOLDER,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    FRAME_READER,
    ID,
    LABEL_COLUMNS,
    LABELS_FILE,
    MEDIA_SHA256,
    NUMBER_COLUMNS,
    SPEAKER,
    SPEC_FILE,
    SPLIT,
    TEXT,
    VIDEO,
    VIDEO_STREAMS,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
    default_labels,
)
from lfmim.storage import Listed, as_path, listing, new_file, write_text
from lfmim.storage.arrow import arrow_files

ERROR_SCHEMA = pa.schema(
    [(ID, pa.string()), (VIDEO, pa.string()), ("stage", pa.string()), ("error", pa.string())]
)

PARTS, SPECS = "part-*.parquet", "*_spec.json"
ROW_GROUP = 64
"""Rows that a reader decodes at a time; it decodes several groups in parallel."""


def feature_type(dim: int) -> pa.DataType:
    """`list<fixed_size_list<float16, dim>>`: one sequence of true length."""
    return pa.list_(pa.list_(pa.float16(), dim))


def store_schema(dims: Mapping[Modality, int], passthrough: Sequence[str] = ()) -> pa.Schema:
    """Arrow schema of the store's parts; `passthrough` columns are text, but for the numbers
    (NUMBER_COLUMNS) among them, which are float64."""
    return pa.schema(
        [
            *(
                (name, pa.string())
                for name in (ID, VIDEO, TEXT, SPLIT, SPEAKER, *LABEL_COLUMNS.values())
            ),
            *((FEATURE_COLUMNS[m], feature_type(dim)) for m, dim in dims.items()),
            (FACE_FOUND, pa.list_(pa.bool_())),
            (FRAME_INDICES, pa.list_(pa.int32())),
            (FRAME_READER, pa.string()),
            (DURATION, pa.float64()),
            (MEDIA_SHA256, pa.string()),
            (VIDEO_STREAMS, pa.int32()),
            (AUDIO_STREAMS, pa.int32()),
            *(
                (name, pa.float64() if name in NUMBER_COLUMNS else pa.string())
                for name in passthrough
            ),
        ]
    )


def feature_array(sequences: Iterable[np.ndarray | None], dim: int) -> pa.Array:
    """Sequences [T_i, dim] (None: absent) -> one Arrow column of `feature_type(dim)`. Raises
    ValueError for a sequence of another shape."""
    kept: list[np.ndarray] = []
    offsets: list[int | None] = []
    total = 0

    for x in sequences:
        # Arrow takes a null offset for a null list, which ends where the next offset begins.
        offsets.append(None if x is None else total)
        if x is not None:
            if x.ndim != 2 or x.shape[1] != dim:
                raise ValueError(f"a sequence of shape {x.shape} where [T, {dim}] is expected")
            kept.append(np.ascontiguousarray(x, dtype=np.float16))
            total += len(kept[-1])

    flat = np.concatenate(kept).reshape(-1) if kept else np.empty(0, np.float16)
    values = pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float16()), dim)
    return pa.ListArray.from_arrays(pa.array([*offsets, total], pa.int32()), values)


def write_part(folder: Path, table: pa.Table, name: str = "") -> None:
    """Write one part whole, or none: a killed or failing writer leaves no half part behind.

    `name` (part-*.parquet) is for writers whose parts are the same each time; otherwise it is
    unique. Raises WriteError.
    """
    # Dictionaries and statistics of 100,000 float16 numbers per row help nobody, and with them a
    # column takes 3 to 9 times as long to read.
    plain = [f.name for f in table.schema if not pa.types.is_nested(f.type)]

    with new_file(folder / (name or f"part-{uuid.uuid4().hex}.parquet")) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            row_group_size=ROW_GROUP,
            use_dictionary=plain,
            write_statistics=plain,
        )


def write_spec(folder: Path, spec: FeatureSpec, labels: LabelSpec | None = None) -> None:
    """Write `label_spec.json` (None: CHERMA's) and `feature_spec.json`; InputError if the store was
    begun with other encoders or sampling, or with other classes."""
    labels = labels or default_labels()
    if (folder / SPEC_FILE).exists():
        check_spec(
            FeatureSpec.load(folder), spec, have=f"the store {folder}", want="this configuration"
        )
        LabelSpec.load(folder).check(
            labels, have="this configuration (--labels)", want=f"the store {folder}"
        )
        return

    # The labels first: a store that has its feature spec and no labels is taken for CHERMA's.
    write_text(folder / LABELS_FILE, json.dumps(labels.to_dict(), ensure_ascii=False, indent=1))
    write_text(folder / SPEC_FILE, spec.to_json())


def check_spec(
    have_spec: FeatureSpec,
    want_spec: FeatureSpec,
    *,
    have: str,
    want: str,
    remedy: str = "Use another store or the same encoders.",
) -> None:
    """Raise InputError listing every difference between two FeatureSpecs, and the remedy."""
    differences = have_spec.differences(want_spec)
    if differences:
        raise InputError(
            f"{have} was made with other encoders or sampling than {want}: "
            + "; ".join(differences)
            + f". {remedy}"
        )


def part_files(folder: Path) -> list[str]:
    """The parts, in name order, without those that were merged into another."""
    return [str(part.path) for part in _parts(folder)]


def _parts(folder: Path) -> list[Listed]:
    found = {part.path.name: part for part in listing(folder, PARTS)}
    return [found[name] for name in not_covered(found)]


def part_shards(folder: Path) -> set[tuple[int, int]]:
    """(plan, shard) of every shard that is finished."""
    return done_shards(part.path.name for part in _parts(folder))


def open_parts(parts: Sequence[str]) -> pad.Dataset:
    """Parts, of which there is one at least, as one dataset."""
    files, names = zip(*(arrow_files(as_path(part)) for part in parts), strict=True)
    return pad.dataset(list(names), format="parquet", filesystem=files[0])


def open_part(part: str) -> pq.ParquetFile:
    """One part, to be read by row groups."""
    files, name = arrow_files(as_path(part))
    return pq.ParquetFile(name, filesystem=files)


def store_state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes whenever the store does: name, size and stamp of every part and of the two
    specs. It stands for their content, since hashing that would mean reading the whole store."""
    files = [*_parts(folder), *listing(folder, SPECS)]
    return tuple((str(file.path), file.size, file.stamp) for file in files)


def stored_ids(folder: Path) -> set[str]:
    """Ids that are in the store already."""
    parts = part_files(folder)
    return set(open_parts(parts).to_table(columns=[ID])[ID].to_pylist()) if parts else set()


def quarantined(folder: Path) -> pa.Table:
    """The quarantined rows: id, video, stage, error."""
    parts = error_files(folder)
    return open_parts(parts).to_table() if parts else ERROR_SCHEMA.empty_table()


def error_files(folder: Path) -> list[str]:
    """The parts of quarantined rows, without those of shards that are not finished."""
    done = part_shards(folder)
    parts = _parts(folder / ERRORS_FOLDER)
    return [str(p.path) for p in parts if done_shards([p.path.name]) <= done]


def forget_quarantined(folder: Path, ids: pa.Array) -> None:
    """Take rows out of the quarantine, as they are to be tried again. Raises WriteError."""
    for part in error_files(folder):
        table = open_part(part).read()
        left = table.filter(pc.invert(pc.is_in(table[ID], ids)))
        path = as_path(part)
        if not len(left):
            path.unlink()
        elif len(left) < len(table):
            write_part(path.parent, left, path.name)


def read_table(
    folder: Path,
    columns: Sequence[str] | None = None,
    split: str | None = None,
    *,
    where: pc.Expression | None = None,
) -> pa.Table:
    """Columns of the store in id order, optionally of one split, or of the rows `where` something
    holds; a column it does not have is left out.

    Raises InputError if there is no part.
    """
    parts = part_files(folder)
    if not parts:
        raise _no_rows(folder)

    data = open_parts(parts)
    wanted = (
        None
        if columns is None
        else [c for c in dict.fromkeys([ID, *columns]) if c in data.schema.names]
    )
    if split is not None:
        where = pad.field(SPLIT) == split
    table = data.to_table(columns=wanted, filter=where)
    # A shard of which every row is quarantined has a part without rows.
    if not table.num_rows and not data.count_rows():
        raise _no_rows(folder)
    # Parts have random names and rows arrive as they are finished: only by id do two runs of one
    # manifest give the same order, and with it the same training.
    return table.sort_by(ID)


def _no_rows(folder: Path) -> InputError:
    return InputError(f"{folder}: the feature store holds no rows; fill it with lfmim extract")


def sequences(table: pa.Table, modality: Modality) -> list[np.ndarray | None]:
    """The modality's sequences [T_i, D] float16 in row order; None where absent."""
    column = table[FEATURE_COLUMNS[modality]].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    dim = column.type.value_type.list_size

    # `.values` ignores the list array's own offset, and `.offsets` are relative to it: they fit
    # each other.
    flat = column.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    offsets = column.offsets.to_numpy()
    # Validity is a bitmap, of which numpy has no view.
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [flat[offsets[i] : offsets[i + 1]] if valid[i] else None for i in range(len(column))]


def rows_to_table(
    rows: Sequence[Mapping[str, Any]], schema: pa.Schema, dims: Mapping[Modality, int]
) -> pa.Table:
    """Row mappings -> a table of `schema`; feature values are arrays [T, D] or None."""
    features = {FEATURE_COLUMNS[m]: dim for m, dim in dims.items()}
    columns = [
        feature_array((r.get(f.name) for r in rows), features[f.name])
        if f.name in features
        else pa.array([r.get(f.name) for r in rows], f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def table_to_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Inverse of `rows_to_table`: a mapping per row, of the columns that are there."""
    features = {
        column: sequences(table, m)
        for m, column in FEATURE_COLUMNS.items()
        if column in table.column_names
    }
    for i, row in enumerate(table.drop_columns(list(features)).to_pylist()):
        yield row | {column: x[i] for column, x in features.items()}


def passthrough_of(folder: Path) -> list[str]:
    """The columns of a store that it has from its manifest alone (`store_schema`)."""
    fixed = {*store_schema({}).names, *FEATURE_COLUMNS.values()}
    names = (c for part in part_files(folder) for c in open_part(part).schema_arrow.names)
    return [c for c in dict.fromkeys(names) if c not in fixed]
