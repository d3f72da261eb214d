"""MLflow runs: params, metrics, figures, benchmarks and sweeps."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from lfmim.config import (
    ExperimentConfig,
    TrackingConfig,
    config_hash,
    experiment_from_dict,
    flatten,
    to_dict,
)
from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.experiments.comparison import Results, systems_of
from lfmim.experiments.search import TrialRecord
from lfmim.experiments.systems import BenchmarkConfig
from lfmim.former_names import translate
from lfmim.metrics import metrics_from_dict
from lfmim.schema import SPEC_FILE, FeatureSpec, InputError
from lfmim.storage import local_path
from lfmim.tracking.database import BUSY_SECONDS, TRACKING_ERRORS, connect, database_file, gist, use
from lfmim.tracking.server import check_server, told
from lfmim.training.checkpoint import CheckpointMeta
from lfmim.training.loop import EpochReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG_FILE = "config.yaml"
PARENT_RUN = "mlflow.parentRunId"  # how MLflow marks a nested run
CONTINUES = "continues"
"""Tag: the run whose epochs this one has taken over, since that one could not go on itself."""
MESSAGE = "message"
"""Tag: why a run failed."""
LONGEST_TAG = 5000
REPORT_SUFFIXES = (".csv", ".html", ".json", ".md", ".png", ".tex")
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
for _name in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # what they log is raised, too


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """config.uri, else $MLFLOW_TRACKING_URI, else a SQLite file in `storage` (absolute: workers
    have another cwd).

    Raises InputError for a folder that the URI of an SQLite file cannot name.
    """
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    folder = local_path(storage, "--storage").resolve()
    if wrong := re.search(r"\?|%[0-9A-Fa-f]{2}", str(folder)):
        raise InputError(
            f"{folder}: the {wrong[0]!r} in its name means something else in the URI of its MLflow "
            "database; use a folder without it, or name a server by MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{folder}/mlflow.db"


def start_run(
    config: ExperimentConfig, spec: FeatureSpec, *, uri: str, run_name: str, tags: dict[str, str]
) -> str:
    """Create a run with params, config and FeatureSpec; returns its id."""
    run_id = _create_run(uri, config, config.tracking, run_name, tags)
    connect(uri).log_text(run_id, spec.to_json(), SPEC_FILE)
    return run_id


@told
def prepare(uri: str, tracking: TrackingConfig) -> None:
    """Make what is missing of database and experiment. Raises InputError, before any work and
    within seconds, if runs cannot be tracked there."""
    check_server(uri, create=True)
    _experiment(connect(uri, writing=True), uri, tracking.experiment)


def _alive(client: MlflowClient, run_id: str) -> Run | None:
    """The run, unless it or its experiment was deleted."""
    try:
        run = client.get_run(run_id)
        experiment = client.get_experiment(run.info.experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if "deleted" in (run.info.lifecycle_stage, experiment.lifecycle_stage) else run


@told
def reopen_run(uri: str, run_id: str) -> bool:
    """Make a run RUNNING again; False if it was deleted."""
    client = connect(uri, writing=True)
    run = _alive(client, run_id)
    if run is None:
        return False
    client.update_run(run_id, "RUNNING")
    if MESSAGE in run.data.tags:
        client.delete_tag(run_id, MESSAGE)
    return True


@told
def resume_run(
    uri: str, run_id: str, config: ExperimentConfig, history: Sequence[Mapping[str, Any]]
) -> bool:
    """`reopen_run` with `config` as the run's params, and with all epochs of `history`
    (EpochReports as dicts).

    False also for a run that is in another experiment, knows more epochs than are to be continued,
    or has params that its server does not let change.
    """
    client = connect(uri, writing=True)
    run = _alive(client, run_id)
    if (
        run is None
        or client.get_experiment(run.info.experiment_id).name != config.tracking.experiment
    ):
        return False
    done = int(run.data.metrics.get("epochs_done", 0))
    params = {k: str(v) for k, v in flatten(to_dict(config)).items()}
    changed = {k: v for k, v in params.items() if run.data.params.get(k, v) != v}
    if done > len(history) + 1 or (changed and not _change_params(uri, run_id, changed)):
        if run.info.status == "RUNNING":  # it was killed, and is not gone on with
            client.set_terminated(run_id, "KILLED")
        return False
    reopen_run(uri, run_id)
    _log_config(client, run_id, to_dict(config))
    log_history(uri, run_id, history[done:])
    return True


def _change_params(uri: str, run_id: str, params: Mapping[str, str]) -> bool:
    """MLflow lets no param change, and more epochs are the same run: in a database of ours they do
    change. False for a server's."""
    path = database_file(uri)
    if path is None:
        return False
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database, database:
        database.executemany(
            "UPDATE params SET value = ? WHERE run_uuid = ? AND key = ?",
            [(value, run_id, key) for key, value in params.items()],
        )
    return True


@told
def log_datasets(
    uri: str, run_id: str, store: Path, fingerprint: str, rows: Mapping[str, int]
) -> None:
    """The store's splits as the run's input datasets: `rows` per split; the digest is the store's
    fingerprint."""
    source = json.dumps({"uri": store.resolve().as_uri()})
    inputs = [
        DatasetInput(
            Dataset(
                f"{store.name}-{split}",
                fingerprint,
                "local",
                source,
                profile=json.dumps({"rows": count}),
            ),
            [InputTag("mlflow.data.context", split)],
        )
        for split, count in rows.items()
    ]
    connect(uri).log_inputs(run_id, datasets=inputs)


@told
def find_run(uri: str, tracking: TrackingConfig, name: str) -> str | None:
    """Id of the experiment's finished run of that name, if there is one."""
    check_server(uri, create=True)
    path = database_file(uri)
    if path is not None and not path.exists():
        return None
    client = connect(uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return None
    found = client.search_runs(
        [experiment.experiment_id],
        f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'",
        max_results=1,
    )
    return str(found[0].info.run_id) if found else None


@told
def _create_run(
    uri: str, config: Any, tracking: TrackingConfig, run_name: str, tags: dict[str, str]
) -> str:
    """A run with the config as params and as config.yaml; its experiment is made where it is
    missing.

    Raises InputError if the tracking server cannot be reached or written to.
    """
    check_server(uri, create=True)
    client = connect(uri, writing=True)
    experiment_id = _experiment(client, uri, tracking.experiment)
    run_id = str(
        client.create_run(experiment_id, run_name=run_name, tags={**tags, **git_tag()}).info.run_id
    )
    _log_config(client, run_id, config if isinstance(config, dict) else to_dict(config))
    return run_id


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Id of the experiment, made if it is missing. Raises InputError if it was deleted."""
    found = client.get_experiment_by_name(name)
    if found is None:
        # its artifacts go beside it rather than into whatever the cwd is
        database = database_file(uri)
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise  # not another job that made it at the same time
    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"tracking.experiment: {name!r} was deleted from {uri}; restore it there (mlflow "
            f"experiments restore --experiment-id {found.experiment_id}), or name another"
        )
    return str(found.experiment_id)


def _log_config(client: MlflowClient, run_id: str, raw: dict[str, Any]) -> None:
    _log_params(client, run_id, raw)
    client.log_text(run_id, yaml.safe_dump(raw, sort_keys=False), CONFIG_FILE)


@told
def log_comparison(uri: str, config: BenchmarkConfig, results: Results, folder: Path) -> str:
    """A run for a finished benchmark with test metrics per system and head (mean over seeds) and
    the report's files, and inside it a run per system and seed. Logged once: the same results again
    give the run that is there."""
    key = config_hash(*([r["system"], r["seed"], r["config"], r["test"]] for r in results))
    client = connect(uri, writing=True)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    if experiment is not None:
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.benchmark = '{key}' and attributes.status = 'FINISHED'",
            max_results=1,
        )
        if found:
            return str(found[0].info.run_id)
    run_id = _create_run(
        uri, config, config.tracking, f"benchmark-{folder.name}", {"kind": "benchmark"}
    )
    with failing(uri, run_id):
        for result in results:
            tags = {PARENT_RUN: run_id, "system": result["system"]}
            trial = _create_run(
                uri,
                experiment_from_dict(result["config"], stored=True),
                config.tracking,
                f"{result['system']}-{result['seed']}",
                tags,
            )
            metrics = [m for entry in result["history"] for m in _epoch_metrics(entry)]
            metrics += [
                Metric(f"test/{head}/{name}", value, _now(), 0)
                for head, scores in result["test"].items()
                for name, value in scores.items()
                if isinstance(value, float)
            ]
            metrics += [
                Metric(name, result[name], _now(), 0)
                for name in ("parameters", "flops", "seconds", "best_epoch")
            ]
            for start in range(0, len(metrics), 1000):  # the most that one request may hold
                client.log_batch(trial, metrics=metrics[start : start + 1000])
            client.set_terminated(trial)
        for system in systems_of(results):
            runs = [r["test"] for r in results if r["system"] == system]
            for head in runs[0]:
                for name, value in runs[0][head].items():
                    if isinstance(value, float):
                        mean = sum(t[head][name] for t in runs) / len(runs)
                        client.log_metric(run_id, f"{system}/{head}/{name}", mean)
        for path in sorted(
            p for p in folder.iterdir() if p.is_file() and p.suffix in REPORT_SUFFIXES
        ):
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

    It ends FINISHED, KILLED (interrupted) or FAILED, as the block does. A tracking server that
    fails after the start costs figures, not the job.
    """
    run_id = _create_run(uri, dict(params), tracking, name, {"kind": name.split("-")[0]})
    client = connect(uri)

    def log(figures: Mapping[str, float], step: int) -> None:
        metrics = [Metric(k, float(v), _now(), step) for k, v in figures.items()]
        _attempt(uri, lambda: client.log_batch(run_id, metrics=metrics))

    with failing(uri, run_id):
        yield log
    _attempt(uri, lambda: client.set_terminated(run_id))


def _attempt(uri: str, call: Callable[[], object]) -> None:
    """A tracker that fails costs what was to be logged, not the job."""
    try:
        call()
    except (*TRACKING_ERRORS, InputError) as error:
        logging.getLogger(__name__).warning("tracking server %s: %s", uri, gist(error))


def latest_metrics(uri: str, run_id: str) -> dict[str, float]:
    """The run's metrics as last logged; `gpu_percent` is the mean over its GPUs, where there are
    any."""
    metrics = dict(connect(uri).get_run(run_id).data.metrics)
    use = [
        v
        for k, v in metrics.items()
        if k.startswith("system/") and k.endswith("_utilization_percentage") and "gpu_" in k
    ]
    return {**metrics, "gpu_percent": sum(use) / len(use)} if use else metrics


@contextlib.contextmanager
def system_metrics(uri: str, run_id: str, node: str | None = None) -> Iterator[None]:
    """CPU, memory, disk and GPU figures of this process's machine into the run while the block
    runs, as `system/<figure>` or, with `node`, `system/<node>/<figure>`. The run's state is not
    theirs: each node does this."""
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run_id, sampling_interval=2, resume_logging=True, node_id=node, tracking_uri=uri
    )
    monitor.start()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]


@told
def log_epoch(uri: str, run_id: str, report: EpochReport) -> None:
    """Losses and metrics per head of one epoch, as `train/<head>/loss`, `valid/<head>/accuracy`,
    ..."""
    log_history(uri, run_id, [report.as_dict()])


def log_history(uri: str, run_id: str, history: Sequence[Mapping[str, Any]]) -> None:
    """`log_epoch` for EpochReports as dicts."""
    client = connect(uri)
    for entry in history:
        client.log_batch(run_id, metrics=_epoch_metrics(entry))


def _epoch_metrics(entry: Mapping[str, Any]) -> list[Metric]:
    """An EpochReport as a dict -> MLflow metrics."""
    values = {
        "lr": entry["lr"],
        "samples_per_second": entry["samples_per_second"],
        "epoch_seconds": entry["seconds"],
        "epochs_done": entry["epoch"] + 1,
        "score": entry["score"],
    }
    for part in ("train", "valid"):
        for head, metrics in entry[part].items():
            if metrics["count"]:
                values |= {
                    f"{part}/{head}/{n}": v for n, v in metrics_from_dict(metrics).scalars().items()
                }
    return [Metric(k, v, _now(), entry["epoch"]) for k, v in values.items()]


@told
def logged_trials(uri: str, parent: str) -> dict[int, str]:
    """Trial number -> child run, of the trials of a sweep that are in MLflow already. Unfinished
    rests are deleted."""
    client = connect(uri)
    known = {}
    token: str | None = None
    while True:
        page = client.search_runs(
            [client.get_run(parent).info.experiment_id],
            f"tags.`{PARENT_RUN}` = '{parent}'",
            max_results=1000,
            page_token=token,
        )
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


@told
def log_trial(uri: str, parent: str, record: TrialRecord) -> str:
    """A finished trial as a child run of the sweep: config, curves, outcome; returns its id."""
    client = connect(uri)
    tags = {PARENT_RUN: parent, "trial": str(record.number), "state": record.state, **git_tag()}
    run = client.create_run(
        client.get_run(parent).info.experiment_id, run_name=f"trial-{record.number:04d}", tags=tags
    )
    run_id = str(run.info.run_id)
    _log_params(client, run_id, {k: record.config[k] for k in ("model", "train")})
    client.log_text(run_id, yaml.safe_dump(record.config, sort_keys=False), CONFIG_FILE)
    for entry in record.history:
        client.log_batch(run_id, metrics=_epoch_metrics(entry))
    if record.score is not None:
        client.log_metric(run_id, "best_score", record.score)
        client.log_metric(run_id, "best_epoch", record.best_epoch)
    if record.message:
        client.set_tag(run_id, MESSAGE, record.message)
    client.set_terminated(
        run_id, "FINISHED" if record.state in ("finished", "stopped") else "FAILED"
    )
    return run_id


def logged_tag(uri: str, run_id: str, name: str) -> str | None:
    """A run's tag; None without it or the run."""
    try:
        return connect(uri).get_run(run_id).data.tags.get(name)
    except (MlflowException, InputError):
        return None


def logged_config(uri: str, run_id: str) -> dict[str, Any]:
    """The config that a run has logged, as plain data, under the names of today. Raises InputError
    if it is gone."""
    try:
        return translate(
            yaml.safe_load(mlflow.artifacts.load_text(_artifact_uri(uri, run_id, CONFIG_FILE)))
        )[0]
    except TRACKING_ERRORS as error:
        raise InputError(
            f"run {run_id} in {uri}: its {CONFIG_FILE} cannot be read ({gist(error)}); delete the "
            "run there, and it is recorded again"
        ) from error


def _artifact_uri(uri: str, run_id: str, name: str) -> str:
    use(uri)
    return f"runs:/{run_id}/{name}"


@told
def log_sweep(
    uri: str,
    run_id: str,
    *,
    metrics: Mapping[str, float],
    figures: Mapping[str, Figure],
    texts: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Close a sweep's parent run with its figures (figures/<name>.png), files, metrics and tags."""
    client = connect(uri)
    for name, figure in figures.items():
        client.log_figure(run_id, figure, f"figures/{name}.png")
    for name, text in texts.items():
        client.log_text(run_id, text, name)
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    for name, tag in tags.items():
        client.set_tag(run_id, name, tag)
    client.set_terminated(run_id)


@told
def log_best(uri: str, run_id: str, number: int, score: float) -> None:
    """Best score so far after trial `number`, into the parent run."""
    connect(uri).log_metric(run_id, "best_score", score, step=number)


@told
def finish_run(uri: str, run_id: str, meta: CheckpointMeta) -> None:
    """Log the figures and close the run: the last thing that is done for it."""
    client = connect(uri)
    if meta.best_epoch >= 0:
        client.log_figure(run_id, learning_curves(meta.history), "figures/learning_curves.png")
        best = meta.history[meta.best_epoch]["valid"]
        client.log_figure(run_id, confusion_matrices(best), "figures/confusion_valid.png")
        client.log_metric(run_id, "best_score", meta.best_score)
        client.log_metric(run_id, "best_epoch", meta.best_epoch)
    client.set_terminated(run_id)


@contextlib.contextmanager
def failing(uri: str, run_id: str) -> Iterator[None]:
    """A block that raises closes the run: KILLED if the user stopped it, else FAILED with the
    reason as the run's tag `message`."""

    def close(error: BaseException) -> None:
        client = connect(uri)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            client.set_terminated(run_id, "KILLED")
        else:
            client.set_tag(run_id, MESSAGE, f"{type(error).__name__}: {error}"[-LONGEST_TAG:])
            client.set_terminated(run_id, "FAILED")

    try:
        yield
    except BaseException as error:
        _attempt(uri, functools.partial(close, error))
        raise


def _log_params(client: MlflowClient, run_id: str, tree: dict[str, Any]) -> None:
    params = [Param(key, str(value)) for key, value in flatten(tree).items()]
    for start in range(0, len(params), 100):  # the most that one request may hold
        client.log_batch(run_id, params=params[start : start + 100])


def git_tag() -> dict[str, str]:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return {}  # a job submitted without its .git folder
    return {"git_commit": done.stdout.strip()}
