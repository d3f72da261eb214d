"""The MLflow model registry: versions, model cards, champion and challenger, pulling."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

import lfmim
from lfmim.evaluation.model_card import model_card
from lfmim.predictor import Predictor
from lfmim.schema import EMOTIONS, FEATURE_COLUMNS, HEADS, SENTIMENT_COLUMNS, InputError
from lfmim.tracking.database import connect, one_at_a_time
from lfmim.tracking.runs import CONTINUES, git_tag, told
from lfmim.training.checkpoint import META, WEIGHTS, CheckpointMeta, is_better, load_meta

CHAMPION, CHALLENGER = "champion", "challenger"
CHAMPIONS = "champions"
"""Tag of the registered model: the versions that were champion, oldest first, the present one last."""
CARD = "model_card.md"
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "safetensors", "matplotlib")


@dataclasses.dataclass(frozen=True)
class RegisteredVersion:
    """A registered model version and what became of the champion alias."""

    uri: str
    version: str
    promoted: bool
    reason: str


@told
@one_at_a_time
def register(
    uri: str, run_id: str, checkpoint: Path, *, model_name: str, example: pd.DataFrame, data_fingerprint: str
) -> RegisteredVersion:
    """Package the checkpoint as a pyfunc model with its card, register it, and move `champion` if validation improves.

    A new version that does not become champion becomes `challenger`.
    `example`: a few rows of feature columns (nested lists). Scores are compared on the same data only; the best
    checkpoint of a run, and of those it continues, is registered once.
    """
    client = _client(uri)
    meta = load_meta(checkpoint)
    found = [v for run in _lineage(client, run_id)
             for v in client.search_model_versions(f"name='{model_name}' and run_id='{run}'")
             if v.tags.get("score") == repr(meta.best_score)]  # one that is better is another checkpoint
    if found:
        entry = found[0]
    else:
        tags = {"score": repr(meta.best_score), "data": data_fingerprint, "feature_spec": meta.spec.fingerprint,
                **git_tag()}
        card = model_card(meta, name=model_name, run_id=run_id, tags=tags)
        with tempfile.TemporaryDirectory() as scratch:
            package = Path(scratch) / "checkpoint"
            package.mkdir()
            for name in (WEIGHTS, META):  # no optimizer state: nobody resumes from the registry
                shutil.copy(checkpoint / name, package / name)
            (Path(scratch) / CARD).write_text(card, encoding="utf-8")
            code = Path(scratch) / "code" / "lfmim"
            source = Path(lfmim.__file__).parent
            shutil.copytree(source, code, ignore=shutil.ignore_patterns("__pycache__", "distributed", "tracking"))
            model_id = _log_model(
                client, run_id, Path(scratch) / "model", meta, python_model=str(source / "predictor.py"),
                artifacts={"checkpoint": str(package), "model_card": str(Path(scratch) / CARD)},
                code_paths=[str(code)], signature=_signature(meta.config.model.task), input_example=example,
                pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
                metadata={"emotions": list(EMOTIONS), "feature_spec": meta.spec.fingerprint},
            )
            client.log_text(run_id, card, CARD)
        with contextlib.suppress(MlflowException):  # there already
            client.create_registered_model(model_name)
        entry = client.create_model_version(model_name, f"models:/{model_id}", run_id=run_id, tags=tags,
                                            description=card, model_id=model_id)
    number = str(entry.version)
    champion = _by_alias(client, model_name, CHAMPION)
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
            reason = f"validation score {score:.4f} against the champion's {before:.4f}"
    if promoted:
        set_champion(uri, model_name, number)
    elif not found:
        client.set_registered_model_alias(model_name, CHALLENGER, number)
    ref = f"models:/{model_name}@{CHAMPION}" if promoted else f"models:/{model_name}/{number}"
    return RegisteredVersion(ref, number, promoted, reason)


def _lineage(client: MlflowClient, run_id: str) -> Iterator[str]:
    """The run, the one it continues, and so on."""
    while run_id:
        yield run_id
        try:
            run_id = client.get_run(run_id).data.tags.get(CONTINUES, "")
        except MlflowException:
            return  # deleted for good


def _log_model(client: MlflowClient, run_id: str, folder: Path, meta: CheckpointMeta, **package: Any) -> str:
    """Save a pyfunc model (`package`: as `mlflow.pyfunc.save_model` takes it) by way of `folder` as a logged model of
    the run, with the params and the metrics of the epochs that led to it; returns its id.

    Not by `mlflow.pyfunc.log_model`: that wants an active run, which would be reopened, and ended, for it.
    """
    run = client.get_run(run_id)
    model = client.create_logged_model(run.info.experiment_id, name="model", source_run_id=run_id,
                                       params=run.data.params)
    try:
        mlflow.pyfunc.save_model(path=folder, mlflow_model=Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, run_id=run_id, model_id=model.model_id,
            metadata=package.pop("metadata")), **package)
        client.log_model_artifacts(model.model_id, str(folder))
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=max(meta.best_epoch, 0))])
        metrics = [Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id)
                   for key in run.data.metrics if not key.startswith("system/")
                   for m in client.get_metric_history(run_id, key) if m.step <= meta.best_epoch]
        for start in range(0, len(metrics), 1000):  # the most that one request may hold
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _client(uri: str) -> MlflowClient:
    """A client whose registry is that of `uri` too: MlflowClient(uri) alone takes the process's default registry."""
    mlflow.set_tracking_uri(uri)
    return connect(uri)


def _by_alias(client: MlflowClient, model_name: str, alias: str) -> ModelVersion | None:
    try:
        return client.get_model_version_by_alias(model_name, alias)
    except MlflowException:
        return None


@one_at_a_time
def set_champion(uri: str, model_name: str, number: str) -> None:
    """Point `champion` at a version, remember its predecessor for `rollback`; it is no challenger any more."""
    client = _client(uri)
    before, challenger = (_by_alias(client, model_name, alias) for alias in (CHAMPION, CHALLENGER))
    if before is not None and str(before.version) == number:
        return
    past = _champions(client, model_name)
    if before is not None and past[-1:] != [str(before.version)]:
        past.append(str(before.version))  # somebody moved the alias by hand
    client.set_registered_model_tag(model_name, CHAMPIONS, ",".join([*past, number]))
    client.set_registered_model_alias(model_name, CHAMPION, number)
    if challenger is not None and str(challenger.version) == number:
        client.delete_registered_model_alias(model_name, CHALLENGER)


@one_at_a_time
def rollback(uri: str, model_name: str) -> tuple[str, str]:
    """Make the champion's predecessor champion again, and the champion challenger; returns (from, to) versions.

    Can be repeated. Raises InputError if there is no predecessor.
    """
    client = _client(uri)
    champion = _by_alias(client, model_name, CHAMPION)
    if champion is None:
        raise InputError(f"{model_name}: no {CHAMPION} in the registry at {uri}")
    present = str(champion.version)
    alive = {str(v.version) for v in client.search_model_versions(f"name='{model_name}'")}
    past = [v for v in _champions(client, model_name) if v in alive]
    while past and past[-1] == present:
        past.pop()
    if not past:
        raise InputError(f"{model_name}: version {present} has no predecessor to go back to")
    client.set_registered_model_alias(model_name, CHAMPION, past[-1])
    client.set_registered_model_alias(model_name, CHALLENGER, present)
    client.set_registered_model_tag(model_name, CHAMPIONS, ",".join(past))
    return present, past[-1]


def _champions(client: MlflowClient, model_name: str) -> list[str]:
    tag = client.get_registered_model(model_name).tags.get(CHAMPIONS, "")
    return [v for v in tag.split(",") if v]


def resolve_version(uri: str, model_name: str, which: str) -> str | None:
    """The version number behind an alias or a number; None for an alias that is not set.

    Raises InputError for a number, or a model, that is not there.
    """
    client = _client(uri)
    if not which.isdigit():
        entry = _by_alias(client, model_name, which)
        return None if entry is None else str(entry.version)
    try:
        return str(client.get_model_version(model_name, which).version)
    except MlflowException as error:
        raise InputError(f"{model_name} version {which}: not in the registry at {uri}") from error


def load_predictor(uri: str, model_ref: str) -> Predictor:
    """The predictor of `models:/<name>@champion` or `models:/<name>/<version>`. InputError if there is none."""
    mlflow.set_tracking_uri(uri)
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=model_ref, tracking_uri=uri)
    except MlflowException as error:
        raise InputError(f"{model_ref}: not in the registry at {uri}: {str(error).splitlines()[0]}. Train and "
                         "register a model with jobs/train.py, or set --tracking.uri or MLFLOW_TRACKING_URI") from error
    return Predictor.from_checkpoint(Path(folder) / "artifacts" / "checkpoint")


def _signature(task: str) -> ModelSignature:
    sequence = Array(Array(DataType.double))
    inputs = Schema([ColSpec(sequence, name=c, required=False) for c in FEATURE_COLUMNS.values()])
    outputs = Schema([ColSpec(DataType.double, name=c, required=False) for c in SENTIMENT_COLUMNS.values()])
    if task == "emotion":
        outputs = Schema([
            spec for h in HEADS for spec in (
                ColSpec(DataType.string, name=f"label_{h}", required=False),
                ColSpec(Array(DataType.double), name=f"probabilities_{h}", required=False),
            )
        ])
    return ModelSignature(inputs, outputs, ParamSchema([ParamSpec("feature_spec", DataType.string, "")]))
