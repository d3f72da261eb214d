"""The MLflow model registry: versions, model cards, champion and challenger, pulling."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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

from lfmim.config import ExperimentConfig, experiment_from_dict
from lfmim.evaluation.model_card import model_card
from lfmim.models import MODELS
from lfmim.predictor import Predictor
from lfmim.registry import plugin_file
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    SENTIMENT_COLUMNS,
    InputError,
    LabelSpec,
    NothingThereError,
    default_labels,
    listed,
)
from lfmim.storage import as_path
from lfmim.tracking.database import TRACKING_ERRORS, connect, gist, one_at_a_time, use
from lfmim.tracking.metrics import log_metrics
from lfmim.tracking.runs import CONTINUES, git_tag, logged_config
from lfmim.tracking.server import check_server, other_places, shown, told, unanswered
from lfmim.training.checkpoint import (
    META,
    PLUGIN_FILE,
    WEIGHTS,
    CheckpointMeta,
    is_better,
    load_meta,
)

CHAMPION, CHALLENGER = "champion", "challenger"
CHAMPIONS = "champions"
"""Tag of the registered model: the versions that were champion, oldest first, the present one
last."""
CARD = "model_card.md"
MEASURED = {
    "score_head": "chosen by the {} head, the champion (version {}) by the {} one",
    "score_task": "of the {} task, the champion (version {}) of the {} task",
    "score_labels": "its labels are {}, those of the champion (version {}) {}",
    "score_split": "validated on the split {}, the champion (version {}) on {}",
}
"""Tags that say what a version's `score` measures -> what is said where the champion's is
another."""
PACKAGE = Path(__file__).resolve().parents[1]
# A database's integer. A greater number is an overflow there, not "no such version".
LAST_VERSION = 2**31 - 1
MODEL_REF = re.compile(r"models:/([^/@:]+)(?:@([^/@:]+)|/(\d+))")
IN_A_STORE = re.compile(r"(?!mlflow-artifacts:|file:)[a-z][a-z0-9]+://")
"""A folder in an object store, and none of the URIs that MLflow knows alone."""
REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "pyarrow", "safetensors", "matplotlib")


@dataclasses.dataclass(frozen=True)
class RegisteredVersion:
    """A registered model version and what became of the champion alias."""

    uri: str
    version: str
    promoted: bool
    reason: str

    def __str__(self) -> str:
        state = "champion" if self.promoted else "champion unchanged"
        return f"registered {self.uri} (version {self.version}; {state}: {self.reason})"


@told
@one_at_a_time
def register(
    uri: str,
    run_id: str,
    checkpoint: Path,
    *,
    model_name: str,
    example: pd.DataFrame,
    data_fingerprint: str,
    tags: Mapping[str, str] | None = None,
) -> RegisteredVersion:
    """Package the checkpoint as a pyfunc model with its card, register it, and move `champion` if
    validation improves.

    A new version gets `tags`, and its card shows those of model_card.SOURCE; one that does not
    become champion becomes `challenger`. `example`: a few rows of feature columns (nested lists).
    Scores are compared only if they measure the same: data, head, task, labels, split. The best
    checkpoint of a run, and of those it continues, is registered once. Raises InputError for a
    server that fails or is away.
    """
    client = _client(uri)
    meta = load_meta(checkpoint)

    found = [
        v
        for run in _lineage(client, run_id)
        for v in client.search_model_versions(f"name='{model_name}' and run_id='{run}'")
        # A rerun with more epochs may have found a better one: that is another checkpoint, and
        # another version.
        if v.tags.get("score") == repr(meta.best_score)
    ]
    entry = (
        found[0]
        if found
        else _new_version(
            client, run_id, checkpoint, meta, model_name, example, data_fingerprint, tags or {}
        )
    )

    number = str(entry.version)
    champion = _find(client, model_name, CHAMPION)
    promoted, reason = True, "there was no champion"
    if champion is not None and str(champion.version) == number:
        reason = "it is the champion already"
    elif champion is not None:
        promoted, reason = _beats(
            uri, entry, _measured(meta.config, meta.labels), champion, data_fingerprint
        )

    if promoted:
        set_champion(uri, model_name, number)
    # Not in a rerun: a later version may be the challenger by now.
    elif not found:
        client.set_registered_model_alias(model_name, CHALLENGER, number)
    ref = f"models:/{model_name}@{CHAMPION}" if promoted else f"models:/{model_name}/{number}"
    return RegisteredVersion(ref, number, promoted, reason)


def _new_version(
    client: MlflowClient,
    run_id: str,
    checkpoint: Path,
    meta: CheckpointMeta,
    model_name: str,
    example: pd.DataFrame,
    data_fingerprint: str,
    more: Mapping[str, str],
) -> ModelVersion:
    """The checkpoint, packaged as a logged model of the run and registered from there."""
    tags = {
        **more,
        "score": repr(meta.best_score),
        "data": data_fingerprint,
        "feature_spec": meta.spec.fingerprint,
        **_measured(meta.config, meta.labels),
        **git_tag(),
    }

    card = model_card(meta, name=model_name, run_id=run_id, tags=tags)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / CARD).write_text(card, encoding="utf-8")
        model_id = _log_model(
            client,
            run_id,
            folder / "model",
            meta,
            python_model=str(PACKAGE / "predictor.py"),
            artifacts={
                "checkpoint": str(_slim_checkpoint(checkpoint, meta, folder)),
                "model_card": str(folder / CARD),
            },
            code_paths=[str(_code(folder))],
            signature=_signature(meta.config.model.task),
            input_example=example,
            # Without the local part: `2.11.0+cpu` names a build that no index has.
            pip_requirements=[f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS],
            metadata={
                "emotions": list(meta.labels.classes),
                "feature_spec": meta.spec.fingerprint,
            },
        )
        client.log_text(run_id, card, CARD)

    # It may be there already, and two jobs may make it at once.
    with contextlib.suppress(MlflowException):
        client.create_registered_model(model_name)
    # `model_id`: a server refuses a version without it, the embedded registry does not.
    return client.create_model_version(
        model_name,
        f"models:/{model_id}",
        run_id=run_id,
        tags=tags,
        description=card,
        model_id=model_id,
    )


def _slim_checkpoint(checkpoint: Path, meta: CheckpointMeta, scratch: Path) -> Path:
    """A copy in `scratch` of what prediction needs of the checkpoint, a plug-in model's file
    included."""
    package = scratch / "checkpoint"
    package.mkdir()
    # No optimizer state: nobody resumes from the registry.
    for name in (WEIGHTS, META):
        (package / name).write_bytes((checkpoint / name).read_bytes())

    if plugin := plugin_file(MODELS[meta.config.model.name]):
        shutil.copy(plugin, package / PLUGIN_FILE)
    return package


def _code(scratch: Path) -> Path:
    """A copy in `scratch` of the package, without the rooms that prediction does not enter."""
    # They need more than REQUIREMENTS (Ray, for one), and no prediction calls them.
    left_out = shutil.ignore_patterns("__pycache__", "cli", "distributed", "inference", "tracking")
    return Path(shutil.copytree(PACKAGE, scratch / "code" / "lfmim", ignore=left_out))


def _lineage(client: MlflowClient, run_id: str) -> Iterator[str]:
    """The run, the one it continues, and so on."""
    while run_id:
        yield run_id
        try:
            run_id = client.get_run(run_id).data.tags.get(CONTINUES, "")
        except MlflowException:
            return  # deleted for good


def _log_model(
    client: MlflowClient, run_id: str, folder: Path, meta: CheckpointMeta, **package: Any
) -> str:
    """Save a pyfunc model (`package`: as `mlflow.pyfunc.save_model` takes it) by way of `folder` as
    a logged model of the run, with the params and the metrics of the epochs that led to it; returns
    its id."""
    # Not by `mlflow.pyfunc.log_model`: that wants an active run, which would be reopened, and
    # ended, for it.
    run = client.get_run(run_id)
    model = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=run.data.params
    )
    try:
        mlflow.pyfunc.save_model(
            path=folder,
            mlflow_model=Model(
                artifact_path=model.artifact_location,
                model_uuid=model.model_id,
                run_id=run_id,
                model_id=model.model_id,
                metadata=package.pop("metadata"),
            ),
            **package,
        )

        client.log_model_artifacts(model.model_id, str(folder))
        client.log_outputs(
            run_id, [LoggedModelOutput(model.model_id, step=max(meta.best_epoch, 0))]
        )

        # System figures stay out: their steps count looks at the machine, not epochs. So do
        # epochs after the best, of which the weights know nothing.
        metrics = [
            Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id)
            for key in run.data.metrics
            if not key.startswith("system/")
            for m in client.get_metric_history(run_id, key)
            if m.step <= meta.best_epoch
        ]
        log_metrics(client, run_id, metrics)
    # Ctrl-C as well: a model that stays PENDING looks as if somebody were still at it.
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _measured(config: ExperimentConfig, labels: LabelSpec) -> dict[str, str]:
    """What the validation score of a model trained by `config` measures, as tags; keyed as
    MEASURED."""
    task = config.model.task
    classes = ", ".join(labels.classes) if task == "emotion" else "scores in [-1, 1]"
    return {
        "score_head": config.train.selection,
        "score_task": task,
        "score_labels": classes,
        "score_split": "valid",
    }


def _beats(
    uri: str,
    entry: ModelVersion,
    measured: Mapping[str, str],
    champion: ModelVersion,
    data_fingerprint: str,
) -> tuple[bool, str]:
    """Whether the version's validation score is better than the champion's, and why (not)."""
    known = {k: champion.tags[k] for k in MEASURED if k in champion.tags}
    # Registered before there were such tags: what it was trained with is known to its run.
    if len(known) < len(MEASURED):
        try:
            trained = experiment_from_dict(logged_config(uri, str(champion.run_id)))
            known = _measured(trained, default_labels()) | known
        except (*TRACKING_ERRORS, InputError):
            return False, (
                f"it is not known what the score of the champion (version {champion.version}) "
                "measures, so the scores cannot be compared"
            )

    differs = [
        text.format(measured[k], champion.version, known[k])
        for k, text in MEASURED.items()
        if measured[k] != known[k]
    ]
    if champion.tags.get("data") != data_fingerprint:
        differs.append(f"the champion (version {champion.version}) was validated on other data")
    if differs:
        return False, "; ".join(differs) + ", so the scores cannot be compared"

    score, before = (float(v.tags.get("score", "nan")) for v in (entry, champion))
    reason = f"validation score {score:.4f} against the champion's {before:.4f}"
    return is_better(score, before), reason


def _client(uri: str) -> MlflowClient:
    """A client whose registry is that of `uri`, too.

    Raises InputError for a server that does not answer or a database that is not there.
    """
    check_server(uri)
    # MlflowClient(uri) alone asks the tracker at `uri`, but the process's default registry.
    use(uri)
    return connect(uri)


def _find(client: MlflowClient, model_name: str, which: str) -> ModelVersion | None:
    """The version of a number or an alias; None if it, or the model, is not there. Any other
    refusal is raised."""
    try:
        if not which.isdecimal():
            which = client.get_registered_model(model_name).aliases.get(which, "")
        if not which or int(which) > LAST_VERSION:
            return None
        return client.get_model_version(model_name, str(int(which)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def not_registered(uri: str, model_name: str, which: str) -> InputError:
    """What to say where the version or alias is not in the registry: what is there, the most alike
    first."""
    client = _client(uri)
    name = f"{model_name} version {which}" if which.isdecimal() else f"models:/{model_name}@{which}"

    models = {m.name: m for m in client.search_registered_models(max_results=1000)}
    kind = InputError if models else NothingThereError
    if not models:
        there = "no model is registered there; train and register one with lfmim train"
    elif model_name not in models:
        there = f"the models there: {listed(models, like=model_name)}"
    else:
        entries = client.search_model_versions(f"name='{model_name}'")
        numbers = sorted((int(v.version) for v in entries), reverse=True)
        aliases = [f"{a} (version {v})" for a, v in models[model_name].aliases.items()]
        there = (
            f"there are the versions {listed(map(str, numbers)) or 'none'} and the aliases "
            f"{listed(aliases, like=which) or 'none'}"
        )
        if which == CHALLENGER:
            there += "; the next version that is trained and not at once champion is the challenger"

    return kind(f"{name}: not in the registry at {shown(uri)}; {there}{other_places(uri)}")


@told
@one_at_a_time
def set_champion(uri: str, model_name: str, number: str) -> None:
    """Point `champion` at a version, remember its predecessor for `rollback`; it is no challenger
    any more."""
    client = _client(uri)
    before, challenger = (_find(client, model_name, alias) for alias in (CHAMPION, CHALLENGER))
    if before is not None and str(before.version) == number:
        return

    past = _champions(client, model_name)
    if before is not None and past[-1:] != [str(before.version)]:
        # Somebody moved the alias by hand.
        past.append(str(before.version))

    client.set_registered_model_tag(model_name, CHAMPIONS, ",".join([*past, number]))
    client.set_registered_model_alias(model_name, CHAMPION, number)
    if challenger is not None and str(challenger.version) == number:
        client.delete_registered_model_alias(model_name, CHALLENGER)


@told
@one_at_a_time
def rollback(uri: str, model_name: str) -> tuple[str, str]:
    """Make the champion's predecessor champion again, and the champion challenger; returns (from,
    to) versions.

    Can be repeated. Raises InputError if there is no predecessor.
    """
    client = _client(uri)
    champion = _find(client, model_name, CHAMPION)
    if champion is None:
        raise not_registered(uri, model_name, CHAMPION)

    present = str(champion.version)
    # A version that was deleted since cannot be gone back to.
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


@told
def resolve_version(uri: str, model_name: str, which: str) -> str | None:
    """The version number behind an alias or a number; None for an alias that is not set.

    Raises InputError for a number that is not there, and for a server that fails or is away.
    """
    entry = _find(_client(uri), model_name, which)
    if entry is None and which.isdecimal():
        raise not_registered(uri, model_name, which)
    return None if entry is None else str(entry.version)


@told
def resolve_reference(uri: str, model_ref: str) -> str:
    """What `load_predictor` takes, with the version in place of an alias: models:/<name>/<version>.
    What has no versions is left as it is. Raises InputError as `load_predictor` does."""
    found = MODEL_REF.fullmatch(model_ref)
    return _version_of(_client(uri), uri, found) if found else model_ref


def _version_of(client: MlflowClient, uri: str, found: re.Match[str]) -> str:
    name, which = found[1], found[2] or found[3]
    if (entry := _find(client, name, which)) is None:
        raise not_registered(uri, name, which)
    return f"models:/{name}/{entry.version}"


@told
def load_predictor(uri: str, model_ref: str) -> Predictor:
    """The predictor of `models:/<name>@champion`, `models:/<name>/<version>` or a folder: a
    downloaded model or a checkpoint.

    Raises InputError if there is none, naming what is there, and for a server that fails or is
    away.
    """
    if os.path.isdir(model_ref) or IN_A_STORE.match(model_ref):
        return Predictor.from_checkpoint(_checkpoint_in(as_path(model_ref)))
    found = MODEL_REF.fullmatch(model_ref)
    if not found and ":/" not in model_ref:
        raise InputError(
            f"model {model_ref}: no such folder; write models:/<name>@{CHAMPION} or "
            "models:/<name>/<version>, or name the folder of a model"
        )
    client = _client(uri)
    # Not found: another form that MLflow knows, a run's artifact, say.
    source = _version_of(client, uri, found) if found else model_ref
    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=uri)
    except TRACKING_ERRORS as error:
        if unanswered(error):
            raise
        raise InputError(
            f"{model_ref}: cannot be read from the registry at {shown(uri)}: {gist(error)}"
        ) from error

    return Predictor.from_checkpoint(Path(folder) / "artifacts" / "checkpoint")


def _checkpoint_in(folder: Path) -> Path:
    for place in (folder / "artifacts" / "checkpoint", folder):
        if (place / META).is_file():
            return place
    raise InputError(
        f"model {folder}: neither a downloaded model (artifacts/checkpoint) nor a checkpoint "
        f"({META}) is in that folder"
    )


def _signature(task: str) -> ModelSignature:
    # Lists of lists, not a tensor, whose signature has one length for all rows.
    sequence = Array(Array(DataType.double))
    # None is required, since a model may answer from any subset of the modalities.
    inputs = Schema([ColSpec(sequence, name=c, required=False) for c in FEATURE_COLUMNS.values()])
    outputs = Schema(
        [ColSpec(DataType.double, name=c, required=False) for c in SENTIMENT_COLUMNS.values()]
    )
    if task == "emotion":
        of_heads = [
            (
                ColSpec(DataType.string, name=f"label_{h}", required=False),
                ColSpec(Array(DataType.double), name=f"probabilities_{h}", required=False),
            )
            for h in HEADS
        ]
        outputs = Schema([spec for pair in of_heads for spec in pair])

    params = ParamSchema([ParamSpec("feature_spec", DataType.string, "")])
    return ModelSignature(inputs, outputs, params)
