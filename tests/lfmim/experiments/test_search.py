"""Search spaces are checked against the config; suggestions are functions of the seed and earlier
trials alone."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.config import ExperimentConfig, TrainConfig
from lfmim.experiments.search import (
    TrialRecord,
    TuneConfig,
    best_trial,
    grid_points,
    read_space,
    study_of,
    suggest,
    with_params,
)
from lfmim.schema import HEADS, InputError
from tests.support.toy import ROOT

BASE = ExperimentConfig(store="s", train=TrainConfig(lr=0.001))
SPACE = read_space("", BASE)


def record(
    number: int, score: float | None, state="finished", params=None, loss=1.0, scores=()
) -> TrialRecord:
    return TrialRecord(
        number=number,
        params=params or {},
        state=state,
        score=score,
        loss=loss,
        config={},
        history=[{"score": s} for s in scores],
    )


def read(tmp_path, text: str):
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    return read_space(str(path), BASE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.learning_rate: [0.1]",
            r"train\.learning_rate: no such field; did you mean .*train\.lr",
        ),
        ("run.workers: [1, 2]", r"run\.workers: no such field"),
        ("train.seed: [1, 2]", "a seed is not a hyperparameter"),
        ("train.selection: [text]", "it is the score itself"),
        ("train.lr: {low: 0, high: 1}", r"train\.lr: 0\.0 must be positive"),
        ("train.lr: {low: 0.1, high: 0.01}", "must be below high"),
        ("train.lr: {low: 0.1}", "a range takes low, high"),
        ("train.lr: {low: 0.1, high: 1, step: 2}", "a range takes low, high"),
        ("train.beta.text: {low: 0, high: 1, log: true}", "must be positive on a log scale"),
        ("train.lr: [fast]", "'fast' is not of type float"),
        ("model.num_layers: {low: 1.5, high: 3}", "1.5 is not of type int"),
        ("model.num_layers: [1, 1]", "listed twice"),
        ("train.optimizer: {low: 0, high: 1}", "not a number; list its values"),
        ("train.optimizer: [sgd, rprop]", r"train\.optimizer: 'rprop' is not one of sgd, adamw"),
        ("model.standardize: [1]", "1 is not of type bool"),
        ("train.lr: 3", "neither a list of values nor"),
        ("[]", "give fields and their values"),
        ("a: [", "not YAML"),
        (
            "train.lr: [0.1]\nmodel.num_layers: [1]\ntrain.lr: [0.2]",
            "'train.lr' is there twice, in lines 1 and 3",
        ),
        ("train.lr: {low: 0.1, low: 0.2, high: 1}", "'low' is there twice"),
    ],
)
def test_a_bad_space_is_refused_by_file_and_field(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, text)
    assert str(tmp_path / "space.yaml") in str(error.value)


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_a_space_in_another_encoding_is_refused_with_the_remedy(tmp_path, encoding):
    path = tmp_path / "space.yaml"
    path.write_text("# 学习率\ntrain.lr: {low: 0.001, high: 0.01}\n", encoding=encoding)
    with pytest.raises(InputError, match=r"not UTF-8 .*; save it as UTF-8"):
        read_space(str(path), BASE)


def test_types_ranges_and_grids(tmp_path):
    space = read(
        tmp_path,
        "train.lr: {low: 1e-4, high: 1e-2, log: true, points: 3}\n"
        "model.num_layers: {low: 1, high: 4, points: 4}\n"
        "train.optimizer: [sgd, adamw]\nmodel.standardize: [true, false]",
    )
    points = grid_points(space)
    assert len(points) == 3 * 4 * 2 * 2
    assert sorted({p["train.lr"] for p in points}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert {p["model.num_layers"] for p in points} == {1, 2, 3, 4}
    for point in points:
        config = with_params(BASE, point)
        assert (config.train.optimizer, config.model.num_layers) == (
            point["train.optimizer"],
            point["model.num_layers"],
        )
        assert dataclasses.replace(config, model=BASE.model, train=BASE.train) == BASE
    with pytest.raises(InputError, match=r"train\.lr: a grid needs `points`"):
        grid_points(read(tmp_path, "train.lr: {low: 0.1, high: 0.2}"))


def test_the_default_space_and_the_shipped_one():
    assert set(SPACE) == {"train.lr", *(f"train.beta.{h}" for h in HEADS)}
    shipped = read_space(str(ROOT / "lfmim" / "configs" / "search.yaml"), BASE)
    assert set(SPACE) < set(shipped)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 99),
    number=st.integers(0, 30),
    search=st.sampled_from(["optuna", "random"]),
    scores=st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_a_suggestion_depends_on_its_arguments_alone_and_stays_in_the_space(
    seed, number, search, scores
):
    earlier = [
        record(i, s, params=suggest(SPACE, "random", 5, i, BASE, []), scores=[s])
        for i, s in enumerate(scores)
    ]
    first = suggest(SPACE, search, seed, number, BASE, earlier)
    assert first == suggest(SPACE, search, seed, number, BASE, earlier)
    for field, value in first.items():
        d = SPACE[field].distribution
        assert d.low <= value <= d.high
    if number == 0:
        assert with_params(BASE, first) == BASE
    else:
        assert first != suggest(SPACE, search, seed + 1, number, BASE, earlier)
        assert first != suggest(SPACE, search, seed, number + 1, BASE, earlier)


def test_optuna_goes_where_scores_are_high_and_away_from_divergence():
    space = {"train.lr": SPACE["train.lr"]}

    def late(search: str) -> list[float]:
        rates = []
        for seed in range(3):
            records = []
            for n in range(40):
                params = suggest(space, search, seed, n, BASE, records)
                bad = params["train.lr"] > 0.004
                records.append(
                    record(
                        n,
                        None if bad else params["train.lr"],
                        "diverged" if bad else "finished",
                        params,
                    )
                )
            rates += [r.params["train.lr"] for r in records[20:]]
        return rates

    model, chance = late("optuna"), late("random")
    assert sum(0.002 < lr <= 0.004 for lr in model) > 1.5 * sum(
        0.002 < lr <= 0.004 for lr in chance
    )
    assert sum(lr < 0.001 for lr in model) < 0.5 * sum(lr < 0.001 for lr in chance)


def test_a_study_keeps_stopped_trials_apart_and_leaves_out_what_is_outside_the_space():
    inside = {f: d.distribution.low for f, d in SPACE.items()}
    outside = {**inside, "train.lr": 5.0}
    study = study_of(
        SPACE,
        [
            record(0, 0.9, params=outside),
            record(1, 0.5, params=inside, scores=[0.4, 0.5]),
            record(2, 0.6, "stopped", inside, scores=[0.6]),
            record(3, None, "diverged", inside),
        ],
    )
    assert [t.user_attrs["trial"] for t in study.trials] == [1, 2, 3]
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert study.trials[1].intermediate_values == {0: 0.6}
    assert study.best_value == 0.5


def test_the_winner_ran_to_its_end_and_ties_go_to_the_lower_loss():
    records = [
        record(0, 0.5),
        record(1, 0.9, "stopped"),
        record(2, 0.7, loss=0.3),
        record(3, 0.7, loss=0.2),
        record(4, 0.7, loss=0.2),
        record(5, None, "diverged"),
    ]
    assert best_trial(records).number == 3
    with pytest.raises(InputError, match="no trial was trained to its end"):
        best_trial(records[-1:])


def test_tune_config_refuses_what_it_cannot_do():
    for fields, message in (
        ({"trials": 0}, "trials: 0"),
        ({"search": "bayes"}, "search: 'bayes'"),
        ({"reduction": 1}, "reduction: 1"),
        ({"window": -1}, "window: -1"),
    ):
        with pytest.raises(InputError, match=message):
            TuneConfig(store="s", **fields)
    with pytest.raises(InputError, match=r"run\.workers"):
        TuneConfig(store="s", run=dataclasses.replace(BASE.run, workers=2))
