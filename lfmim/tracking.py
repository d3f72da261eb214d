"""MLflow: runs, metrics, figures and the model registry. Besides predictor.py the only file that imports mlflow."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
import mlflow
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import lfmim
from lfmim.config import BenchmarkConfig, ExperimentConfig, TrackingConfig, to_dict
from lfmim.evaluation.comparison import Results, systems_of
from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.predictor import Predictor
from lfmim.schema import EMOTIONS, FEATURE_COLUMNS, HEADS, SPEC_FILE, FeatureSpec, InputError
from lfmim.training.checkpoint import META, WEIGHTS, CheckpointMeta, is_better
from lfmim.training.loop import EpochReport

CHAMPION = "champion"
REPORT_SUFFIXES = (".csv", ".html", ".json", ".md", ".png", ".tex")
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "safetensors", "matplotlib")
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """config.uri, else $MLFLOW_TRACKING_URI, else a SQLite file in `storage` (absolute: workers have another cwd)."""
    default = f"sqlite:///{Path(storage).resolve()}/mlflow.db"
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def start_run(config: ExperimentConfig, spec: FeatureSpec, *, uri: str, run_name: str, tags: dict[str, str]) -> str:
    """Create a run with params, config and FeatureSpec; returns its id."""
    run_id = _create_run(uri, config, config.tracking, run_name, tags)
    MlflowClient(uri).log_text(run_id, spec.to_json(), SPEC_FILE)
    return run_id


def _create_run(uri: str, config: Any, tracking: TrackingConfig, run_name: str, tags: dict[str, str]) -> str:
    """A run with the config as params and as config.yaml; its experiment is made where it is missing."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        location = None
        if uri.startswith("sqlite:"):  # beside the database rather than in whatever the cwd is
            location = (Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts").as_uri()
        experiment_id = client.create_experiment(tracking.experiment, artifact_location=location)
    else:
        experiment_id = experiment.experiment_id
    run_id = str(client.create_run(experiment_id, run_name=run_name, tags={**tags, **_git_tag()}).info.run_id)
    raw = config if isinstance(config, dict) else to_dict(config)
    for key, value in _flatten(raw).items():
        client.log_param(run_id, key, value)
    client.log_text(run_id, yaml.safe_dump(raw, sort_keys=False), "config.yaml")
    return run_id


def log_comparison(uri: str, config: BenchmarkConfig, results: Results, folder: Path) -> str:
    """A run for a finished benchmark: test metrics per system and head (mean over seeds) and the report's files."""
    run_id = _create_run(uri, config, config.tracking, f"benchmark-{folder.name}", {"kind": "benchmark"})
    client = MlflowClient(uri)
    for system in systems_of(results):
        runs = [r["test"] for r in results if r["system"] == system]
        for head in runs[0]:
            for name in ("accuracy", "weighted_f1", "macro_f1"):
                client.log_metric(run_id, f"{system}/{head}/{name}", sum(t[head][name] for t in runs) / len(runs))
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in REPORT_SUFFIXES):
        client.log_artifact(run_id, str(path), "report")
    client.set_terminated(run_id)
    return run_id


@contextlib.contextmanager
def job_run(
    uri: str, tracking: TrackingConfig, name: str, params: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """A run for a job that trains nothing (extraction, prediction); yields `log(figures, step)`.

    It ends FINISHED, KILLED (interrupted) or FAILED, as the block does.
    """
    run_id, client = _create_run(uri, dict(params), tracking, name, {"kind": name.split("-")[0]}), MlflowClient(uri)

    def log(figures: Mapping[str, float], step: int) -> None:
        now = int(pd.Timestamp.now("UTC").timestamp() * 1000)
        client.log_batch(run_id, metrics=[Metric(k, float(v), now, step) for k, v in figures.items()])

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run_id, status)


def latest_metrics(uri: str, run_id: str) -> dict[str, float]:
    """The run's metrics as last logged; `gpu_percent` is the mean over its GPUs, where there are any."""
    metrics = dict(MlflowClient(uri).get_run(run_id).data.metrics)
    use = [v for k, v in metrics.items() if k.startswith("system/") and k.endswith("_utilization_percentage")
           and "gpu_" in k]
    return {**metrics, "gpu_percent": sum(use) / len(use)} if use else metrics


@contextlib.contextmanager
def system_metrics(uri: str, run_id: str, node: str | None = None) -> Iterator[None]:
    """CPU, memory, disk and GPU figures of this process's machine into the run while the block runs, as
    `system/<figure>` or, with `node`, `system/<node>/<figure>`."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_system_metrics_node_id(node)  # type: ignore[no-untyped-call]
    mlflow.set_system_metrics_sampling_interval(2)  # type: ignore[no-untyped-call]
    with mlflow.start_run(run_id=run_id, log_system_metrics=True):
        yield


def log_epoch(uri: str, run_id: str, report: EpochReport) -> None:
    """Losses and metrics per head of one epoch, as `train/<head>/loss`, `valid/<head>/accuracy`, ..."""
    values = {"lr": report.lr, "samples_per_second": report.samples_per_second, "epoch_seconds": report.seconds,
              "epochs_done": report.epoch + 1, "score": report.score}
    for part, heads in (("train", report.train), ("valid", report.valid)):
        for head, metrics in heads.items():
            if metrics.count:
                values |= {f"{part}/{head}/{name}": value for name, value in metrics.scalars().items()}
    now = int(pd.Timestamp.now("UTC").timestamp() * 1000)
    MlflowClient(uri).log_batch(run_id, metrics=[Metric(k, v, now, report.epoch) for k, v in values.items()])


def finish_run(uri: str, run_id: str, meta: CheckpointMeta | None, *, killed: bool = False) -> None:
    """Log the figures and close the run; `meta` None marks it failed, or killed."""
    client = MlflowClient(uri)
    if meta is not None and meta.best_epoch >= 0:
        client.log_figure(run_id, learning_curves(meta.history), "figures/learning_curves.png")
        best = meta.history[meta.best_epoch]["valid"]
        client.log_figure(run_id, confusion_matrices(best), "figures/confusion_valid.png")
        client.log_metric(run_id, "best_score", meta.best_score)
        client.log_metric(run_id, "best_epoch", meta.best_epoch)
    client.set_terminated(run_id, "FINISHED" if meta else "KILLED" if killed else "FAILED")


@dataclasses.dataclass(frozen=True)
class RegisteredVersion:
    """A registered model version and what became of the champion alias."""

    uri: str
    version: str
    promoted: bool
    reason: str


def register(
    uri: str, run_id: str, checkpoint: Path, *, model_name: str, example: pd.DataFrame, data_fingerprint: str
) -> RegisteredVersion:
    """Package the checkpoint as a pyfunc model, register it, and move `champion` if validation improves.

    `example`: a few rows of feature columns (nested lists). Scores are compared on the same data only; one run is
    registered once.
    """
    client = MlflowClient(uri)
    mlflow.set_tracking_uri(uri)
    meta_raw = json.loads((checkpoint / META).read_text(encoding="utf-8"))
    spec = FeatureSpec.from_json(json.dumps(meta_raw["spec"]))
    found = client.search_model_versions(f"name='{model_name}' and run_id='{run_id}'")
    if found:
        entry = found[0]
    else:
        with tempfile.TemporaryDirectory() as scratch, mlflow.start_run(run_id=run_id):
            package = Path(scratch) / "checkpoint"
            package.mkdir()
            for name in (WEIGHTS, META):  # no optimizer state: nobody resumes from the registry
                shutil.copy(checkpoint / name, package / name)
            code = Path(scratch) / "code" / "lfmim"
            source = Path(lfmim.__file__).parent
            shutil.copytree(source, code, ignore=shutil.ignore_patterns("__pycache__", "distributed", "tracking.py"))
            info = mlflow.pyfunc.log_model(
                name="model", python_model=str(source / "predictor.py"), artifacts={"checkpoint": str(package)},
                code_paths=[str(code)], signature=_signature(), input_example=example,
                pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
                metadata={"emotions": list(EMOTIONS), "feature_spec": spec.fingerprint},
            )
        tags = {"score": repr(meta_raw["best_score"]), "data": data_fingerprint, "feature_spec": spec.fingerprint,
                **_git_tag()}
        with contextlib.suppress(MlflowException):  # there already
            client.create_registered_model(model_name)
        entry = client.create_model_version(model_name, info.model_uri, run_id=run_id, tags=tags)
    number = str(entry.version)
    try:
        champion = client.get_model_version_by_alias(model_name, CHAMPION)
    except MlflowException:
        champion = None
    score = float(entry.tags["score"])
    promoted, reason = True, "there was no champion"
    if champion is not None and str(champion.version) == number:
        reason = "it is the champion already"
    elif champion is not None:
        before = float(champion.tags.get("score", "nan"))
        if champion.tags.get("data") != data_fingerprint:
            promoted, reason = False, (f"the champion (version {champion.version}) was validated on other data, so the "
                                       "scores cannot be compared")
        else:
            promoted = is_better(score, before)
            reason = f"validation accuracy {score:.4f} against the champion's {before:.4f}"
    if promoted:
        client.set_registered_model_alias(model_name, CHAMPION, number)
    ref = f"models:/{model_name}@{CHAMPION}" if promoted else f"models:/{model_name}/{number}"
    return RegisteredVersion(ref, number, promoted, reason)


def load_predictor(uri: str, model_ref: str) -> Predictor:
    """The predictor of `models:/<name>@champion` or `models:/<name>/<version>`. InputError if there is none."""
    mlflow.set_tracking_uri(uri)
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=model_ref, tracking_uri=uri)
    except MlflowException as error:
        raise InputError(f"{model_ref}: not in the registry at {uri}: {str(error).splitlines()[0]}. Train and "
                         "register a model with jobs/train.py, or set --tracking.uri or MLFLOW_TRACKING_URI") from error
    return Predictor.from_checkpoint(Path(folder) / "artifacts" / "checkpoint")


def _signature() -> ModelSignature:
    sequence = Array(Array(DataType.double))
    inputs = Schema([ColSpec(sequence, name=c, required=False) for c in FEATURE_COLUMNS.values()])
    outputs = Schema([
        spec for h in HEADS for spec in (
            ColSpec(DataType.string, name=f"label_{h}", required=False),
            ColSpec(Array(DataType.double), name=f"probabilities_{h}", required=False),
        )
    ])
    return ModelSignature(inputs, outputs, ParamSchema([ParamSpec("feature_spec", DataType.string, "")]))


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _git_tag() -> dict[str, str]:
    try:
        done = subprocess.run(["git", "-C", str(Path(lfmim.__file__).parent), "rev-parse", "HEAD"],
                              capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}  # a job submitted without its .git folder
    return {"git_commit": done.stdout.strip()}
