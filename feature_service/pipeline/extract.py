"""Offline extraction: one Ray Data job over a manifest, streaming into the Parquet feature store.

CPU decoding and each model are operators of their own, so they scale and are placed apart. The
driver is the only writer: Ray may run a stage again after a failure, but every row is yielded, and
so stored, once.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset
from ray.data.exceptions import ExecutionTimeoutError

from feature_service.pipeline.stages import (
    STAGES,
    Row,
    build_feature_spec,
    build_stage,
    pinned,
    stages_of,
)
from feature_service.pipeline.wire import new_row, rows_to_wire, wire_schema, wire_to_rows
from feature_service.pipeline.writer import StoreWriter
from lfmim.config import ExtractConfig
from lfmim.data.manifest import manifest_labels, passthrough_columns, read_reported
from lfmim.data.store import discard_quarantined, quarantined, stored_ids, write_spec
from lfmim.distributed import at_work
from lfmim.progress import Log, at, gpu_percent, no_log, watch
from lfmim.schema import ID, TEXT, VIDEO, FeatureSpec, LabelSpec, Modality
from lfmim.storage import as_path, exclusive

ROWS_PER_BATCH = 2
# 16 rests on no measurement on a GPU yet.
GPU_ROWS_PER_BATCH = 16
"""Rows an encoder on a GPU is given at once, to fill its passes across utterances. (Faces keep the
small batch: their frames are native ones.)"""
MAX_SOURCE_ROWS = 32
"""Rows of one source block: what is decoded again when an actor is lost."""
BLOCK_BYTES = 32 << 20
"""A stage hands its rows on as soon as they fill a block of this size, which also bounds what is in
flight."""


@dataclasses.dataclass(frozen=True)
class ExtractSummary:
    """What a run did. rows_in = already_done + stored + quarantined (of this run)."""

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
    error_fraction: float
    """Share of the manifest that is quarantined, by this run or an earlier one."""
    texts_cut: int = 0
    """Texts of which only the first tokens were read."""
    longest_text: int = 0
    """Tokens of the longest of them."""
    labels: Sequence[str] = ()
    """What merges and drops of the manifest's LabelSpec changed (`label_report`)."""

    def __str__(self) -> str:

        lines = [
            f"rows in {self.rows_in}: {self.stored} stored, {sum(self.quarantined.values())} "
            f"quarantined, {self.already_done} done before; {self.seconds:.1f} s",
            *(f"  {line}" for line in self.labels),
        ]
        lines += [
            f"  quarantined {count} x {why}" for why, count in sorted(self.quarantined.items())
        ]
        if self.texts_cut:
            lines.append(
                f"  {self.texts_cut} texts cut: they have more tokens than the text encoder reads; "
                f"the longest has {self.longest_text}"
            )

        rates = ", ".join(
            f"{stage} {rate:.1f}" for stage, rate in self.utterances_per_second.items()
        )
        lines += [f"  utterances/s per worker: {rates}"] if rates else []
        # on one machine the ids of its only node would be noise
        if len({node for where in self.nodes.values() for node in where}) > 1:
            lines += [
                f"  {stage} ran on "
                + ", ".join(f"node {n} ({count})" for n, count in sorted(where.items()))
                for stage, where in self.nodes.items()
            ]
        return "\n".join(lines)


def extract_features(
    config: ExtractConfig,
    *,
    need_media: bool = True,
    labels: LabelSpec | None = None,
    log: Log = no_log,
) -> ExtractSummary:
    """Run the manifest through the stages into the store; rows that are there already are left
    alone.

    `labels` None: as `manifest_labels` has it. `log` gets throughput, ETA and GPU use now and then.

    Raises InputError for a bad manifest, an encoder that cannot be loaded, a store made with other
    encoders or classes or in use by another run (nothing is written then), and when the store
    cannot be written to (rows written so far are kept); WorkerError for a worker that failed
    otherwise; RuntimeError if some row never came back. Clips that cannot be used are quarantined,
    never dropped.
    """
    started = time.perf_counter()
    store = as_path(config.store)
    labels = labels or manifest_labels(config.manifest, config.labels)
    manifest, told = read_reported(config.manifest, need_media=need_media, labels=labels)
    spec = build_feature_spec(config)

    with exclusive(store):
        write_spec(store, spec, labels)
        if config.retry_quarantined:
            discard_quarantined(store)
        bad = set(quarantined(store)[ID].to_pylist())
        # What is done is left out of the source. Ray Data's own checkpoints duplicated rows, saved
        # nothing before the end without a repartition, and hung on two cores.
        todo = manifest[~manifest[ID].isin(stored_ids(store) | bad)]
        extra = passthrough_columns(manifest)
        writer = StoreWriter(store, spec, extra, config.rows_per_part, todo[ID])
        rates, nodes = _extract(config, spec, todo, extra, writer, log) if len(todo) else ({}, {})

    # not all of `bad`: the store may hold rows of other manifests
    earlier = int(manifest[ID].isin(bad).sum())
    return ExtractSummary(
        rows_in=len(manifest),
        already_done=len(manifest) - len(todo),
        stored=writer.stored,
        quarantined=dict(writer.reasons),
        seconds=time.perf_counter() - started,
        utterances_per_second=rates,
        nodes=nodes,
        error_fraction=(earlier + writer.reasons.total()) / len(manifest),
        texts_cut=writer.texts_cut,
        longest_text=writer.longest_text,
        labels=told,
    )


def _extract(
    config: ExtractConfig,
    spec: FeatureSpec,
    todo: pd.DataFrame,
    extra: list[str],
    writer: StoreWriter,
    log: Log,
) -> tuple[dict[str, float], dict[str, dict[str, int]]]:
    """Feed the writer, with progress; returns utterances per busy second, and per node, of each
    stage."""
    busy: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    nodes: dict[str, Counter[str]] = {stage: Counter() for stage in STAGES}

    with (
        at_work.say_when_stuck("extract", "row", config.stuck_minutes) as moved,
        watch("extract", len(todo), "utterances", log=log, moves=moved) as show,
    ):
        show(0)
        try:
            for row in _run_stages(config, spec, todo, extra):
                # A row that Ray hands over again after a failure counts once in the figures, too.
                if not writer.add(row):
                    continue

                for stage in STAGES:
                    if row[f"seconds_{stage}"]:
                        busy[stage] += row[f"seconds_{stage}"]
                        seen[stage] += 1
                        nodes[stage][row[f"node_{stage}"]] += 1

                gpu = row["gpu_percent"]
                figures = {} if gpu is None else {"gpu_percent": gpu}
                notes = [f"{writer.reasons.total()} quarantined"] if writer.reasons else []
                if writer.texts_cut:
                    figures |= {
                        "texts_cut": writer.texts_cut,
                        "longest_text_tokens": writer.longest_text,
                    }
                    notes.append(f"{writer.texts_cut} texts cut")
                show(len(todo) - len(writer.pending), ", ".join(notes), **figures)
        # BaseException: what is finished is kept when the run is stopped by Ctrl-C, too
        except BaseException as error:
            writer.flush()
            # from None: Ray's traceback is of Ray; what the worker raised is in the message
            if isinstance(error, RAY_FAILURES):
                raise at_work.worker_failure(error, "extract") from None
            raise
        writer.finish()
    return {s: seen[s] / busy[s] for s in STAGES if busy[s]}, {s: dict(n) for s, n in nodes.items()}


RAY_FAILURES = (ray.exceptions.RayError, ExecutionTimeoutError)
"""What Ray Data raises when a worker failed, or none gets on."""
GIVE_UP = 6
"""Ray Data ends a run in which nothing moved for this many times `stuck_minutes`."""


def own_reports(stuck_minutes: float) -> None:
    """Our own progress and messages instead of Ray Data's bars, hints, execution plans and
    tracebacks."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray's detector of hanging tasks knows no rows, needs ten finished tasks to judge one, and asks
    # the dashboard: `say_when_stuck` takes its place.
    context.issue_detectors_config.detectors = []
    # Its guard against a run without any movement stays, in seconds.
    context.execution_no_progress_timeout_s = GIVE_UP * stuck_minutes * 60
    # what fails is raised, and `worker_failure` shows it
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _run_stages(
    config: ExtractConfig, spec: FeatureSpec, todo: pd.DataFrame, extra: list[str]
) -> Iterator[Row]:
    config = pinned(config, spec)
    own_reports(config.stuck_minutes)
    ray.data.DataContext.get_current().target_max_block_size = BLOCK_BYTES

    # Nodes with the decode resource are there to decode: one unit and one CPU a worker.
    place: dict[str, Any] = {"num_cpus": 0.3}
    if config.decode_resource:
        place = {"num_cpus": 1, "resources": {config.decode_resource: 1}}
    schema = wire_schema(spec, extra)
    cpus = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]

    # Two streams side by side: rows of text alone never queue behind a video.
    text_alone = (todo[VIDEO] == "") & (todo[TEXT] != "")
    # Without it such rows have nothing to be encoded, which decoding says of each.
    if Modality.TEXT not in config.extracted:
        text_alone[:] = False
    streams = []
    if not text_alone.all():
        media = _source(todo[~text_alone], schema, cpus).map_batches(
            _Stage,
            fn_constructor_args=("decode", config, spec, schema),
            batch_format="pyarrow",
            batch_size=1,
            compute=ActorPoolStrategy(min_size=1, max_size=config.decode_workers or max(1, cpus)),
            **place,
        )
        for stage in stages_of(config)[1:]:
            media = _model_stage(media, stage, config, spec, schema)
        streams.append(media)
    if text_alone.any():
        texts = _source(todo[text_alone], schema, cpus)
        streams.append(_model_stage(texts, Modality.TEXT.value, config, spec, schema))

    ds = streams[0].union(*streams[1:]) if len(streams) > 1 else streams[0]
    # None: block by block, as they come; by default Ray gathers 256 rows first
    for table in ds.iter_batches(batch_format="pyarrow", batch_size=None):
        yield from wire_to_rows(table)


def _source(rows: pd.DataFrame, schema: pa.Schema, cpus: int) -> Dataset:
    # A table is a block, and blocks are what the workers share out: `read_parquet` would make one
    # of a whole manifest, whatever `override_num_blocks` says.
    size = min(MAX_SOURCE_ROWS, max(ROWS_PER_BATCH, len(rows) // (8 * cpus)))
    starts = range(0, len(rows), size)
    return ray.data.from_arrow(
        [
            rows_to_wire([new_row(r) for r in rows.iloc[i : i + size].to_dict("records")], schema)
            for i in starts
        ]
    )


def _model_stage(
    ds: Dataset, stage: str, config: ExtractConfig, spec: FeatureSpec, schema: pa.Schema
) -> Dataset:
    """A stage with a model: a pool of its own, on its own share of a GPU."""
    many = config.gpus_per_worker > 0 and stage != "face"
    # Actors, for a model to be loaded once; and Ray Data fuses tasks with the stage behind them,
    # but not actors, so decoding never runs inside a model's process.
    # Fractions: on a small machine all stages must fit side by side; each runs one thread.
    return ds.map_batches(
        _Stage,
        fn_constructor_args=(stage, config, spec, schema),
        batch_format="pyarrow",
        batch_size=GPU_ROWS_PER_BATCH if many else ROWS_PER_BATCH,
        num_cpus=0.3 if stage == "face" else 0.1,
        num_gpus=config.gpus_per_worker,
        compute=ActorPoolStrategy(
            size=config.face_workers if stage == "face" else config.encoder_workers
        ),
    )


class _Stage:
    """Ray Data actor around one stage; loads once."""

    def __init__(
        self, name: str, config: ExtractConfig, spec: FeatureSpec, schema: pa.Schema
    ) -> None:
        self.name, self.schema = name, schema
        self.node = ray.get_runtime_context().get_node_id()
        at_work.begin(f"{name}:{ray.get_runtime_context().get_actor_id()}", name)

        self.device = "cpu"
        if config.gpus_per_worker > 0 and name != "decode":
            # here, for a decoding worker starts in 1.8 s without it
            import torch

            # Ray counts GPUs without torch, which may find no driver for one: slow beats lost.
            if torch.cuda.is_available():
                self.device = "cuda"
            else:
                logging.getLogger(__name__).warning(
                    "%s: CUDA cannot use the GPU assigned; running on the CPU", name
                )

        self.run = build_stage(name, config, self.device, spec=spec)
        at("")

    def __call__(self, table: pa.Table) -> pa.Table:
        at(", ".join(table[ID].to_pylist()))
        rows = self.run(wire_to_rows(table))
        for row in rows:
            row[f"node_{self.name}"] = self.node
            if self.device == "cuda":
                row["gpu_percent"] = gpu_percent()
        done = rows_to_wire(rows, self.schema)
        at("")
        return done
