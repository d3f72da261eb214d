"""Search spaces over the config, and what to try next: pure functions of a seed and of earlier
trials (Optuna)."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

from lfmim.config import ExperimentConfig, check_choices, experiment_from_dict, flatten, to_dict
from lfmim.former_names import say_renamed, translate
from lfmim.schema import HEADS, InputError
from lfmim.text_files import read_yaml

# Optuna logs every study that is made, and one is made for each suggestion.
optuna.logging.set_verbosity(optuna.logging.WARNING)
Value = float | int | str | bool
Params = dict[str, Value]
"""Dotted config field -> value."""
STARTUP = 5
"""Trials drawn at random before TPE models the results."""
FIXED = {
    "train.seed": "a seed is not a hyperparameter; the winner is retrained over seeds",
    "train.selection": "it is the score itself",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(ExperimentConfig):
    """Everything `lfmim tune` needs: an experiment, and how to search around it.

    A trial runs in one process with run.cpus_per_worker and run.gpus_per_worker; train.seed seeds
    the search as well.
    """

    # No option of a sweep: every trial begins at weights of its own.
    init: str = dataclasses.field(default="", init=False)

    search: Literal["optuna", "random", "grid"] = "optuna"
    """optuna: TPE."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: a trial is stopped that is behind the trials before it (asynchronous successive
    halving)."""
    space: str = ""
    """YAML file of fields and values (lfmim/configs/search.yaml); empty: learning rate and the four
    β."""
    trials: int = 20
    """Trials in all; the first is the config as given. Raise it and resume to go on with a finished
    sweep."""
    grace: int = 3
    """asha: epochs before a trial may be stopped."""
    reduction: int = 3
    """asha: at `grace`, `grace` x `reduction`, ... epochs the best 1/`reduction` go on."""
    repeatable: bool = False
    """The same trials, scores and winner for the same seed and window, whatever the timing. At many
    slots this costs most of what Optuna and ASHA save: the first `window` trials know of no
    other."""
    window: int = 0
    """repeatable: a trial learns from those at least this far before it, so at most this many run
    at once; 0: twice what the cluster holds when the sweep begins."""
    seeds: int = 3
    """Seeds the winner is trained with, its own included."""
    resume: bool = False
    """Continue the sweep of this config if there is one; no ended trial is repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (
            ("trials", 1),
            ("grace", 1),
            ("reduction", 2),
            ("window", 0),
            ("seeds", 1),
        ):
            if getattr(self, field) < least:
                raise InputError(f"{field}: {getattr(self, field)} must be at least {least}")
        check_choices(self)

        # Silently ignored, it would be taken for a limit on what runs at once.
        if self.window and not self.repeatable:
            raise InputError(
                f"window: {self.window} means something in a repeatable sweep alone; add "
                "--repeatable, or leave it out: a trial then learns from all that ended"
            )
        # Several workers need a Ray Train of their own: six more processes for each trial, and Tune
        # can hang on their clean-up when it stops one.
        if self.run.workers != 1:
            raise InputError(
                "run.workers: a trial is one process; search with 1, then train the winner's "
                "config with more by lfmim train"
            )


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One searched field: Optuna's distribution, and its values on a grid (none: a range without
    `points`)."""

    distribution: BaseDistribution
    grid: tuple[Value, ...]


Space = dict[str, Dimension]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What became of one trial; `trial.json` of its folder."""

    number: int
    params: Params
    state: Literal["finished", "stopped", "diverged", "failed"]
    """stopped: by the scheduler; diverged: a loss that is not finite; failed: it died, or its
    values do not fit."""
    score: float | None = None
    """Best validation accuracy of the selection head; None without a finished epoch."""
    loss: float | None = None
    """That head's validation loss in the same epoch."""
    best_epoch: int = -1
    seconds: float = 0.0
    """Training time."""
    message: str = ""
    config: dict[str, Any]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """One entry per epoch (loop.EpochReport as a dict)."""

    @property
    def scores(self) -> list[float]:
        return [float(entry["score"]) for entry in self.history]


def read_trial(text: str) -> TrialRecord:
    """The record in a `trial.json`."""
    raw = json.loads(text)
    # Silently: the project wrote it, and there is nobody to change it. A multiple among the values
    # is of the config's width, which need not be searched.
    config, _ = translate(raw["config"])
    params, _ = translate(raw["params"], d_model=config.get("model", {}).get("d_model"))
    return TrialRecord(**{**raw, "config": config, "params": params})


def best_trial(records: Sequence[TrialRecord]) -> TrialRecord:
    """The highest score among finished trials; ties: lower loss, then the earlier trial.

    A trial that was stopped early cannot win: its score would be another one at the end. InputError
    if there is none.
    """
    scored = [r for r in records if r.score is not None and r.state == "finished"]
    if not scored:
        raise InputError(
            "no trial was trained to its end; the messages above say why. Lower train.lr or "
            "narrow the search space"
        )

    return max(
        scored,
        key=lambda r: (r.score or 0.0, -(r.loss if r.loss is not None else math.inf), -r.number),
    )


def with_params(base: ExperimentConfig, params: Mapping[str, Value]) -> ExperimentConfig:
    """`base` with the dotted fields replaced. Raises InputError for values that do not fit."""
    # The fields of an experiment: of a TuneConfig those of the search itself are left behind.
    fields = {f.name for f in dataclasses.fields(ExperimentConfig)}
    raw = {name: value for name, value in to_dict(base).items() if name in fields}

    for field, value in params.items():
        *path, name = field.split(".")
        node = raw
        for key in path:
            node = node[key]
        node[name] = value
    return experiment_from_dict(raw)


def searchable(base: ExperimentConfig) -> Params:
    """Every field that may be searched, with its value in `base`."""
    return flatten({"model": to_dict(base.model), "train": to_dict(base.train)})


def default_space(base: ExperimentConfig) -> dict[str, Any]:
    """The learning rate within a factor of ten, each β between a quarter and four."""
    lr = {"low": base.train.lr / 10, "high": base.train.lr * 10, "log": True, "points": 5}
    return {
        "train.lr": lr,
        **{f"train.beta.{h}": {"low": 0.25, "high": 4.0, "log": True, "points": 3} for h in HEADS},
    }


def read_space(path: str, base: ExperimentConfig) -> Space:
    """The YAML search space in `path` ("": `default_space`), checked against the config.

    A field maps to a list of values, or to {low, high[, log][, points]}; whole numbers where the
    field is one; `points` is what a grid takes of the range. Raises InputError naming file, field
    and what is wrong.
    """
    source = path or "default search space"
    raw = read_yaml(path) if path else default_space(base)
    if not isinstance(raw, dict) or not raw:
        raise InputError(
            f"{source}: give fields and their values, such as 'train.lr: {{low: 0.0001, high: "
            "0.01}'"
        )
    # A multiple becomes a width once, here; of a d_model that each trial draws it would be another
    # each time.
    if "model.ffn_multiple" in raw and {"model.width", "model.d_model"} & set(raw):
        raise InputError(
            f"{source}: model.ffn_multiple: a multiple of model.d_model, which is searched, too; "
            "list the widths themselves as model.dim_feedforward"
        )
    raw, renamed = translate(raw, d_model=base.model.d_model)
    say_renamed(renamed, source)

    known = searchable(base)
    space = {}
    for field, entry in raw.items():
        where = f"{source}: {field}"
        if field in FIXED:
            raise InputError(f"{where}: cannot be searched: {FIXED[field]}")
        if field not in known:
            near = difflib.get_close_matches(str(field), known, n=3, cutoff=0.4) or list(known)
            raise InputError(f"{where}: no such field; did you mean {', '.join(near)}?")
        space[field] = dimension = _dimension(entry, known[field], where)
        ends = [
            getattr(dimension.distribution, end)
            for end in ("low", "high")
            if hasattr(dimension.distribution, end)
        ]
        # Tried now, one by one: a value that no config takes would fail its trial hours later.
        # Values that do not fit together (8 heads, width 12) show in the trial.
        for value in (*ends, *dimension.grid):
            try:
                with_params(base, {field: value})
            except InputError as error:
                raise InputError(f"{source}: {error}") from error
    return space


def _dimension(entry: Any, current: Value, where: str) -> Dimension:
    if isinstance(entry, list) and entry:
        values = tuple(_typed(v, current, where) for v in entry)
        if len(set(values)) < len(values):
            raise InputError(f"{where}: a value is listed twice")
        return Dimension(CategoricalDistribution(values), values)

    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: {entry!r} is neither a list of values nor {{low: ..., high: ...}}"
        )
    extra = set(entry) - {"low", "high", "log", "points"}
    if extra or not {"low", "high"} <= set(entry):
        raise InputError(
            f"{where}: a range takes low, high and, if wanted, log and points; got "
            + ", ".join(map(str, entry))
        )
    if isinstance(current, bool | str):
        raise InputError(f"{where}: not a number; list its values")

    low, high = _typed(entry["low"], current, where), _typed(entry["high"], current, where)
    log, points = entry.get("log", False), entry.get("points", 0)
    # One point would be `low` alone; who wants that lists it.
    if not isinstance(log, bool) or not isinstance(points, int) or points < 0 or points == 1:
        raise InputError(f"{where}: log is true or false, points a whole number of at least 2")
    if not low < high:  # type: ignore[operator]
        raise InputError(f"{where}: low {low} must be below high {high}")
    if log and not low > 0:  # type: ignore[operator]
        raise InputError(f"{where}: low {low} must be positive on a log scale")

    spread = np.geomspace if log else np.linspace
    grid = [float(v) for v in spread(float(low), float(high), points)] if points else []
    if isinstance(current, int):
        # Rounded, neighbouring points may be one: a set, or the grid would train it twice.
        return Dimension(
            IntDistribution(int(low), int(high), log=log), tuple(sorted({round(v) for v in grid}))
        )
    return Dimension(FloatDistribution(float(low), float(high), log=log), tuple(grid))


def _typed(value: Any, current: Value, where: str) -> Value:
    """`value` as the type of the config field. YAML reads 1e-4 as text: numbers may come as
    such."""
    try:
        # bool first: True is an int to Python, and 1 would pass for a switch.
        if isinstance(current, bool):
            ok = isinstance(value, bool)
        elif isinstance(current, int):
            ok = isinstance(value, int) and not isinstance(value, bool)
        elif isinstance(current, float):
            value, ok = float(value), not isinstance(value, bool) and math.isfinite(float(value))
        else:
            ok = isinstance(value, str)
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise InputError(f"{where}: {value!r} is not of type {type(current).__name__}")

    result: Value = value
    return result


def grid_points(space: Space) -> list[Params]:
    """Every combination. Raises InputError for a range without `points`."""
    for field, dimension in space.items():
        if not dimension.grid:
            raise InputError(f"{field}: a grid needs `points` in this range, or a list of values")

    return [
        dict(zip(space, values, strict=True))
        for values in itertools.product(*(dimension.grid for dimension in space.values()))
    ]


def study_of(space: Space, records: Sequence[TrialRecord], seed: int = 0) -> optuna.Study:
    """An Optuna study that has seen the records, in their order, with TPE seeded.

    Trials stopped early count as pruned at their last epoch. A trial outside the space (the config
    as given may be) is left out.
    """
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
    )
    distributions = {field: dimension.distribution for field, dimension in space.items()}

    for r in records:
        if not in_space(space, r.params):
            continue
        done = r.state == "finished"
        # Pruned before its first epoch is what TPE takes for the worst. Telling it the good scores
        # that a trial had before it diverged would draw the search there.
        curve = {} if r.state in ("diverged", "failed") else dict(enumerate(r.scores))
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if done else TrialState.PRUNED,
                params=r.params,
                distributions=distributions,
                value=r.score if done else None,
                intermediate_values=curve,
                user_attrs={"trial": r.number},
            )
        )
    return study


def in_space(space: Space, params: Params) -> bool:
    """Whether the values lie in the space; the config as given may not."""
    try:
        # Private, but what Optuna's own checks are made of; it has no public question for it.
        return all(
            d.distribution._contains(d.distribution.to_internal_repr(params[f]))
            for f, d in space.items()
        )
    except ValueError:
        # What a categorical distribution says to a value that is none of its choices.
        return False


def suggest(
    space: Space,
    search: Literal["optuna", "random", "grid"],
    seed: int,
    number: int,
    base: ExperimentConfig,
    earlier: Sequence[TrialRecord],
) -> Params:
    """Values of trial `number`: equal for equal arguments, whenever and in whatever process it is
    asked.

    Trial 0 is the config as given, to compare with.
    """
    current = searchable(base)
    if number == 0:
        return {field: current[field] for field in space}
    if search == "grid":
        return grid_points(space)[number - 1]

    # A generator for each trial, so that it matters neither which process asks nor what was drawn
    # before. Mixed and not added: else trial 2 of seed 0 would repeat trial 1 of seed 1.
    own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study = study_of(space, earlier if search == "optuna" else [], own_seed)
    if search == "random":
        study.sampler = optuna.samplers.RandomSampler(seed=own_seed)
    distributions = {field: dimension.distribution for field, dimension in space.items()}
    return dict(study.ask(distributions).params)
