"""Rows between stages: plain Arrow columns, raw arrays as bytes plus shape, features as the store
keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from feature_service.pipeline.stages import (
    CROPS,
    ERROR,
    FRAMES,
    STAGE,
    STAGES,
    UNCUT_TOKENS,
    WAVEFORM,
    WAVEFORM_RATE,
    Row,
)
from lfmim.data.store import feature_array, store_schema
from lfmim.schema import (
    DURATION,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    NUMBER_COLUMNS,
    FeatureSpec,
    Modality,
)

_RAW = {FRAMES: np.uint8, CROPS: np.uint8, WAVEFORM: np.float32}
_LISTS = {FACE_FOUND: (pa.bool_(), bool), FRAME_INDICES: (pa.int32(), np.int32)}


def wire_schema(spec: FeatureSpec, extra: list[str]) -> pa.Schema:
    """The store's columns, the raw arrays', and the bookkeeping; `extra` are the manifest's own
    columns."""
    schema = store_schema(spec.dims, extra)
    # Bytes and a shape: of arrays that differ in shape Ray's tensor columns make a private struct.
    # Large: 64 frames of 1080p are 400 MB, and offsets of 32 bits end at 2 GiB a block.
    for name in _RAW:
        schema = schema.append(pa.field(name, pa.large_binary())).append(
            pa.field(f"{name}_shape", pa.list_(pa.int64()))
        )
    for name in (ERROR, STAGE):
        schema = schema.append(pa.field(name, pa.string()))
    for stage in STAGES:
        schema = schema.append(pa.field(f"seconds_{stage}", pa.float64()))
        schema = schema.append(pa.field(f"node_{stage}", pa.string()))
    for name, kind in (
        ("gpu_percent", pa.float64()),
        (UNCUT_TOKENS, pa.int64()),
        (WAVEFORM_RATE, pa.int32()),
    ):
        schema = schema.append(pa.field(name, kind))
    return schema


def new_row(record: Mapping[Any, Any]) -> Row:
    """A manifest record -> the row the stages start from."""
    row: Row = {
        str(k): v if v is None or isinstance(v, str) or k in NUMBER_COLUMNS else str(v)
        for k, v in record.items()
    }
    # "" and never None: a column of nulls alone comes back from Ray Data as NaN
    return {**row, ERROR: "", STAGE: "", DURATION: 0.0, **{f"seconds_{s}": 0.0 for s in STAGES}}


def rows_to_wire(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Row dicts -> the table that travels between stages."""
    dims = {FEATURE_COLUMNS[m]: m for m in Modality if FEATURE_COLUMNS[m] in schema.names}

    columns = []
    for field in schema:
        name = field.name
        if name in dims:
            columns.append(
                feature_array((r.get(name) for r in rows), field.type.value_type.list_size)
            )
        elif name in _RAW:
            columns.append(_bytes_array([r.get(name) for r in rows]))
        elif name.endswith("_shape") and name.removesuffix("_shape") in _RAW:
            values = [r.get(name.removesuffix("_shape")) for r in rows]
            columns.append(
                pa.array([None if v is None else list(v.shape) for v in values], field.type)
            )
        else:
            columns.append(pa.array([r.get(name) for r in rows], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _bytes_array(values: list[np.ndarray | None]) -> pa.LargeBinaryArray:
    """The arrays' bytes."""
    # By hand: `pa.array` never lets go of what is behind a memoryview (pyarrow 25.0.1), which kept
    # every clip's frames and crops, 1.2 MiB a row.
    flat = [
        np.empty(0, np.uint8) if v is None else np.ascontiguousarray(v).reshape(-1).view(np.uint8)
        for v in values
    ]
    offsets = np.cumsum([0, *map(len, flat)], dtype=np.int64)
    # only for its validity bitmap, that of the bytes: pyarrow makes it in its own layout
    there = pa.array([v is not None or None for v in values], pa.bool_())
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        len(flat),
        [
            there.buffers()[0],
            pa.py_buffer(offsets),
            pa.py_buffer(np.concatenate(flat) if flat else b""),
        ],
        there.null_count,
    )


def wire_to_rows(table: pa.Table) -> list[Row]:
    """Inverse of `rows_to_wire`; raw arrays are views of Arrow memory."""
    dims = {
        FEATURE_COLUMNS[m]: table.schema.field(FEATURE_COLUMNS[m]).type.value_type.list_size
        for m in Modality
        if FEATURE_COLUMNS[m] in table.schema.names
    }

    rows: list[Row] = []
    for i in range(table.num_rows):
        row: Row = {}
        for name in table.column_names:
            cell = table[name][i]
            if not cell.is_valid or name.endswith("_shape"):
                if not name.endswith("_shape"):
                    row[name] = None
            elif name in _RAW:
                shape = table[f"{name}_shape"][i].as_py()
                row[name] = np.frombuffer(cell.as_buffer(), _RAW[name]).reshape(shape)
            elif name in dims:
                row[name] = (
                    cell.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dims[name])
                )
            elif name in _LISTS:
                row[name] = np.array(cell.as_py(), _LISTS[name][1])
            else:
                row[name] = cell.as_py()
        rows.append(row)
    return rows
