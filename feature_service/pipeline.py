"""Offline extraction: one Ray Data job over a manifest, streaming into the Parquet feature store.

CPU decoding and each model are operators of their own, so they scale and are placed apart. The driver is the only
writer: Ray may run a stage again after a failure, but every row is yielded, and so stored, once.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from feature_service.stages import CROPS, ERROR, FRAMES, STAGE, STAGES, WAVEFORM, Row, build_feature_spec, build_stage
from lfmim.config import ExtractConfig
from lfmim.data.manifest import passthrough_columns, read_manifest
from lfmim.data.store import (
    ERROR_SCHEMA,
    feature_array,
    quarantined,
    rows_to_table,
    store_schema,
    stored_ids,
    write_part,
    write_spec,
)
from lfmim.progress import Log, gpu_percent, no_log, watch
from lfmim.schema import (
    DURATION,
    ERRORS_FOLDER,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    ID,
    SENTIMENT_COLUMNS,
    FeatureSpec,
    Modality,
)

ROWS_PER_BLOCK = 2
FLUSH_SECONDS = 30.0
"""A part is written at the latest after this time, so that a killed run loses little."""


@dataclasses.dataclass(frozen=True)
class ExtractSummary:
    """What a run did. rows_in = already_done + stored + quarantined."""

    rows_in: int
    already_done: int
    stored: int
    quarantined: dict[str, int]
    """Count per 'stage: error'."""
    seconds: float
    utterances_per_second: dict[str, float]
    """Per stage and worker: utterances / busy seconds."""
    nodes: dict[str, dict[str, int]]
    """Per stage: Ray node id -> utterances."""

    def __str__(self) -> str:
        lines = [f"rows in {self.rows_in}: {self.stored} stored, {sum(self.quarantined.values())} quarantined, "
                 f"{self.already_done} done before; {self.seconds:.1f} s"]
        lines += [f"  quarantined {count} x {why}" for why, count in sorted(self.quarantined.items())]
        rates = ", ".join(f"{stage} {rate:.1f}" for stage, rate in self.utterances_per_second.items())
        lines += [f"  utterances/s per worker: {rates}"] if rates else []
        if len({node for where in self.nodes.values() for node in where}) > 1:
            lines += [f"  {stage} ran on " + ", ".join(f"node {n} ({count})" for n, count in sorted(where.items()))
                      for stage, where in self.nodes.items()]
        return "\n".join(lines)


def extract_features(config: ExtractConfig, *, need_media: bool = True, log: Log = no_log) -> ExtractSummary:
    """Run the manifest through the stages into the store; rows that are there already are left alone.

    `log` gets throughput, ETA and GPU use now and then.

    Raises InputError (before anything is written) for a bad manifest, an encoder that cannot be loaded, or a store made
    with other encoders. Clips that cannot be used are quarantined, never dropped.
    """
    started = time.perf_counter()
    store = Path(config.store)
    manifest = read_manifest(config.manifest, need_media=need_media)
    spec = build_feature_spec(config)
    write_spec(store, spec)
    done = stored_ids(store) | set(quarantined(store)[ID].to_pylist())
    todo = manifest[~manifest[ID].isin(done)]
    extra = passthrough_columns(manifest)
    writer = _Writer(store, spec, extra, config.rows_per_part)
    busy: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    nodes: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}
    if len(todo):
        with watch("extract", len(todo), "utterances", log=log) as show:
            show(0)
            try:
                for count, row in enumerate(_run_stages(config, spec, todo, extra), start=1):
                    writer.add(row)
                    for stage in STAGES:
                        if row[f"seconds_{stage}"]:
                            busy[stage] += row[f"seconds_{stage}"]
                            seen[stage] += 1
                            nodes[stage][row[f"node_{stage}"]] += 1
                    gpu = row["gpu_percent"]
                    show(count, f"{sum(writer.reasons.values())} quarantined" if writer.reasons else "",
                         **({} if gpu is None else {"gpu_percent": gpu}))
            finally:  # what is finished is kept when the run is stopped, too
                writer.flush()
    return ExtractSummary(
        rows_in=len(manifest), already_done=len(manifest) - len(todo), stored=writer.stored,
        quarantined=dict(writer.reasons), seconds=time.perf_counter() - started,
        utterances_per_second={s: seen[s] / busy[s] for s in STAGES if busy[s]},
        nodes={s: dict(n) for s, n in nodes.items()},
    )


def quiet_ray_data() -> None:
    """Our own progress instead of Ray Data's bars, hints and execution plans."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _run_stages(config: ExtractConfig, spec: FeatureSpec, todo: pd.DataFrame, extra: list[str]) -> Iterator[Row]:
    quiet_ray_data()
    schema = _wire_schema(spec, extra)
    source = rows_to_wire([_new_row(r) for r in todo.to_dict("records")], schema)
    blocks = [source.slice(i, ROWS_PER_BLOCK) for i in range(0, len(source), ROWS_PER_BLOCK)]
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    # Different CPU requests keep Ray from fusing decoding into a model's actor. Fractions: on a small machine all
    # stages must fit side by side; each stage runs one thread. Nodes with the decode resource are there to decode: one
    # unit and one CPU a worker.
    place: dict[str, Any] = {"num_cpus": 0.3}
    if config.decode_resource:
        place = {"num_cpus": 1, "resources": {config.decode_resource: 1}}
    ds = ray.data.from_arrow(blocks).map_batches(
        _Stage, fn_constructor_args=("decode", config, schema), batch_format="pyarrow", batch_size=1,
        compute=ActorPoolStrategy(min_size=1, max_size=config.decode_workers or max(1, cpus)), **place,
    )
    for stage in STAGES[1:]:
        workers = config.face_workers if stage == "face" else config.encoder_workers
        ds = ds.map_batches(
            _Stage, fn_constructor_args=(stage, config, schema), batch_format="pyarrow", batch_size=ROWS_PER_BLOCK,
            num_cpus=0.3 if stage == "face" else 0.1, num_gpus=config.gpus_per_worker,
            compute=ActorPoolStrategy(size=workers),
        )
    for table in ds.iter_batches(batch_format="pyarrow", batch_size=None):
        yield from wire_to_rows(table)


class _Stage:
    """Ray Data actor around one stage; loads once."""

    def __init__(self, name: str, config: ExtractConfig, schema: pa.Schema) -> None:
        self.name, self.schema = name, schema
        self.node = ray.get_runtime_context().get_node_id()
        gpu = config.gpus_per_worker > 0 and name != "decode"
        self.device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        if gpu and self.device == "cpu":
            logging.getLogger(__name__).warning("%s: CUDA cannot use the GPU assigned; running on the CPU", name)
        self.run = build_stage(name, config, self.device)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = self.run(wire_to_rows(table))
        for row in rows:
            row[f"node_{self.name}"] = self.node
            if self.device == "cuda":
                row["gpu_percent"] = gpu_percent()
        return rows_to_wire(rows, self.schema)


# Between stages rows travel as plain Arrow columns: raw arrays as bytes plus shape, features as the store keeps them.
_RAW = {FRAMES: np.uint8, CROPS: np.uint8, WAVEFORM: np.float32}
_LISTS = {FACE_FOUND: (pa.bool_(), bool), FRAME_INDICES: (pa.int32(), np.int32)}


def _wire_schema(spec: FeatureSpec, extra: list[str]) -> pa.Schema:
    schema = store_schema(spec.dims, extra)
    for name in _RAW:
        schema = schema.append(pa.field(name, pa.large_binary())).append(
            pa.field(f"{name}_shape", pa.list_(pa.int64()))
        )
    for name in (ERROR, STAGE):
        schema = schema.append(pa.field(name, pa.string()))
    for stage in STAGES:
        schema = schema.append(pa.field(f"seconds_{stage}", pa.float64()))
        schema = schema.append(pa.field(f"node_{stage}", pa.string()))
    return schema.append(pa.field("gpu_percent", pa.float64()))


def _new_row(record: dict[Any, Any]) -> Row:
    row: Row = {
        str(k): v if v is None or isinstance(v, str) or k in SENTIMENT_COLUMNS.values() else str(v)
        for k, v in record.items()
    }
    return {**row, ERROR: "", STAGE: "", DURATION: 0.0, **{f"seconds_{s}": 0.0 for s in STAGES}}


def rows_to_wire(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Row dicts -> the table that travels between stages."""
    dims = {FEATURE_COLUMNS[m]: m for m in Modality if FEATURE_COLUMNS[m] in schema.names}
    columns = []
    for field in schema:
        name = field.name
        if name in dims:
            columns.append(feature_array((r.get(name) for r in rows), field.type.value_type.list_size))
        elif name in _RAW:
            values = [r.get(name) for r in rows]
            columns.append(pa.array([None if v is None else np.ascontiguousarray(v).data.cast("B") for v in values],
                                    pa.large_binary()))
        elif name.endswith("_shape") and name.removesuffix("_shape") in _RAW:
            values = [r.get(name.removesuffix("_shape")) for r in rows]
            columns.append(pa.array([None if v is None else list(v.shape) for v in values], field.type))
        else:
            columns.append(pa.array([r.get(name) for r in rows], field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def wire_to_rows(table: pa.Table) -> list[Row]:
    """Inverse of `rows_to_wire`; raw arrays are views of Arrow memory."""
    dims = {FEATURE_COLUMNS[m]: table.schema.field(FEATURE_COLUMNS[m]).type.value_type.list_size for m in Modality}
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
                row[name] = cell.values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dims[name])
            elif name in _LISTS:
                row[name] = np.array(cell.as_py(), _LISTS[name][1])
            else:
                row[name] = cell.as_py()
        rows.append(row)
    return rows


class _Writer:
    """Gathers rows into parts; quarantined ones go to `errors/`."""

    def __init__(self, store: Path, spec: FeatureSpec, extra: list[str], rows_per_part: int) -> None:
        self.store, self.dims, self.schema = store, spec.dims, store_schema(spec.dims, extra)
        self.rows_per_part = rows_per_part
        self.rows: list[Row] = []
        self.stored = 0
        self.reasons: Counter[str] = Counter()
        self.last = time.monotonic()

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if len(self.rows) >= self.rows_per_part or time.monotonic() - self.last > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        for row in self.rows:  # audio or frames may be there and yet give nothing to store
            if not row[ERROR] and all(row.get(column) is None for column in FEATURE_COLUMNS.values()):
                row.update({STAGE: "pipeline", ERROR: "no modality is left: no text, no audio, no face"})
        good = [r for r in self.rows if not r[ERROR]]
        bad = [r for r in self.rows if r[ERROR]]
        if good:
            write_part(self.store, rows_to_table(good, self.schema, self.dims))
        if bad:
            write_part(self.store / ERRORS_FOLDER, pa.Table.from_pylist(
                [{name: r[name] for name in ERROR_SCHEMA.names} for r in bad], schema=ERROR_SCHEMA))
        self.stored += len(good)
        self.reasons.update(f"{r[STAGE]}: {r[ERROR]}" for r in bad)
        self.rows, self.last = [], time.monotonic()
