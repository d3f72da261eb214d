"""MLflow runs: params, metrics, figures, benchmarks and sweeps."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
import mlflow
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

import lfmim
from lfmim.config import ExperimentConfig, TrackingConfig, config_hash, experiment_from_dict, to_dict
from lfmim.evaluation.comparison import Results, systems_of
from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.metrics import metrics_from_dict
from lfmim.schema import SPEC_FILE, FeatureSpec
from lfmim.tracking.server import TRACKING_ERRORS, check_server, gist, server_error, told
from lfmim.training.checkpoint import CheckpointMeta
from lfmim.training.loop import EpochReport
from lfmim.training.search import TrialRecord
from lfmim.training.systems import BenchmarkConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG_FILE = "config.yaml"
PARENT_RUN = "mlflow.parentRunId"  # how MLflow marks a nested run
REPORT_SUFFIXES = (".csv", ".html", ".json", ".md", ".png", ".tex")
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


@told
def find_run(uri: str, tracking: TrackingConfig, name: str) -> str | None:
    """Id of the experiment's finished run of that name, if there is one."""
    check_server(uri, create=True)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id],
                               f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _create_run(uri: str, config: Any, tracking: TrackingConfig, run_name: str, tags: dict[str, str]) -> str:
    """A run with the config as params and as config.yaml; its experiment is made where it is missing.

    Raises InputError if the tracking server cannot be reached or written to.
    """
    check_server(uri, create=True)
    try:
        return _try_create_run(uri, config, tracking, run_name, tags)
    except TRACKING_ERRORS as error:
        raise server_error(uri, error) from error


def _try_create_run(uri: str, config: Any, tracking: TrackingConfig, run_name: str, tags: dict[str, str]) -> str:
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
    run_id = str(client.create_run(experiment_id, run_name=run_name, tags={**tags, **git_tag()}).info.run_id)
    raw = config if isinstance(config, dict) else to_dict(config)
    _log_params(client, run_id, raw)
    client.log_text(run_id, yaml.safe_dump(raw, sort_keys=False), CONFIG_FILE)
    return run_id


@told
def log_comparison(uri: str, config: BenchmarkConfig, results: Results, folder: Path) -> str:
    """A run for a finished benchmark with test metrics per system and head (mean over seeds) and the report's files,
    and inside it a run per system and seed. Logged once: the same results again give the run that is there."""
    key = config_hash(*([r["system"], r["seed"], r["config"], r["test"]] for r in results))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    if experiment is not None:
        found = client.search_runs([experiment.experiment_id],
                                   f"tags.benchmark = '{key}' and attributes.status = 'FINISHED'", max_results=1)
        if found:
            return str(found[0].info.run_id)
    run_id = _create_run(uri, config, config.tracking, f"benchmark-{folder.name}", {"kind": "benchmark"})
    for result in results:
        tags = {PARENT_RUN: run_id, "system": result["system"]}
        trial = _create_run(uri, experiment_from_dict(result["config"]), config.tracking,
                            f"{result['system']}-{result['seed']}", tags)
        metrics = [m for entry in result["history"] for m in _epoch_metrics(entry)]
        metrics += [Metric(f"test/{head}/{name}", value, _now(), 0) for head, scores in result["test"].items()
                    for name, value in scores.items() if isinstance(value, float)]
        metrics += [Metric(name, result[name], _now(), 0) for name in ("parameters", "flops", "seconds", "best_epoch")]
        for start in range(0, len(metrics), 1000):  # the most that one request may hold
            client.log_batch(trial, metrics=metrics[start : start + 1000])
        client.set_terminated(trial)
    for system in systems_of(results):
        runs = [r["test"] for r in results if r["system"] == system]
        for head in runs[0]:
            for name, value in runs[0][head].items():
                if isinstance(value, float):
                    client.log_metric(run_id, f"{system}/{head}/{name}", sum(t[head][name] for t in runs) / len(runs))
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in REPORT_SUFFIXES):
        client.log_artifact(run_id, str(path), "report")
    client.set_tag(run_id, "benchmark", key)
    client.set_terminated(run_id)
    return run_id


def _now() -> int:
    return int(pd.Timestamp.now("UTC").timestamp() * 1000)


@contextlib.contextmanager
def job_run(
    uri: str, tracking: TrackingConfig, name: str, params: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """A run for a job that trains nothing (extraction, prediction); yields `log(figures, step)`.

    It ends FINISHED, KILLED (interrupted) or FAILED, as the block does. A tracking server that fails after the start
    costs figures, not the job.
    """
    run_id, client = _create_run(uri, dict(params), tracking, name, {"kind": name.split("-")[0]}), MlflowClient(uri)

    def attempt(call: Callable[[], object]) -> None:
        try:
            call()
        except TRACKING_ERRORS as error:
            logging.getLogger(__name__).warning("tracking server %s: %s", uri, gist(error))

    def log(figures: Mapping[str, float], step: int) -> None:
        metrics = [Metric(k, float(v), _now(), step) for k, v in figures.items()]
        attempt(lambda: client.log_batch(run_id, metrics=metrics))

    status = "FAILED"
    try:
        yield log
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        attempt(lambda: client.set_terminated(run_id, status))


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
    MlflowClient(uri).log_batch(run_id, metrics=_epoch_metrics(report.as_dict()))


def _epoch_metrics(entry: Mapping[str, Any]) -> list[Metric]:
    """An EpochReport as a dict -> MLflow metrics."""
    values = {"lr": entry["lr"], "samples_per_second": entry["samples_per_second"], "epoch_seconds": entry["seconds"],
              "epochs_done": entry["epoch"] + 1, "score": entry["score"]}
    for part in ("train", "valid"):
        for head, metrics in entry[part].items():
            if metrics["count"]:
                values |= {f"{part}/{head}/{n}": v for n, v in metrics_from_dict(metrics).scalars().items()}
    return [Metric(k, v, _now(), entry["epoch"]) for k, v in values.items()]


def logged_trials(uri: str, parent: str) -> dict[int, str]:
    """Trial number -> child run, of the trials of a sweep that are in MLflow already. Unfinished rests are deleted."""
    client = MlflowClient(uri)
    known = {}
    token: str | None = None
    while True:
        page = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`{PARENT_RUN}` = '{parent}'",
                                  max_results=1000, page_token=token)
        for run in page:
            if "trial" not in run.data.tags:
                continue
            if run.info.status == "RUNNING":  # the sweep was killed while logging it
                client.delete_run(run.info.run_id)
            else:
                known[int(run.data.tags["trial"])] = str(run.info.run_id)
        token = page.token
        if not token:
            return known


def log_trial(uri: str, parent: str, record: TrialRecord) -> str:
    """A finished trial as a child run of the sweep: config, curves, outcome; returns its id."""
    client = MlflowClient(uri)
    tags = {PARENT_RUN: parent, "trial": str(record.number), "state": record.state, **git_tag()}
    run = client.create_run(client.get_run(parent).info.experiment_id, run_name=f"trial-{record.number:04d}", tags=tags)
    run_id = str(run.info.run_id)
    _log_params(client, run_id, {k: record.config[k] for k in ("model", "train")})
    client.log_text(run_id, yaml.safe_dump(record.config, sort_keys=False), CONFIG_FILE)
    for entry in record.history:
        client.log_batch(run_id, metrics=_epoch_metrics(entry))
    if record.score is not None:
        client.log_metric(run_id, "best_score", record.score)
        client.log_metric(run_id, "best_epoch", record.best_epoch)
    if record.message:
        client.set_tag(run_id, "message", record.message)
    client.set_terminated(run_id, "FINISHED" if record.state in ("finished", "stopped") else "FAILED")
    return run_id


def logged_config(uri: str, run_id: str) -> dict[str, Any]:
    """The config that a run has logged, as plain data."""
    return dict(yaml.safe_load(mlflow.artifacts.load_text(_artifact_uri(uri, run_id, CONFIG_FILE))))


def _artifact_uri(uri: str, run_id: str, name: str) -> str:
    mlflow.set_tracking_uri(uri)
    return f"runs:/{run_id}/{name}"


def log_sweep(
    uri: str, run_id: str, *, metrics: Mapping[str, float], figures: Mapping[str, Figure], texts: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Close a sweep's parent run with its figures (figures/<name>.png), files, metrics and tags."""
    client = MlflowClient(uri)
    for name, figure in figures.items():
        client.log_figure(run_id, figure, f"figures/{name}.png")
    for name, text in texts.items():
        client.log_text(run_id, text, name)
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    for name, tag in tags.items():
        client.set_tag(run_id, name, tag)
    client.set_terminated(run_id)


def log_best(uri: str, run_id: str, number: int, score: float) -> None:
    """Best score so far after trial `number`, into the parent run."""
    MlflowClient(uri).log_metric(run_id, "best_score", score, step=number)


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


def _log_params(client: MlflowClient, run_id: str, tree: dict[str, Any]) -> None:
    params = [Param(key, str(value)) for key, value in _flatten(tree).items()]
    for start in range(0, len(params), 100):  # the most that one request may hold
        client.log_batch(run_id, params=params[start : start + 100])


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def git_tag() -> dict[str, str]:
    try:
        done = subprocess.run(["git", "-C", str(Path(lfmim.__file__).parent), "rev-parse", "HEAD"],
                              capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}  # a job submitted without its .git folder
    return {"git_commit": done.stdout.strip()}
