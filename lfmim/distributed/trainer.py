"""Training on Ray Train: the plain loop under DDP, with checkpoints, failures and tracking."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, config_hash, experiment_from_dict, to_dict
from lfmim.data.loading import check_labels, load_split
from lfmim.data.store import read_table, sequences
from lfmim.evaluation.report import write_text
from lfmim.models import MODELS
from lfmim.progress import share, watch
from lfmim.schema import FEATURE_COLUMNS, ID, LABEL_COLUMNS, MODALITIES, SENTIMENT_COLUMNS, SPLIT, FeatureSpec
from lfmim.tracking import RegisteredVersion
from lfmim.training.checkpoint import CheckpointMeta, load_meta
from lfmim.training.loop import DDP_OPTIONS, EpochReport, check_data, resolve_precision, train

RUN_FILE = "run.json"
SCORE = "score"
IMPROVED = "improved_score"
"""What Ray keeps checkpoints by: the score of an epoch that is strictly better than all before it, else NOT_BETTER. By
the score alone Ray would keep the last of equally good epochs, and `best_epoch` is the first."""
NOT_BETTER = -1e9  # finite: Ray writes it as JSON
POLL_SECONDS = 2.0


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
    spec = FeatureSpec.load(store)
    table = read_table(store, [SPLIT, *LABEL_COLUMNS.values(), *SENTIMENT_COLUMNS.values()])
    return config_hash(table.to_pydict(), spec.fingerprint)


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
    for split in ("train", "valid"):
        check_labels(store, split, model)
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
    name = run_name(config, check_experiment(config))
    return (f"train {config.model.name}: {c.workers} worker{'s' * (c.workers > 1)} x "
            f"{share(c.cpus_per_worker, c.gpus_per_worker)}, {'cuda' if gpu else 'cpu'}, precision {precision} | "
            f"checkpoints {storage / name} | "
            f"mlflow {tracking.tracking_uri(config.tracking, str(storage))}")


def train_distributed(config: ExperimentConfig, *, tags: Mapping[str, str] | None = None) -> TrainResult:
    """Train, track (a new MLflow run gets `tags`) and register. A rerun continues from the last checkpoint.

    Raises InputError for a store without the splits it needs, before any worker starts.
    """
    store, storage = Path(config.store).resolve(), Path(config.run.storage).resolve()
    spec = FeatureSpec.load(store)
    fingerprint = check_experiment(config)
    name, uri = run_name(config, fingerprint), tracking.tracking_uri(config.tracking, str(storage))
    folder = storage / name
    folder.mkdir(parents=True, exist_ok=True)
    run_id = _run_id(folder / RUN_FILE, config, spec, uri, name, {**(tags or {}), "data": fingerprint})

    c = config.run
    resources = {"CPU": c.cpus_per_worker}
    if c.gpus_per_worker:
        resources["GPU"] = c.gpus_per_worker
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"config": to_dict(config), "store": str(store), "uri": uri, "run_id": run_id},
        scaling_config=ScalingConfig(
            num_workers=c.workers, use_gpu=c.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=name, storage_path=str(storage), failure_config=FailureConfig(max_failures=c.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=c.keep_checkpoints, checkpoint_score_attribute=IMPROVED, checkpoint_score_order="max"
            ),
        ),
    )
    try:
        with _watched(uri, run_id, config.train.epochs):
            result = trainer.fit()
    except (KeyboardInterrupt, SystemExit) as stop:
        tracking.finish_run(uri, run_id, None, killed=True)
        if isinstance(stop, SystemExit):  # Ray Train's own answer to Ctrl-C: exit code 0
            raise KeyboardInterrupt from stop
        raise
    except BaseException:
        tracking.finish_run(uri, run_id, None)
        raise
    if not result.best_checkpoints or result.checkpoint is None:
        raise RuntimeError(f"run {name} ended without a checkpoint; see {folder}")
    scored = [(float(metrics[IMPROVED]), checkpoint) for checkpoint, metrics in result.best_checkpoints]
    best = Path(max(scored, key=lambda pair: pair[0])[1].path)
    last = load_meta(Path(result.checkpoint.path))
    tracking.finish_run(uri, run_id, last)
    registered = tracking.register(
        uri, run_id, best, model_name=config.tracking.model_name, example=_example(store), data_fingerprint=fingerprint
    )
    return TrainResult(name, uri, run_id, best, last, registered)


@contextlib.contextmanager
def _watched(uri: str, run_id: str, epochs: int) -> Iterator[None]:
    """Show the run's progress while the block runs. The workers may be on other machines: MLflow is what all share."""
    stop = threading.Event()

    def follow() -> None:
        with watch("train", epochs, "epochs") as show:
            while True:
                last = stop.wait(POLL_SECONDS)
                with contextlib.suppress(Exception):  # a tracker that is away for a moment must not end the training
                    m = tracking.latest_metrics(uri, run_id)
                    figures = {"gpu_percent": m["gpu_percent"]} if "gpu_percent" in m else {}
                    note = (f"{m['samples_per_second']:.0f} samples/s, validation score {m[SCORE]:.3f}"
                            if "epochs_done" in m else "starting workers")
                    show(int(m.get("epochs_done", 0)), note, **figures)
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)


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


def _train_worker(args: dict[str, Any]) -> None:
    """One DDP worker. Only the lead worker talks to MLflow and writes checkpoints."""
    config = experiment_from_dict(args["config"])
    context = ray.train.get_context()
    store, lead = Path(args["store"]), context.get_world_rank() == 0
    device = ray.train.torch.get_device()  # the CPU where a node's GPUs cannot be used
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))

    def on_epoch(report: EpochReport, save: Any) -> None:
        improved = report.score if report.best else NOT_BETTER
        metrics = {SCORE: report.score, IMPROVED: improved, "epoch": report.epoch}
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if lead:
                save(Path(folder))
                tracking.log_epoch(args["uri"], args["run_id"], report)
                checkpoint = Checkpoint.from_directory(folder)
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=f"epoch_{report.epoch:04d}"
                             if lead else None)

    def run(resume: Path | None) -> None:
        data = [load_split(store, split, config.model, config.train.cache) for split in ("train", "valid")]
        train(config, FeatureSpec.load(store), *data, device=device, wrap=_wrap, on_epoch=on_epoch, resume=resume)

    def run_tracked(resume: Path | None) -> None:
        if context.get_local_rank() == 0:  # one per node
            several = context.get_world_size() > context.get_local_world_size()
            node = f"node_{context.get_node_rank()}" if several else None
            with tracking.system_metrics(args["uri"], args["run_id"], node):
                run(resume)
        else:
            run(resume)

    latest = ray.train.get_checkpoint()
    if latest is None:
        run_tracked(None)
    else:
        with latest.as_directory() as folder:
            run_tracked(Path(folder))


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    if ray.train.get_context().get_world_size() == 1:
        return model
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=dict(DDP_OPTIONS))
