"""One training run from feature store to registered model: checked, tracked, resumable, in this
process or on Ray."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, config_hash, flatten, hash_parts, to_dict
from lfmim.data.loading import check_labels, load_split
from lfmim.data.store import read_table, sequences, store_state
from lfmim.distributed.driver import run_tracked_epochs
from lfmim.distributed.initial import resolve_init
from lfmim.models import MODELS
from lfmim.progress import gpu_percent, say_when_stuck, share, watch
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    MODALITIES,
    SENTIMENT_COLUMNS,
    SPLIT,
    FeatureSpec,
    InputError,
    LabelSpec,
    default_labels,
)
from lfmim.storage import as_path, exclusive, output_folder, write_text
from lfmim.tracking import RegisteredVersion
from lfmim.training.calibration import calibrate
from lfmim.training.checkpoint import (
    INITIAL,
    META,
    CheckpointMeta,
    epoch_folder,
    keep_later,
    latest_checkpoint,
    load_meta,
    newest_checkpoint,
    save_checkpoint,
)
from lfmim.training.loop import EpochReport, NonFiniteLossError, check_data, worker_device
from lfmim.training.step import resolve_precision

RUN_FILE = "run.json"
MAY_CHANGE = frozenset(
    f"train.{name}"
    for name in ("epochs", "patience", "precision", "compile", "micro_batch", "cache")
)
"""Settings of `model` and `train` that a continued run may change: how long, how fast and on what
it trains. So may all that is neither `init` nor among `model` and `train`: workers, devices, where
the store lies and where the run is tracked."""


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
    """Hex digest over ids, splits, labels, the FeatureSpec and the LabelSpec's classes: equal for
    the same data, whatever its parts."""
    return _labels(store)[1]


def _labels(store: Path) -> tuple[pa.Table, str]:
    spec, labels = FeatureSpec.load(store).fingerprint, LabelSpec.load(store)
    # CHERMA's classes stay out of it, as they did before there were others: what was trained then
    # is known again.
    if default_labels().differences(labels):
        spec += f"-{labels.fingerprint}"
    return _read_labels(store, spec, store_state(store))


# A job asks several times: fingerprint, check of the labels, rows per split. `spec` and `state`
# are the key: a store that has grown is read again.
@functools.lru_cache(maxsize=1)
def _read_labels(
    store: Path, spec: str, state: tuple[tuple[str, int, int], ...]
) -> tuple[pa.Table, str]:
    """Ids, splits and labels, read once for the same parts, and their fingerprint."""
    table = read_table(store, [SPLIT, *LABEL_COLUMNS.values(), *SENTIMENT_COLUMNS.values()])
    return table, config_hash(table.to_pydict(), spec)


def check_experiment(config: ExperimentConfig) -> str:
    """Raise InputError for a store without what the experiment needs; returns the data's
    fingerprint.

    Features are read, once for the same data and model, if the model needs every modality of every
    utterance.
    """
    store = as_path(config.store).resolve()
    fingerprint = data_fingerprint(store)
    _check_splits(store, fingerprint, config.model, config.train.cache)
    return fingerprint


@functools.lru_cache(maxsize=1)
def _check_splits(store: Path, fingerprint: str, model: ModelConfig, cache: str) -> None:
    check_data(model, FeatureSpec.load(store))
    table, _ = _labels(store)
    for split in ("train", "valid"):
        check_labels(table, store, split, model)
        if not MODELS[model.name].accepts_absent:
            check_data(model, FeatureSpec.load(store), load_split(store, split, model, cache))


def run_name(config: ExperimentConfig, fingerprint: str) -> str:
    """config.run.name, or a name that depends on what is trained and on what data: the same
    command, the same run."""
    if config.run.name:
        return config.run.name
    digest = config_hash(*hash_parts(config).values(), fingerprint)
    return f"{config.model.name}-{digest}"


def describe(config: ExperimentConfig) -> str:
    """One line: what will run with what, and where its results go. `config` as `resolve_init` gives
    it.

    Raises InputError as `check_experiment` and `check_run`, and for a tracker that cannot be used.
    """
    c, storage = config.run, as_path(config.run.storage).resolve()
    gpu = c.gpus_per_worker > 0

    # A driver without a GPU cannot tell what `auto` will be on a worker that has one.
    precision: str = config.train.precision
    if not gpu or torch.cuda.is_available():
        precision = resolve_precision(precision, torch.device("cuda" if gpu else "cpu"))
    fingerprint = check_experiment(config)
    name = run_name(config, fingerprint)
    output_folder(str(storage / name), "--storage")
    check_run(config, storage / name, fingerprint)

    uri = tracking.tracking_uri(config.tracking, str(storage))
    tracking.prepare(uri, config.tracking)
    begun = f" from {config.init}" if config.init else ""
    least = f"{c.min_workers} to " if c.min_workers else ""
    return (
        f"train {config.model.name}{begun}: {least}{c.workers} "
        f"worker{'s' * (c.workers > 1)} x "
        f"{share(c.cpus_per_worker, c.gpus_per_worker)}, {'cuda' if gpu else 'cpu'}, precision "
        f"{precision} | checkpoints {storage / name} | mlflow {uri}"
    )


def train_run(
    config: ExperimentConfig,
    *,
    tags: Mapping[str, str] | None = None,
    version_tags: Mapping[str, str] | None = None,
    alone: bool = False,
) -> TrainResult:
    """Train, track (a new MLflow run gets `tags`) and register (a new version gets `version_tags`).
    A rerun continues from the last checkpoint.

    On Ray's workers or, `alone`, in this process, which spares a single worker its start. Raises
    InputError as `resolve_init`, and for a store without the splits it needs, before any worker
    starts.
    """
    config, initial = resolve_init(config)
    store, storage = as_path(config.store).resolve(), as_path(config.run.storage).resolve()
    spec = FeatureSpec.load(store)
    fingerprint = check_experiment(config)
    name, uri = run_name(config, fingerprint), tracking.tracking_uri(config.tracking, str(storage))
    folder = output_folder(str(storage / name), "--storage")
    tracking.check_server(uri, create=True)

    with exclusive(folder, "run's folder"):
        # `describe` has asked already, but only now can no other job train in here.
        check_run(config, folder, fingerprint)
        # Until there is a checkpoint of its own: what an earlier, failed start has left may be
        # another model's.
        if initial is not None and newest_checkpoint(folder) is None:
            save_checkpoint(folder / INITIAL, initial.model, initial.meta, {})
        run_id = _run_id(folder, config, spec, uri, {**(tags or {}), "data": fingerprint})
        with tracking.failing(uri, run_id):
            rows = Counter(_labels(store)[0][SPLIT].to_pylist())
            used = {split: rows[split] for split in ("train", "valid")}
            tracking.log_datasets(uri, run_id, store, fingerprint, used)

            if alone:
                _train_here(config, store, folder, uri, run_id)
            else:
                # Ray Train takes seconds to import.
                from lfmim.distributed.workers import fit

                fit(config, store, folder, uri, run_id)

            last = latest_checkpoint(folder)
            if last is None:
                raise RuntimeError(f"run {name} ended without a checkpoint; see {folder}")
            meta = load_meta(last)
            # Where no score was a number no epoch is the best; the last is registered.
            best = epoch_folder(folder, meta.best_epoch) if meta.best_epoch >= 0 else last
            load = functools.partial(load_split, store, "valid", config.model, config.train.cache)
            calibrate(best, load)
            keep_later(best, meta.history)
            registered = tracking.register(
                uri,
                run_id,
                best,
                model_name=config.tracking.model_name,
                example=_example(store),
                data_fingerprint=fingerprint,
                tags=version_tags,
            )
            # Only here is the run FINISHED: without a registered model it is of no use to anybody.
            tracking.finish_run(uri, run_id, meta)
    return TrainResult(name, uri, run_id, best, meta, registered)


def check_run(config: ExperimentConfig, folder: Path, fingerprint: str) -> None:
    """Raise InputError if the folder holds epochs of another model, recipe or data, or more than
    are asked for."""
    last = newest_checkpoint(folder)
    # Nothing is trained that could be mixed up.
    if last is None:
        return

    meta, known = load_meta(last), _known_run(folder)
    was, now = _settings(meta.config), _settings(config)
    differs = [
        f"{k}: was {was[k]}, now {v}" for k, v in now.items() if was[k] != v and k not in MAY_CHANGE
    ]

    # Older records lack it; the MLflow run has it as a tag. Where both are gone only the encoders
    # can be compared.
    data = known.get("data")
    if known and not data:
        data = tracking.logged_tag(known["uri"], known["run_id"], "data")
    if data not in (None, fingerprint):
        differs.append(
            f"data: was {known.get('store', meta.config.store)} ({data}), now {config.store} "
            f"({fingerprint}), which is other data: utterances, splits, labels or encoders differ"
        )
    elif data is None:
        differs += [
            f"store: {d}" for d in meta.spec.differences(FeatureSpec.load(as_path(config.store)))
        ]
        differs += meta.labels.differences(LabelSpec.load(as_path(config.store)))

    if config.train.epochs < meta.epoch:
        differs.append(f"train.epochs: {meta.epoch} are trained, now {config.train.epochs}")

    if differs:
        raise InputError(
            f"run {folder.name} in {folder.parent} was trained otherwise. {'; '.join(differs)}. "
            "Use what it was trained with and only more epochs, or another --run.name"
        )

    # Asked now, not when the run is registered, after hours of training.
    if meta.best_epoch >= 0 and not (epoch_folder(folder, meta.best_epoch) / META).is_file():
        raise InputError(
            f"{epoch_folder(folder, meta.best_epoch)}: the best checkpoint of the run is gone; "
            f"delete {folder} to train it again, or use another --run.name"
        )


def _settings(config: ExperimentConfig) -> dict[str, Any]:
    """What a run trains and how, by dotted names: `init`, `model.d_model`, `train.lr`, ..."""
    raw = to_dict(config)
    return {"init": config.init} | flatten(raw["model"], "model.") | flatten(raw["train"], "train.")


def _train_here(config: ExperimentConfig, store: Path, folder: Path, uri: str, run_id: str) -> None:
    """The run in this process. Raises InputError if the loss does not stay finite."""
    with (
        say_when_stuck("train", "step", config.run.stuck_minutes),
        watch("train", config.train.epochs, "epochs") as show,
        tracking.system_metrics(uri, run_id),
    ):

        def after_epoch(report: EpochReport) -> None:
            use = gpu_percent()
            show(
                report.epoch + 1,
                f"{report.samples_per_second:.0f} samples/s, validation score {report.score:.3f}",
                **({} if use is None else {"gpu_percent": use}),
            )

        begun = latest_checkpoint(folder)
        show(load_meta(begun).epoch if begun else 0)
        device = worker_device(config.run)
        try:
            run_tracked_epochs(
                config, store, folder, uri, run_id, device=device, after_epoch=after_epoch
            )
        except NonFiniteLossError as error:
            raise InputError(str(error)) from error


def _known_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run; {} if there is none yet. Raises InputError if it is damaged."""
    path = folder / RUN_FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        # Named one by one: a record without them is damaged.
        return {"uri": known["uri"], "run_id": known["run_id"], **known}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not the record of a run ({error!r}); delete {folder} to train it again, or "
            "use another --run.name"
        ) from error


def _run_id(
    folder: Path, config: ExperimentConfig, spec: FeatureSpec, uri: str, tags: dict[str, str]
) -> str:
    """The MLflow run of this training run, RUNNING: made once, found again by a rerun.

    Where it cannot go on (deleted, on another server) a new one takes over its epochs.
    """
    known, last = _known_run(folder), latest_checkpoint(folder)
    history = load_meta(last).history if last else []

    if known.get("uri") == uri and tracking.resume_run(uri, known["run_id"], config, history):
        run_id = str(known["run_id"])
    else:
        if known.get("uri") == uri:
            # Not where the tracker is another one: there nobody knows that run.
            tags = {tracking.CONTINUES: known["run_id"], **tags}
        run_id = tracking.start_run(config, spec, uri=uri, run_name=folder.name, tags=tags)
        tracking.log_history(uri, run_id, history)

    # Written anew by every rerun: the store may have moved.
    record = {
        "uri": uri,
        "run_id": run_id,
        "data": tags["data"],
        "store": str(as_path(config.store).resolve()),
    }
    write_text(folder / RUN_FILE, json.dumps(record))
    return run_id


def _example(store: Path) -> Any:
    import pandas as pd

    table = read_table(store, [ID, *FEATURE_COLUMNS.values()], "valid").slice(0, 2)
    return pd.DataFrame(
        {
            FEATURE_COLUMNS[m]: [
                None if x is None else x[:4].astype("float32").tolist() for x in sequences(table, m)
            ]
            for m in MODALITIES
            if FEATURE_COLUMNS[m] in table.column_names
        }
    )
