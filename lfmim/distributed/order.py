"""What the trials of a sweep try and when they are stopped: in Tune's own order, or in one that can
be repeated."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import optuna
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from lfmim.experiments.search import (
    STARTUP,
    Params,
    Space,
    TrialRecord,
    TuneConfig,
    in_space,
    suggest,
    with_params,
)


class Order(Protocol):
    """Decides for numbered trials; learns from what they report and from the records of those that
    ended."""

    window: int
    """How many trials may run at once; 0: as many as the cluster holds."""

    def values(self, number: int, kept: Params | None) -> Params | None:
        """What the trial tries, or None: not yet. `kept`: every field of the checkpoint it goes on
        from, if any."""

    def behind(self, number: int, epoch: int, score: float) -> bool:
        """Whether to stop the trial after this epoch (from 1). An epoch reported again changes
        nothing."""

    def ended(self, record: TrialRecord) -> None:
        """Learn from a trial that ended, in this process or before a restart."""


class TuneOrder:
    """Tune's own OptunaSearch and ASHAScheduler: a trial starts as soon as there is room, with what
    is known by then.

    `seed` None draws anew: a resumed sweep would otherwise try its first values again.
    """

    window = 0

    def __init__(self, config: TuneConfig, space: Space, seed: int | None) -> None:
        self.config, self.space = config, space
        self.asha = asha(config) if config.scheduler == "asha" else None
        self.optuna = OptunaSearch(
            {field: dimension.distribution for field, dimension in space.items()},
            metric="score",
            mode="max",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP),
        )
        self.asked: set[int] = set()

    def values(self, number: int, kept: Params | None) -> Params:
        if kept is not None:
            # What its checkpoint was trained with. Tune's searcher hears of it in `ended`.
            return {field: kept[field] for field in self.space}
        # These need no earlier trial, so Tune's searcher is not asked.
        if number == 0 or self.config.search != "optuna":
            seed, base = self.config.train.seed, with_params(self.config, {})
            return suggest(self.space, self.config.search, seed, number, base, [])
        self.asked.add(number)
        return cast(Params, self.optuna.suggest(str(number)))

    def behind(self, number: int, epoch: int, score: float) -> bool:
        return self.asha is not None and self.asha(number, epoch, score)

    def ended(self, record: TrialRecord) -> None:
        # A trial of before a restart is new to this ASHA; epochs that it has heard of change
        # nothing.
        for epoch, score in enumerate(record.scores, start=1):
            self.behind(record.number, epoch, score)

        # As in search.study_of: stopped trials are pruned ones, those without a result the worst of
        # them.
        value = record.score if record.state == "finished" else None
        steps = record.scores if record.state == "stopped" else []
        if record.number in self.asked:
            trial = str(record.number)
            for step, score in enumerate(steps):
                # Tune's searcher takes its step from `training_iteration`, whatever the time
                # attribute is.
                self.optuna.on_trial_result(trial, {"score": score, "training_iteration": step})
            self.optuna.on_trial_complete(trial, {"score": value})
        # Optuna refuses a point outside of the space; the config as given, trial 0, may be one.
        elif in_space(self.space, record.params):
            self.optuna.add_evaluated_point(
                record.params, cast(float, value), pruned=value is None, intermediate_values=steps
            )


class RepeatableOrder:
    """Trial n is a function of its number and the records of trials 0 .. n - window, all of which
    end before it starts.

    So neither timing nor failures nor a restart change what a sweep finds. Price: the first
    `window` trials know nothing, and stragglers hold up those `window` behind.
    """

    def __init__(
        self, config: TuneConfig, window: int, plan: Callable[[int, Sequence[TrialRecord]], Params]
    ) -> None:
        self.config, self.window, self.plan = config, window, plan
        self.records: dict[int, TrialRecord] = {}
        self.halving: dict[int, Callable[[int, float], bool]] = {}

    def earlier(self, number: int) -> list[TrialRecord] | None:
        """What trial `number` may know; None while some of it has not ended."""
        known = range(max(0, number - self.window + 1))
        return [self.records[n] for n in known] if all(n in self.records for n in known) else None

    def values(self, number: int, kept: Params | None) -> Params | None:
        earlier = self.earlier(number)
        return None if earlier is None else self.plan(number, earlier)

    def behind(self, number: int, epoch: int, score: float) -> bool:
        if self.config.scheduler == "none":
            return False
        if number not in self.halving:
            self.halving[number] = successive_halving(self.config, self.earlier(number) or [])
        return self.halving[number](epoch, score)

    def ended(self, record: TrialRecord) -> None:
        self.records[record.number] = record


def asha(config: TuneConfig) -> Callable[[int, int, float], bool]:
    """Ray's ASHA on numbered trials: (trial, epoch from 1, score) -> whether to stop it."""
    scheduler: Any = ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        grace_period=config.grace,
        reduction_factor=config.reduction,
        # Only bounds the rungs, and ASHA wants it no lower than the grace period: how long a trial
        # runs is the business of train.epochs.
        max_t=max(config.grace, 1_000_000),
        # Else ASHA stops whatever reaches max_t.
        stop_last_trials=False,
    )

    trials: dict[int, _AshaTrial] = {}

    def feed(number: int, epoch: int, score: float) -> bool:
        if number not in trials:
            trials[number] = _AshaTrial(str(number))
            scheduler.on_trial_add(None, trials[number])

        result = {"epoch": epoch, "score": score}
        return bool(scheduler.on_trial_result(None, trials[number], result) == TrialScheduler.STOP)

    return feed


def successive_halving(
    config: TuneConfig, earlier: Sequence[TrialRecord]
) -> Callable[[int, float], bool]:
    """Ray's ASHA after exactly the given trials, whatever else has run: (epoch from 1, score) ->
    whether to stop."""
    feed = asha(config)
    for record in earlier:
        for epoch, score in enumerate(record.scores, start=1):
            feed(record.number, epoch, score)
    # A number that no record has: ASHA looks at a trial once a rung.
    return functools.partial(feed, -1)


@dataclasses.dataclass(frozen=True)
class _AshaTrial:
    """All that ASHA reads of a trial."""

    trial_id: str
