"""What trials try and when they stop: Tune's own order learns at any number of slots, the
repeatable one does not."""

from __future__ import annotations

import dataclasses

import pytest
from optuna.distributions import CategoricalDistribution
from sweep_order import order_of, simulate

from lfmim.config import TrainConfig
from lfmim.distributed.order import TuneOrder, successive_halving
from lfmim.experiments.search import TrialRecord, TuneConfig, best_trial, read_space, with_params

CONFIG = TuneConfig(store="s", grace=2, reduction=3, train=TrainConfig(lr=0.001))
SPACE = {"train.lr": read_space("", CONFIG)["train.lr"]}


def record(number: int, scores: list[float]) -> TrialRecord:
    return TrialRecord(
        number=number,
        params={},
        state="finished",
        score=max(scores),
        config={},
        history=[{"score": s} for s in scores],
    )


def test_halving_lets_the_best_third_go_on_and_knows_only_what_it_was_given():
    config = TuneConfig(store="s", grace=2, reduction=3)
    earlier = [record(n, [0.1 * n] * 6) for n in range(7)]
    first = successive_halving(config, [])
    assert not any(first(epoch, 0.0) for epoch in range(1, 9))  # nothing to be behind
    behind = successive_halving(config, earlier)
    assert not behind(1, 0.0)  # the grace period
    assert behind(2, 0.39)  # the best third of 0 .. 0.6 begins at 0.4
    late = successive_halving(config, earlier)
    assert not late(2, 0.41)
    assert not any(late(epoch, 0.0) for epoch in (3, 4, 5))  # only the rungs decide
    assert late(6, 0.3)


def test_a_trial_resumed_after_a_rung_is_decided_as_if_undisturbed():
    config = TuneConfig(store="s", grace=1, reduction=2)
    earlier = [record(n, [0.5, 0.9, 0.9, 0.9]) for n in range(3)]
    behind = successive_halving(config, earlier)
    said = [
        behind(epoch, score)
        for epoch, score in ((1, 0.6), (2, 0.95), (1, 0.6), (2, 0.95), (3, 0.0), (4, 0.9))
    ]
    assert said == [False] * 6  # the epochs reported again change nothing


def epochs_run(records: list[TrialRecord]) -> int:
    return sum(len(r.history) for r in records)


@pytest.mark.parametrize("slots", [10, 64])
def test_at_many_slots_only_tunes_own_order_stops_trials(slots):
    trials, epochs = 2 * slots, 12
    own, time = simulate(order_of("tune", trials, epochs, slots, 0), trials, epochs, slots)
    repeatable, longer = simulate(
        order_of("repeatable", trials, epochs, slots, 0), trials, epochs, slots
    )
    assert epochs_run(repeatable) == trials * epochs
    assert epochs_run(own) < 0.75 * trials * epochs
    assert time < longer
    for records in (own, repeatable):
        assert sorted(r.number for r in records) == list(range(trials))
        given = with_params(order_of("tune", trials, epochs, slots, 0).config, {})
        (first,) = [r for r in records if r.number == 0]
        assert first.params["train.lr"] == given.train.lr
        assert best_trial(records).state == "finished"


def test_the_repeatable_order_finds_the_same_at_any_speed():
    found = []
    for slots in (3, 5):
        records, _ = simulate(order_of("repeatable", 12, 9, 3, 1), 12, 9, slots, seed=1)
        found.append(sorted(records, key=lambda r: r.number))
    assert found[0] == found[1]


def tried(number: int, params: dict) -> TrialRecord:
    """Best at 0.001, stopped early when far below, lost above."""
    lr = params["train.lr"]
    state = "diverged" if lr > 0.001 else "stopped" if lr < 0.0003 else "finished"
    scores = {"diverged": [], "stopped": [lr * 900] * 2, "finished": [lr * 900] * 6}[state]
    return TrialRecord(
        number=number,
        params=params,
        state=state,
        config={},
        score=max(scores, default=None),
        history=[{"score": s} for s in scores],
    )


def go_on(order: TuneOrder, numbers: range) -> list[TrialRecord]:
    records = []
    for number in numbers:
        records.append(tried(number, order.values(number, None)))
        order.ended(records[-1])
    return records


def test_what_has_ended_is_known_at_once_and_after_a_restart():
    at_once, restarted, nothing = 0, 0, 0
    for seed in range(3):
        order = TuneOrder(CONFIG, SPACE, seed)
        records = go_on(order, range(40))
        assert {r.state for r in records} == {"finished", "stopped", "diverged"}
        resumed, fresh = TuneOrder(CONFIG, SPACE, seed + 10), TuneOrder(CONFIG, SPACE, seed + 10)
        assert not fresh.behind(200, 2, 0.0)
        for record in records:
            resumed.ended(record)
        assert order.behind(200, 2, 0.0)
        assert resumed.behind(200, 2, 0.0)
        at_once += sum(
            r.params["train.lr"] > 0.0005 and r.state == "finished"
            for r in go_on(order, range(50, 70))
        )
        restarted += sum(
            r.params["train.lr"] > 0.0005 and r.state == "finished"
            for r in go_on(resumed, range(50, 70))
        )
        nothing += sum(0.0005 < fresh.values(n, None)["train.lr"] <= 0.001 for n in range(50, 70))
    assert nothing < 0.25 * 60  # by chance: 0.15
    assert at_once > 0.3 * 60
    assert restarted > 0.3 * 60


def test_a_trial_begun_before_goes_on_with_its_values_and_epochs_reported_again_change_nothing():
    order = TuneOrder(CONFIG, SPACE, seed=0)
    assert order.values(5, {"train.lr": 0.0123, "train.epochs": 30}) == {"train.lr": 0.0123}
    for number in range(6):
        order.ended(tried(number, {"train.lr": 0.0009}))
    said = [
        order.behind(7, epoch, score)
        for epoch, score in ((1, 0.9), (2, 0.9), (1, 0.9), (2, 0.0), (3, 0.0))
    ]
    assert said == [False] * 5


@pytest.mark.parametrize("search", ["optuna", "random", "grid"])
def test_trial_0_is_the_config_as_given_even_outside_the_space(search):
    dimension = dataclasses.replace(
        SPACE["train.lr"], distribution=CategoricalDistribution((0.1, 0.2)), grid=(0.1, 0.2)
    )
    order = TuneOrder(dataclasses.replace(CONFIG, search=search), {"train.lr": dimension}, seed=0)
    assert order.values(0, None) == {"train.lr": CONFIG.train.lr}
    order.ended(tried(0, {"train.lr": CONFIG.train.lr}))
    values = [order.values(n, None)["train.lr"] for n in (1, 2)]
    assert set(values) <= {0.1, 0.2}
    assert search != "grid" or values == [0.1, 0.2]
