"""Stored features, or a manifest's clips by way of a store -> probabilities, through Ray Data."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from feature_service.pipeline.extract import extract_features
from feature_service.pipeline.finished import ExtractSummary
from feature_service.pipeline.predict import claim, matching
from feature_service.pipeline.schedule import GIVE_UP
from feature_service.pipeline.stages import ERROR, STAGE, Row
from lfmim.config import STUCK_MINUTES, ExtractConfig, config_hash
from lfmim.data.manifest import manifest_labels, read_manifest
from lfmim.data.store import (
    open_part,
    part_files,
    quarantined,
    read_table,
    sequences,
    stored_ids,
    write_part,
)
from lfmim.distributed import at_work
from lfmim.predictor import Predictor, to_frame
from lfmim.progress import Log, at, gpu_percent, no_log, watch
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    ID,
    MODALITIES,
    SENTIMENT_COLUMNS,
    FeatureSpec,
    InputError,
)
from lfmim.storage import as_path, new_file, remove_folder

ROWS_PER_CALL = 64
CPUS_PER_WORKER = 0.5
ROWS_PER_PART = 4096
FLUSH_SECONDS = 10.0
NOTE = "note"

RAY_FAILURES = (ray.exceptions.RayError, ExecutionTimeoutError)
"""What Ray Data raises when a worker failed, or none gets on."""


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


def prediction_schema(predictor: Predictor) -> pa.Schema:
    """Columns of the predictions: those of `to_frame`, the predictor's `note` if it has one, and
    `stage` and `error`, the reason of a row without prediction."""
    heads: list[tuple[str, pa.DataType]]
    if predictor.meta.config.model.task == "emotion":
        heads = []
        for h in HEADS:
            heads += [(f"label_{h}", pa.string()), (f"probabilities_{h}", pa.list_(pa.float32()))]
    else:
        heads = [(SENTIMENT_COLUMNS[h], pa.float32()) for h in HEADS]
    note = [(NOTE, pa.string())] if predictor.note else []
    return pa.schema([(ID, pa.string()), *heads, *note, (STAGE, pa.string()), (ERROR, pa.string())])


@dataclasses.dataclass(frozen=True)
class PredictSummary:
    """What a run did. rows_in = predicted + the sum of `quarantined`."""

    rows_in: int
    already_done: int
    """Rows of `rows_in` that an interrupted run had done."""
    predicted: int
    quarantined: dict[str, int]
    """Count per 'stage: error'."""
    nodes: dict[str, int]
    """Ray node id -> rows predicted there in this run."""
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"rows in {self.rows_in}: {self.predicted} predicted, {sum(self.quarantined.values())} "
            f"quarantined ({self.already_done} done before); {self.seconds:.1f} s"
        ]
        lines += [f"  quarantined {n} x {why}" for why, n in sorted(self.quarantined.items())]
        return "\n".join(lines)


def predict_manifest(
    predictor: Predictor,
    config: ExtractConfig,
    output: Path,
    *,
    workers: int = 1,
    log: Log = no_log,
) -> tuple[ExtractSummary, PredictSummary]:
    """Extract the manifest into `config.store`, then predict its rows from there
    (`predict_store`)."""
    # before hours of extraction that this model could not read
    config, _ = matching(predictor, config)
    # new clips, which mostly have no label, have the classes of the model that they are for
    labels = manifest_labels(config.manifest, config.labels, predictor.meta.labels)
    predictor.check_labels(labels, have=f"the manifest {config.manifest}")
    extracted = extract_features(config, labels=labels, log=log)
    # the store may hold rows of other manifests, of runs that named the same --features
    ids = set(read_manifest(config.manifest, need_media=False, labels=labels)[ID])
    return extracted, predict_store(
        predictor,
        as_path(config.store),
        output,
        workers=workers,
        gpus_per_worker=config.gpus_per_worker,
        only=ids,
        stuck_minutes=config.stuck_minutes,
        log=log,
    )


def predict_store(
    predictor: Predictor,
    store: Path,
    output: Path,
    *,
    workers: int = 1,
    gpus_per_worker: float = 0.0,
    only: set[str] | None = None,
    stuck_minutes: float = STUCK_MINUTES,
    log: Log = no_log,
) -> PredictSummary:
    """Predict the rows of a feature store (those of `only`) into `output` (.parquet or .jsonl), in
    id order.

    Rows out = rows in: quarantined rows, and rows the model cannot take, carry their reason in
    `error`. Finished rows are kept in `<output>.parts` until the output is whole, so a killed run
    continues. Raises InputError, before anything is written, for features of another FeatureSpec
    or classes than the model's, for parts begun with another model or other features, and for a
    store without rows; RuntimeError if some row never came back.
    """
    started = time.perf_counter()
    predictor.check_store(store)
    spec, schema = FeatureSpec.load(store), prediction_schema(predictor)

    bad = quarantined(store).to_pandas()
    bad = bad[bad[ID].isin(only)] if only is not None else bad
    ids = {path: open_part(path).read([ID])[ID].to_pylist() for path in part_files(store)}
    want = {i for part in ids.values() for i in part} if only is None else only - set(bad[ID])
    if not want and bad.empty:
        raise InputError(f"{store}: the feature store holds no rows; fill it with lfmim extract")

    parts = output.with_name(f"{output.name}.parts")
    key = config_hash(predictor.weights_sha256(), spec.fingerprint)
    claim(parts, key, "model or other features")
    done = stored_ids(parts)
    todo = {
        path: here
        for path, part in ids.items()
        if (here := [i for i in part if i in want and i not in done])
    }
    nodes = _predict_parts(
        predictor,
        todo,
        parts,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        stuck_minutes=stuck_minutes,
        log=log,
    )

    predictions = read_table(parts) if part_files(parts) else schema.empty_table()
    reasons_of_bad = [{k: r[k] for k in (ID, STAGE, ERROR)} for r in bad.to_dict("records")]
    lost = pa.Table.from_pylist(reasons_of_bad, schema=schema)
    result = pa.concat_tables([predictions, lost]).sort_by(ID)
    _write_output(result, output)
    # only now that the output is whole: until then a killed run continues from them
    remove_folder(parts)

    why = result.select([STAGE, ERROR]).to_pylist()
    reasons = Counter(f"{r[STAGE]}: {r[ERROR]}" for r in why if r[ERROR])
    return PredictSummary(
        rows_in=result.num_rows,
        already_done=len(done),
        predicted=result.num_rows - sum(reasons.values()),
        quarantined=dict(reasons),
        nodes=dict(nodes),
        seconds=time.perf_counter() - started,
    )


def _predict_parts(
    predictor: Predictor,
    todo: dict[str, list[str]],
    parts: Path,
    *,
    workers: int,
    gpus_per_worker: float,
    stuck_minutes: float,
    log: Log,
) -> Counter[str]:
    """Predict the ids in `todo` (part -> ids) into `parts`, with progress; returns rows per node.

    Raises RuntimeError if some row never came back.
    """
    schema, nodes = prediction_schema(predictor), Counter[str]()
    pending = {i for here in todo.values() for i in here}
    count, total = 0, len(pending)
    if not total:
        return nodes

    own_reports(stuck_minutes)
    with (
        at_work.say_when_stuck("predict", "row", stuck_minutes) as moved,
        watch("predict", total, "rows", log=log, moves=moved) as show,
        _part_writer(parts) as write,
    ):
        for table in _run(predictor, todo, workers, gpus_per_worker):
            # What Ray hands over again, from another node after a failure, is not written again:
            # this process is the only writer.
            fresh = pa.array([i in pending for i in table[ID].to_pylist()], pa.bool_())
            table = table.filter(fresh)
            pending.difference_update(table[ID].to_pylist())
            write(table.select(schema.names))

            nodes.update(table["node"].to_pylist())
            count += table.num_rows
            gpu = [g for g in table["gpu_percent"].to_pylist() if g is not None]
            show(count, **({"gpu_percent": gpu[-1]} if gpu else {}))

    if pending:
        raise RuntimeError(
            f"{len(pending)} rows were not predicted, {min(pending)!r} among them; run the same "
            "command again"
        )
    return nodes


def _run(
    predictor: Predictor, todo: dict[str, list[str]], workers: int, gpus_per_worker: float
) -> Iterator[pa.Table]:
    """Predictions of the ids in `todo` (part -> ids), as they come."""
    # The actors read the parts themselves, row group by row group. A `read_parquet` stage asks for
    # a CPU per task, so actors that fill the cluster starve it, and its rows would travel through
    # the object store.
    units = [
        pa.table({"path": [path], "group": [group]})
        for path in todo
        for group in range(open_part(path).num_row_groups)
    ]
    wanted = frozenset(i for ids in todo.values() for i in ids)

    ds = ray.data.from_arrow(units).map_batches(
        _Predict,
        fn_constructor_args=(predictor, wanted, gpus_per_worker > 0),
        batch_format="pyarrow",
        batch_size=1,
        num_cpus=CPUS_PER_WORKER,
        num_gpus=gpus_per_worker,
        compute=ActorPoolStrategy(size=workers),
    )

    table: pa.Table
    try:
        # None: block by block, as they come; by default Ray gathers 256 rows first
        for table in ds.iter_batches(batch_format="pyarrow", batch_size=None):
            if len(table):
                yield table
    except RAY_FAILURES as error:
        raise at_work.worker_failure(error, "predict") from None


class _Predict:
    """Ray Data actor around the predictor: (part, row group) -> predictions, some rows at a
    time."""

    def __init__(self, predictor: Predictor, wanted: frozenset[str], gpu: bool) -> None:
        # workers share the cores (CPUS_PER_WORKER); more threads each would only fight
        torch.set_num_threads(1)
        self.predictor, self.wanted = predictor, wanted
        self.cuda = gpu and torch.cuda.is_available()
        self.node = ray.get_runtime_context().get_node_id()
        at_work.begin(f"predict:{ray.get_runtime_context().get_actor_id()}", "predict")
        at("")
        if self.cuda:
            predictor.model.to("cuda")

    def __call__(self, unit: pa.Table) -> Iterator[pa.Table]:
        (path,), (group,) = unit["path"].to_pylist(), unit["group"].to_pylist()
        file = open_part(path)
        # a store of imported features may lack a modality
        columns = [c for c in (ID, *FEATURE_COLUMNS.values()) if c in file.schema_arrow.names]

        for batch in file.iter_batches(ROWS_PER_CALL, row_groups=[group], columns=columns):
            ids = batch.column(ID).to_pylist()
            at(f"rows {ids[0]} to {ids[-1]} of {path}" if ids else "")
            wanted = pa.array([i in self.wanted for i in ids], pa.bool_())
            out = predict_table(self.predictor, pa.Table.from_batches([batch]).filter(wanted))
            gpu = gpu_percent() if self.cuda else None
            node = pa.array([self.node] * len(out), pa.string())
            percent = pa.array([gpu] * len(out), pa.float64())
            yield out.append_column("node", node).append_column("gpu_percent", percent)
        at("")


def predict_table(predictor: Predictor, table: pa.Table) -> pa.Table:
    """Feature store rows -> a table of `prediction_schema`; a row the model cannot take carries its
    reason."""
    columns = {
        m: sequences(table, m) for m in MODALITIES if FEATURE_COLUMNS[m] in table.column_names
    }
    # Sorted out first: one row that the model refuses would fail the call for its neighbours.
    problems = [predictor.problem({m: x[i] for m, x in columns.items()}) for i in range(len(table))]
    good = [i for i, problem in enumerate(problems) if not problem]
    answers = predictor.predict({m: [x[i] for i in good] for m, x in columns.items()})
    frame = to_frame(answers, predictor.meta.labels.classes)

    rows: list[Row] = [
        {ID: name, NOTE: predictor.note, STAGE: "predict" if problem else "", ERROR: problem}
        for name, problem in zip(table[ID].to_pylist(), problems, strict=True)
    ]
    for i, prediction in zip(good, frame.to_dict("records"), strict=True):
        rows[i].update({str(name): value for name, value in prediction.items()})
    # The schema is given: where no row has an answer, pyarrow would infer columns of nulls, which
    # do not go together with the other parts.
    return pa.Table.from_pylist(rows, schema=prediction_schema(predictor))


@contextlib.contextmanager
def _part_writer(parts: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Yields `write(table)`; tables are gathered into parts, also when the run is stopped."""
    kept: list[pa.Table] = []
    last = time.monotonic()

    def write(table: pa.Table) -> None:
        nonlocal last
        kept.append(table)
        if sum(map(len, kept)) >= ROWS_PER_PART or time.monotonic() - last > FLUSH_SECONDS:
            write_part(parts, pa.concat_tables(kept))
            kept.clear()
            last = time.monotonic()

    try:
        yield write
    finally:
        if kept:
            write_part(parts, pa.concat_tables(kept))


def _write_output(result: pa.Table, output: Path) -> None:
    with new_file(output) as temporary:
        if output.suffix == ".parquet":
            pq.write_table(result, temporary)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                for row in result.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
