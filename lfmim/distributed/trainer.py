"""One training run from feature store to registered model: checked, tracked, resumable, in this process or on Ray."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, config_hash, to_dict
from lfmim.data.loading import check_labels, load_split
from lfmim.data.store import part_files, read_table, sequences
from lfmim.evaluation.report import write_text
from lfmim.models import MODELS
from lfmim.progress import gpu_percent, share, watch
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    MODALITIES,
    SENTIMENT_COLUMNS,
    SPLIT,
    FeatureSpec,
    InputError,
)
from lfmim.tracking import RegisteredVersion
from lfmim.training.checkpoint import CheckpointMeta, epoch_folder, latest_checkpoint, load_meta, remove_checkpoints
from lfmim.training.loop import EpochReport, NonFiniteLossError, check_data, resolve_precision, train, worker_device

RUN_FILE = "run.json"
RAY_SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of a run's checkpoints. It refuses a run where one of them is gone."""

@dataclasses.dataclass(frozen=True)
class TrainResult:
    """A finished run: its name, MLflow ids, best checkpoint and the registered version."""

    name: str
    tracking_uri: str
    run_id: str
    checkpoint: Path
    meta: CheckpointMeta
    registered: RegisteredVersion


def data_fingerprint(store: Path) -> str:
    """Hex digest over ids, splits, labels and the FeatureSpec: equal for the same data, whatever its parts."""
    return _read_labels(store, FeatureSpec.load(store).fingerprint, _parts(store))[1]


def _parts(store: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes whenever the store does."""
    return tuple((p, stat.st_size, stat.st_mtime_ns) for p in part_files(store) for stat in (os.stat(p),))


@functools.lru_cache(maxsize=1)
def _read_labels(store: Path, spec: str, parts: tuple[tuple[str, int, int], ...]) -> tuple[pa.Table, str]:
    """Ids, splits and labels, read once for the same parts, and their fingerprint."""
    table = read_table(store, [SPLIT, *LABEL_COLUMNS.values(), *SENTIMENT_COLUMNS.values()])
    return table, config_hash(table.to_pydict(), spec)


def check_experiment(config: ExperimentConfig) -> str:
    """Raise InputError for a store without what the experiment needs; returns the data's fingerprint.

    Features are read, once for the same data and model, if the model needs every modality of every utterance.
    """
    store = Path(config.store).resolve()
    fingerprint = data_fingerprint(store)
    _check_splits(store, fingerprint, config.model, config.train.cache)
    return fingerprint


@functools.lru_cache(maxsize=1)
def _check_splits(store: Path, fingerprint: str, model: ModelConfig, cache: str) -> None:
    check_data(model, FeatureSpec.load(store))
    table, _ = _read_labels(store, FeatureSpec.load(store).fingerprint, _parts(store))
    for split in ("train", "valid"):
        check_labels(table, store, split, model)
        if not MODELS[model.name].accepts_absent:
            check_data(model, FeatureSpec.load(store), load_split(store, split, model, cache))


def run_name(config: ExperimentConfig, fingerprint: str) -> str:
    """config.run.name, or a name that depends on what is trained and on what data: the same command, the same run."""
    if config.run.name:
        return config.run.name
    return f"{config.model.name}-{config_hash(to_dict(config.model), to_dict(config.train), fingerprint)}"


def describe(config: ExperimentConfig) -> str:
    """One line: what will run with what, and where its results go. Raises InputError as `check_experiment`."""
    c, storage = config.run, Path(config.run.storage).resolve()
    gpu = c.gpus_per_worker > 0
    precision: str = config.train.precision
    if not gpu or torch.cuda.is_available():
        precision = resolve_precision(precision, torch.device("cuda" if gpu else "cpu"))
    name, uri = run_name(config, check_experiment(config)), tracking.tracking_uri(config.tracking, str(storage))
    tracking.check_server(uri, create=True)
    return (f"train {config.model.name}: {c.workers} worker{'s' * (c.workers > 1)} x "
            f"{share(c.cpus_per_worker, c.gpus_per_worker)}, {'cuda' if gpu else 'cpu'}, precision {precision} | "
            f"checkpoints {storage / name} | "
            f"mlflow {uri}")


def train_run(config: ExperimentConfig, *, tags: Mapping[str, str] | None = None, alone: bool = False) -> TrainResult:
    """Train, track (a new MLflow run gets `tags`) and register. A rerun continues from the last checkpoint.

    On Ray's workers or, `alone`, in this process, which spares a single worker its start. Raises InputError for a store
    without the splits it needs, before any worker starts.
    """
    store, storage = Path(config.store).resolve(), Path(config.run.storage).resolve()
    spec = FeatureSpec.load(store)
    fingerprint = check_experiment(config)
    name, uri = run_name(config, fingerprint), tracking.tracking_uri(config.tracking, str(storage))
    tracking.check_server(uri, create=True)
    folder = storage / name
    folder.mkdir(parents=True, exist_ok=True)
    run_id = _run_id(folder / RUN_FILE, config, spec, uri, name, {**(tags or {}), "data": fingerprint})
    try:
        if alone:
            last = _train_here(config, store, folder, uri, run_id)
        else:
            from lfmim.distributed.workers import fit  # Ray Train takes seconds to import

            last = fit(config, store, folder, uri, run_id)
    except BaseException as error:
        tracking.finish_run(uri, run_id, None, killed=isinstance(error, KeyboardInterrupt))
        raise
    meta = load_meta(last)
    best = epoch_folder(folder, meta.best_epoch) if meta.best_epoch >= 0 else last
    tracking.finish_run(uri, run_id, meta)
    registered = tracking.register(
        uri, run_id, best, model_name=config.tracking.model_name, example=_example(store), data_fingerprint=fingerprint
    )
    return TrainResult(name, uri, run_id, best, meta, registered)


def _train_here(config: ExperimentConfig, store: Path, folder: Path, uri: str, run_id: str) -> Path:
    """The plain loop in this process, with the checkpoints that Ray Train would keep; returns the last one.

    Raises InputError if the loss does not stay finite.
    """
    (folder / RAY_SNAPSHOT).unlink(missing_ok=True)  # from here on Ray, too, would begin with the folder's newest
    resume = latest_checkpoint(folder)
    past = load_meta(resume).history if resume else []
    improved = [entry["epoch"] for entry in past if entry["best"]]
    data = [load_split(store, split, config.model, config.train.cache) for split in ("train", "valid")]
    with watch("train", config.train.epochs, "epochs") as show, tracking.system_metrics(uri, run_id):

        def on_epoch(report: EpochReport, save: Callable[[Path], None]) -> None:
            now = epoch_folder(folder, report.epoch)
            save(now)
            tracking.log_epoch(uri, run_id, report)
            improved.extend([report.epoch] * report.best)
            kept = {now, *(epoch_folder(folder, e) for e in improved[-config.run.keep_checkpoints :])}
            remove_checkpoints(folder, keep=kept)
            use = gpu_percent()
            show(report.epoch + 1, f"{report.samples_per_second:.0f} samples/s, validation score {report.score:.3f}",
                 **({} if use is None else {"gpu_percent": use}))

        show(len(past))
        try:
            meta = train(config, FeatureSpec.load(store), *data, device=worker_device(config.run),
                         on_epoch=on_epoch, resume=resume)
        except NonFiniteLossError as error:
            raise InputError(str(error)) from error
    return epoch_folder(folder, meta.epoch - 1)


def _run_id(
    path: Path, config: ExperimentConfig, spec: FeatureSpec, uri: str, name: str, tags: dict[str, str]
) -> str:
    """The MLflow run of this training run: made once, found again by a rerun."""
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["uri"] == uri:
            return str(known["run_id"])
    run_id = tracking.start_run(config, spec, uri=uri, run_name=name, tags=tags)
    write_text(path, json.dumps({"uri": uri, "run_id": run_id}))
    return run_id


def _example(store: Path) -> Any:
    import pandas as pd

    table = read_table(store, [ID, *FEATURE_COLUMNS.values()], "valid").slice(0, 2)
    return pd.DataFrame({
        FEATURE_COLUMNS[m]: [None if x is None else x[:4].astype("float32").tolist() for x in sequences(table, m)]
        for m in MODALITIES if FEATURE_COLUMNS[m] in table.column_names
    })
