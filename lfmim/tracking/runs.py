"""The life of an MLflow run: made with params, config and data sets, gone on with, finished or
failed."""

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
from typing import Any

import yaml

# MLflow's bar for every artifact would tear up our own progress line, and GitPython, which
# MLflow imports, complains at length of a machine without git.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lfmim import logs
from lfmim.config import (
    ExperimentConfig,
    TrackingConfig,
    flatten,
    to_dict,
)
from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.former_names import translate
from lfmim.schema import SPEC_FILE, FeatureSpec, InputError
from lfmim.storage import is_remote, named_path
from lfmim.tracking.database import BUSY_SECONDS, TRACKING_ERRORS, connect, database_file, gist, use
from lfmim.tracking.metrics import log_history, now
from lfmim.tracking.server import check_server, told
from lfmim.training.checkpoint import CheckpointMeta

CONFIG_FILE = "config.yaml"
CONTINUES = "continues"
"""Tag: the run whose epochs this one has taken over, since that one could not go on itself."""
MESSAGE = "message"
"""Tag: why a run failed."""
# What all of MLflow's stores take; some take more.
LONGEST_TAG = 5000
# After the import, which sets a level of its own. Alembic tells of every migration of a new
# database.
for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# A tracker that fails: the same is raised where we call it, and then said in one line.
for _name in ("mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def tracking_uri(config: TrackingConfig, storage: str) -> str:
    """config.uri, else $MLFLOW_TRACKING_URI, else a SQLite file in `storage` (absolute: workers
    have another cwd).

    Raises InputError for a folder that the URI of an SQLite file cannot name.
    """
    given = config.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given

    folder = named_path(storage, "--storage").resolve()
    if is_remote(folder):
        raise InputError(
            f"--storage {storage}: object storage holds no MLflow database; start a tracking "
            "server (`mlflow server`) and name it by --tracking.uri or MLFLOW_TRACKING_URI"
        )
    # In a URI `?` begins options and %41 is an A: SQLite would open another file.
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
    run_id = create_run(uri, config, config.tracking, run_name, tags)
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
        # A server that fails or refuses has not said that the run is gone.
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if "deleted" in (run.info.lifecycle_stage, experiment.lifecycle_stage) else run


@told
def reopen_run(uri: str, run_id: str) -> bool:
    """Make a run RUNNING again, without the reason of an earlier failure; False if it was
    deleted."""
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
    # One epoch more than there are checkpoints is a kill on Ray between the two, for there an
    # epoch is logged before its checkpoint is reported. More belong to a training whose
    # checkpoints were deleted.
    if done > len(history) + 1 or (changed and not _change_params(uri, run_id, changed)):
        # It was killed, and is not gone on with: nobody else would end it.
        if run.info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")
        return False

    reopen_run(uri, run_id)
    _log_config(client, run_id, to_dict(config))
    # Epochs that were saved but not yet logged when the run was killed.
    log_history(uri, run_id, history[done:])
    return True


def _change_params(uri: str, run_id: str, params: Mapping[str, str]) -> bool:
    """Change params of a run behind MLflow's back; False where they are a server's, so that they
    cannot be changed."""
    path = database_file(uri)
    if path is None:
        return False
    # MLflow lets no param change, but a run that is given more epochs is still the same run,
    # and its params should be true. Two context managers: the connection's own commits and does
    # not close.
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
    # No database yet means no run yet: the caller is about to make both.
    if path is not None and not path.exists():
        return None

    return finished_run(connect(uri), tracking.experiment, f"attributes.run_name = '{name}'")


def finished_run(client: MlflowClient, experiment: str, condition: str) -> str | None:
    """Id of a finished run of the experiment that meets `condition` (MLflow's filter), if there is
    one."""
    known = client.get_experiment_by_name(experiment)
    if known is None:
        return None

    found = client.search_runs(
        [known.experiment_id], f"{condition} and attributes.status = 'FINISHED'", max_results=1
    )
    return str(found[0].info.run_id) if found else None


@told
def create_run(
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
        database = database_file(uri)
        # Artifacts go beside our database: MLflow would put them below whatever folder the job
        # was started in.
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            # Another job made it at the same time: then it is there now, and may be used.
            if found is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    if found.lifecycle_stage == "deleted":
        raise InputError(
            f"tracking.experiment: {name!r} was deleted from {uri}; restore it there (mlflow "
            f"experiments restore --experiment-id {found.experiment_id}), or name another"
        )
    return str(found.experiment_id)


def _log_config(client: MlflowClient, run_id: str, raw: dict[str, Any]) -> None:
    log_params(client, run_id, raw)
    # The params are for MLflow's tables, and strings; the file is what is read back.
    client.log_text(run_id, yaml.safe_dump(raw, sort_keys=False), CONFIG_FILE)


@contextlib.contextmanager
def job_run(
    uri: str, tracking: TrackingConfig, name: str, params: Mapping[str, Any]
) -> Iterator[Callable[[Mapping[str, float], int], None]]:
    """A run for a job that trains nothing (extraction, prediction); yields `log(figures, step)`.

    It ends FINISHED, KILLED (interrupted) or FAILED, as the block does. A tracking server that
    fails after the start costs figures, not the job.
    """
    run_id = create_run(uri, dict(params), tracking, name, {"kind": name.split("-")[0]})
    client = connect(uri)

    def log(figures: Mapping[str, float], step: int) -> None:
        metrics = [Metric(k, float(v), now(), step) for k, v in figures.items()]
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
    # `runs:/` URIs name no tracker: MLflow resolves them by the process's default one.
    use(uri)
    return f"runs:/{run_id}/{name}"


@told
def finish_run(uri: str, run_id: str, meta: CheckpointMeta) -> None:
    """Log the figures and close the run: the last thing that is done for it."""
    client = connect(uri)
    # -1 for imported weights, which come without a history, and where no score was a number.
    if meta.best_epoch >= 0:
        figure = learning_curves(meta.history, meta.best_epoch)
        client.log_figure(run_id, figure, "figures/learning_curves.png")
        best = meta.history[meta.best_epoch]["valid"]
        client.log_figure(
            run_id, confusion_matrices(best, meta.labels), "figures/confusion_valid.png"
        )
        client.log_metric(run_id, "best_score", meta.best_score)
        client.log_metric(run_id, "best_epoch", meta.best_epoch)
    if meta.variant:
        client.set_tag(run_id, "variant", meta.variant)
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
            # The end of a long message: a traceback says last what happened.
            client.set_tag(run_id, MESSAGE, f"{type(error).__name__}: {error}"[-LONGEST_TAG:])
            client.set_terminated(run_id, "FAILED")

    logs.name_run(run_id)
    try:
        yield
    except BaseException as error:
        # What ended the block is to be told, not that the tracker could not take note of it.
        _attempt(uri, functools.partial(close, error))
        raise


def log_params(client: MlflowClient, run_id: str, tree: dict[str, Any]) -> None:
    params = [Param(key, str(value)) for key, value in flatten(tree).items()]
    # The most that MLflow takes in one request.
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])


def git_tag() -> dict[str, str]:
    """The commit of the code, as a tag; {} where there is no repository."""
    # mlflow.start_run sets such a tag; runs that a client creates, as ours, have none.
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        # A submitted job runs in a copy without the .git folder.
        return {}
    return {"git_commit": done.stdout.strip()}
