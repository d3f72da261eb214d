"""A hyperparameter sweep: search, retrain the winner over seeds, register it; resumable.

The trials are in trials.py, what they try in order.py; here is the sweep around them: its identity,
its MLflow runs, the winner.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from lfmim import tracking
from lfmim.config import ExperimentConfig, config_hash, experiment_from_dict, hash_parts
from lfmim.distributed.order import Order, RepeatableOrder, TuneOrder
from lfmim.distributed.trainer import TrainResult, check_experiment, data_fingerprint, train_run
from lfmim.distributed.trials import OnTrial, Trials
from lfmim.experiments.search import (
    Params,
    Space,
    TrialRecord,
    TuneConfig,
    best_trial,
    grid_points,
    read_space,
    suggest,
    with_params,
)
from lfmim.experiments.sweep_report import importances, sweep_figures, sweep_page, sweep_table
from lfmim.former_names import FORMER
from lfmim.progress import share
from lfmim.schema import FeatureSpec, InputError
from lfmim.storage import as_path, output_folder, write_text

SWEEP = "sweep.json"


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """A finished sweep, its winner and what became of it."""

    name: str
    folder: Path
    tracking_uri: str
    run_id: str
    records: list[TrialRecord]
    winner: TrialRecord
    seeds: list[TrialRecord]
    """The winner's config with the other seeds."""
    retrained: TrainResult
    reproduced: bool
    """Retraining from the logged config gave the trial's score and loss in every digit."""
    importances: dict[str, float]

    @property
    def page(self) -> Path:
        """The sweep's report."""
        return self.folder / "index.html"

    @property
    def seed_scores(self) -> list[float]:
        """Best validation score per seed that ran to its end, the trial's own seed first."""
        rest = [r.score for r in self.seeds if r.state == "finished" and r.score is not None]
        return [self.retrained.meta.best_score, *rest]


def check_tune(config: TuneConfig) -> Space:
    """The search space of the sweep; the tracker's experiment is made if it is missing.

    Raises InputError for what can be told before a cluster is started.
    """
    base = with_params(config, {})
    space = read_space(config.space, base)
    # One more than the grid: trial 0 is the config as given.
    if config.search == "grid" and len(grid_points(space)) + 1 > config.trials:
        raise InputError(
            f"trials: the grid has {len(grid_points(space))} points besides the config as given; "
            f"set --trials {len(grid_points(space)) + 1} or thin it by a search space"
        )

    check_experiment(base)
    identity = _identity(config, space)
    _known_sweep(config, identity)
    tracking.prepare(_uri(config), config.tracking)
    return space


def describe_sweep(config: TuneConfig) -> str:
    """One line: what will run with what, and where its results go."""
    run = config.run
    folder = _folder(config, _identity(config, check_tune(config)))
    output_folder(str(folder), "--storage")
    return (
        f"sweep of {config.trials} trials of {config.model.name} by {config.search}, "
        f"{share(run.cpus_per_worker, run.gpus_per_worker)} a trial, "
        f"{'cuda' if run.gpus_per_worker else 'cpu'} | {folder} | mlflow {_uri(config)}"
    )


def tune_distributed(
    config: TuneConfig,
    *,
    on_start: Callable[[str, int, int], None] = lambda name, done, window: None,
    on_trial: OnTrial = lambda record, records: None,
) -> SweepResult:
    """Search, retrain the winner over seeds, register it. `on_start(name, trials ended, window)`.

    Raises InputError for a sweep that is there already (without `resume`) or was made with another
    config.
    """
    space = check_tune(config)
    identity, uri = _identity(config, space), _uri(config)
    folder = _folder(config, identity)
    known = _known_sweep(config, identity)
    state = known or _new_sweep(config, identity)

    # Deleted there: the records of the trials have it all.
    if not tracking.reopen_run(uri, state["run_id"]):
        state = _new_sweep(config, identity, window=int(state["window"]))

    with tracking.failing(uri, state["run_id"]):
        return _sweep(config, space, folder, state, known is not None, on_start, on_trial)


def _sweep(
    config: TuneConfig,
    space: Space,
    folder: Path,
    state: dict[str, Any],
    resumed: bool,
    on_start: Callable[[str, int, int], None],
    on_trial: OnTrial,
) -> SweepResult:
    """`tune_distributed` on a sweep whose record `state` is there."""
    store = as_path(config.store).resolve()
    name, uri = folder.name, _uri(config)
    parent, window = state["run_id"], int(state["window"])
    total = config.trials if config.search != "grid" else len(grid_points(space)) + 1

    order = _order(config, space, window, resumed)
    sweep = Trials(config, folder / "trials", total, order, on_trial)
    logged = tracking.logged_trials(uri, parent)
    on_start(name, len(sweep.records), window)

    def log(record: TrialRecord) -> None:
        if record.number not in logged:
            logged[record.number] = tracking.log_trial(uri, parent, record)
            if record.state == "finished":
                tracking.log_best(uri, parent, record.number, best_trial(sweep.ended).score or 0.0)

    # Ended but not in MLflow: the job was killed between the two, or the sweep's run was deleted.
    for record in sweep.ended:
        log(record)
    sweep.log = log
    sweep.run(store)
    records = sweep.ended
    winner = best_trial(records)

    # From what MLflow holds and by the path of lfmim train: the sweep checks in passing that its
    # record is enough to repeat its winner.
    chosen = experiment_from_dict(tracking.logged_config(uri, logged[winner.number]))
    retrained, reproduced = _retrain(config, chosen, name, parent, winner)
    seeds = _other_seeds(config, chosen, folder, winner, on_trial)
    seeds.run(store)

    result = SweepResult(
        name,
        folder,
        uri,
        parent,
        records,
        winner,
        seeds.ended,
        retrained,
        reproduced,
        importances(space, records),
    )
    _log_result(config, result, space)
    return result


def _order(config: TuneConfig, space: Space, window: int, resumed: bool) -> Order:
    if not config.repeatable:
        # Drawn anew after a restart, or it would try its first values again.
        return TuneOrder(config, space, seed=None if resumed else config.train.seed)

    base = with_params(config, {})

    def plan(number: int, earlier: Sequence[TrialRecord]) -> Params:
        return suggest(space, config.search, config.train.seed, number, base, earlier)

    return RepeatableOrder(config, window, plan)


def _retrain(
    config: TuneConfig, chosen: ExperimentConfig, name: str, parent: str, winner: TrialRecord
) -> tuple[TrainResult, bool]:
    """The winner's config trained and registered by the path of lfmim train, and whether score,
    loss and epoch are the trial's in every digit."""
    run = dataclasses.replace(config.run, name=f"{name}-trial-{winner.number:04d}")
    retrained = train_run(dataclasses.replace(chosen, run=run), tags={tracking.PARENT_RUN: parent})
    again = retrained.meta
    loss = again.history[again.best_epoch]["valid"][chosen.train.selection]["loss"]
    now = (again.best_score, loss, again.best_epoch)
    return retrained, now == (winner.score, winner.loss, winner.best_epoch)


def _other_seeds(
    config: TuneConfig,
    chosen: ExperimentConfig,
    folder: Path,
    winner: TrialRecord,
    on_trial: OnTrial,
) -> Trials:
    """The winner's config with the `seeds` - 1 seeds after its own, none stopped early."""
    parts = {f.name: getattr(chosen, f.name) for f in _PARTS}
    # Without a scheduler: the spread over seeds is that of whole trainings.
    to_end = dataclasses.replace(config, scheduler="none", **parts)

    def plan(number: int, earlier: Sequence[TrialRecord]) -> Params:
        return {"train.seed": chosen.train.seed + number + 1}

    home = folder / f"seeds-{winner.number:04d}"
    # A window wider than there are trials: none waits for another.
    order = RepeatableOrder(to_end, config.seeds, plan)
    return Trials(to_end, home, config.seeds - 1, order, on_trial)


_PARTS = [f for f in dataclasses.fields(ExperimentConfig) if f.name in ("model", "train")]


def _identity(config: TuneConfig, space: Space) -> dict[str, Any]:
    """What a sweep's trials depend on, save its window and length."""
    halving = [config.scheduler, config.grace, config.reduction]
    # Sweeps older than this field are repeatable ones.
    order = {} if config.repeatable else {"repeatable": False}
    return {
        **order,
        **hash_parts(config),
        "data": data_fingerprint(as_path(config.store).resolve()),
        "search": config.search,
        "scheduler": halving if config.scheduler == "asha" else ["none"],
        # Under the names of 0.1, so that a sweep begun then is known again.
        "space": {FORMER.get(f, f): [repr(d.distribution), list(d.grid)] for f, d in space.items()},
        # Stacked trials are gone, but the hash of every sweep since 0.1 holds this.
        "packed": 0,
        # Threads and devices turn a score's last digits, and so, at times, who wins.
        "cpus": config.run.cpus_per_worker,
        "gpus": config.run.gpus_per_worker,
    }


def _folder(config: TuneConfig, identity: dict[str, Any]) -> Path:
    return as_path(config.run.storage).resolve() / (
        config.run.name or f"sweep-{config_hash(identity)}"
    )


def _uri(config: TuneConfig) -> str:
    return tracking.tracking_uri(config.tracking, config.run.storage)


def _known_sweep(config: TuneConfig, identity: dict[str, Any]) -> dict[str, Any] | None:
    """`sweep.json` of the sweep to be resumed; None if there is none yet."""
    folder = _folder(config, identity)
    if not (folder / SWEEP).is_file():
        return None

    try:
        state: dict[str, Any] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
        state = {name: state[name] for name in ("run_id", "uri", "window", "identity")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / SWEEP}: not the record of a sweep ({error!r}); move {folder} away, or use "
            "another --run.name"
        ) from error

    if not config.resume:
        raise InputError(
            f"{folder}: there is a sweep already; add --resume to continue it, or start another "
            "with --run.name"
        )

    # By way of JSON, like the recorded one: tuples are lists there.
    now, then = json.loads(json.dumps(identity)), state["identity"]
    differs = [k for k in {**now, **then} if now.get(k) != then.get(k)]
    differs += ["tracking.uri"] if state["uri"] != _uri(config) else []
    differs += ["window"] if config.window not in (0, state["window"]) else []

    if differs:
        raise InputError(
            f"{folder}: the sweep there was made with other {', '.join(differs)}; use the same, or "
            "another --run.name"
        )
    return state


def _new_sweep(config: TuneConfig, identity: dict[str, Any], window: int = 0) -> dict[str, Any]:
    folder, uri = _folder(config, identity), _uri(config)
    run_id = tracking.start_run(
        config,
        FeatureSpec.load(as_path(config.store)),
        uri=uri,
        run_name=folder.name,
        tags={"kind": "sweep", "data": identity["data"]},
    )

    # Once: it belongs to the sweep and stays when it is resumed on more slots or fewer, or the
    # trials would be others.
    if config.repeatable and not window:
        window = config.window or _window(config)

    state = {"run_id": run_id, "uri": uri, "window": window, "identity": identity}
    write_text(folder / SWEEP, json.dumps(state, indent=1))
    return state


def _window(config: TuneConfig) -> int:
    """Twice the trials the cluster holds at once: a long trial then holds up few others."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    run = config.run
    fits = have.get("CPU", 1) / run.cpus_per_worker
    if run.gpus_per_worker:
        fits = min(fits, have.get("GPU", 0) / run.gpus_per_worker)
    return 2 * max(1, int(fits))


def _log_result(config: TuneConfig, result: SweepResult, space: Space) -> None:
    winner, scores = result.winner, result.seed_scores
    metrics = {
        "winner_score": winner.score or 0.0,
        "winner_mean_over_seeds": sum(scores) / len(scores),
    }

    # Trial 0, the config as it stands: what the search gained over it.
    given = result.records[0].score
    if given is not None:
        metrics["given_score"] = given
    metrics |= {f"importance/{field}": share for field, share in result.importances.items()}

    figures = sweep_figures(space, result.records)
    page = sweep_page(
        f"Sweep {result.name}", figures, result.records, winner, result.retrained.meta, scores
    )
    write_text(result.page, page)
    tracking.log_sweep(
        result.tracking_uri,
        result.run_id,
        metrics=metrics,
        figures=figures,
        texts={
            "trials.csv": sweep_table(result.records).to_csv(index=False),
            result.page.name: page,
        },
        tags={
            "winner": str(winner.number),
            "reproduced": str(result.reproduced).lower(),
            "registered_version": result.retrained.registered.version,
        },
    )
