"""The sweep on Ray Tune; the repeatable one against the same sweep, one trial after the other,
without Ray."""

from __future__ import annotations

import dataclasses
import json

import pytest

from lfmim.data.loading import load_split
from lfmim.distributed.order import RepeatableOrder, TuneOrder
from lfmim.distributed.trials import Trials
from lfmim.experiments.search import best_trial, read_space, suggest, with_params
from lfmim.schema import FeatureSpec, InputError
from lfmim.training.checkpoint import epoch_folder, latest_checkpoint
from lfmim.training.loop import train
from tests.support.serial_sweep import serial_sweep, tiny_tune


@pytest.mark.slow
@pytest.mark.ray
def test_ray_finds_what_one_trial_after_the_other_finds(ray_cluster, toy_store, tmp_path):
    config = tiny_tune(toy_store, tmp_path, epochs=6, repeatable=True, window=3)
    space = {
        **read_space("", with_params(config, {})),
        **read_space(
            write(tmp_path, "model.num_heads: [2, 4]\ntrain.lr: [0.00001, 0.003, 0.02]"),
            with_params(config, {}),
        ),
    }

    def plan(number, earlier):
        params = suggest(space, config.search, 0, number, with_params(config, {}), earlier)
        return (
            {**params, "train.lr": 1e30}
            if number == 2
            else {**params, "model.num_heads": 5}
            if number == 3
            else params
        )

    seen = []
    trials = Trials(
        config,
        tmp_path / "sweep" / "trials",
        9,
        RepeatableOrder(config, 3, plan),
        on_trial=lambda record, records: seen.append((record.number, len(records))),
    )
    trials.run(toy_store)
    expected = serial_sweep(config, plan, 9)
    assert [(r.number, r.state, r.params, r.scores, r.loss) for r in trials.ended] == [
        (r.number, r.state, r.params, r.scores, r.loss) for r in expected
    ]
    assert trials.records[2].state == "diverged"
    assert "not finite" in trials.records[2].message
    assert trials.records[3].state == "failed"
    assert "model.num_heads: 5 does not divide" in trials.records[3].message
    assert any(r.state == "stopped" for r in expected), (
        "nothing was stopped: the test shows too little"
    )
    assert sorted(n for n, _ in seen) == list(range(9))
    assert [count for _, count in seen] == list(range(1, 10))
    assert not (tmp_path / "sweep" / "ray").exists()
    # no disk is held for ended trials
    assert all(latest_checkpoint(trials.home(n)) is None for n in range(9))

    # Ended trials are not repeated, a lost one is done again and comes out the same, more trials go
    # on from there.
    home = trials.home(6)
    before = json.loads((home / "trial.json").read_text())
    (home / "trial.json").unlink()
    again = []
    resumed = Trials(
        config,
        tmp_path / "sweep" / "trials",
        10,
        RepeatableOrder(config, 3, plan),
        on_trial=lambda record, records: again.append(record.number),
    )
    resumed.run(toy_store)
    assert sorted(again) == [6, 9]
    timing = {"seconds", "history"}
    after = json.loads((home / "trial.json").read_text())
    assert {k: v for k, v in after.items() if k not in timing} == {
        k: v for k, v in before.items() if k not in timing
    }
    assert best_trial(resumed.ended).score >= best_trial(trials.ended).score


@pytest.mark.slow
@pytest.mark.ray
def test_a_short_sweep_stops_trials_and_keeps_what_had_ended_or_begun(
    ray_cluster, toy_store, tmp_path
):
    """Two slots, four trials: the repeatable order would let all of them run to their end."""
    config = tiny_tune(toy_store, tmp_path, epochs=6, trials=4)
    text = "train.lr: {low: 0.000001, high: 0.001, log: true}"
    space = read_space(write(tmp_path, text), with_params(config, {}))
    trials = Trials(config, tmp_path / "sweep" / "trials", 4, TuneOrder(config, space, seed=0))
    trials.run(toy_store)
    assert [r.number for r in trials.ended] == list(range(4))
    assert trials.records[0].params == {"train.lr": config.train.lr}
    assert len({r.params["train.lr"] for r in trials.ended}) == 4
    stopped = [r for r in trials.ended if r.state == "stopped"]
    assert stopped
    assert all(len(r.history) < 6 for r in stopped)
    assert best_trial(trials.ended).state == "finished"

    # Killed: trial 1 was writing its checkpoint, trial 2 has its first epoch, 4 is new.
    (trials.home(1) / "trial.json").unlink()
    (trials.home(2) / "trial.json").unlink()
    half = epoch_folder(trials.home(1), 0)
    half.mkdir()
    (half / "checkpoint.json").write_text("{")
    values = {"train.lr": 0.0123}
    train(
        with_params(config, values),
        FeatureSpec.load(toy_store),
        *(load_split(toy_store, s, config.model) for s in ("train", "valid")),
        on_epoch=lambda report, save: (
            save(epoch_folder(trials.home(2), 0)) if report.epoch == 0 else None
        ),
    )
    again = []
    resumed = Trials(
        config,
        tmp_path / "sweep" / "trials",
        5,
        TuneOrder(config, space, seed=None),
        on_trial=lambda record, records: again.append(record.number),
    )
    resumed.run(toy_store)
    assert sorted(again) == [1, 2, 4]
    assert resumed.records[1].state in ("finished", "stopped")
    assert resumed.records[2].params == values
    assert all(resumed.records[n] == trials.records[n] for n in (0, 3))


def test_a_sweep_of_one_seed_has_no_other_seeds_to_run(toy_store, tmp_path):
    config = tiny_tune(toy_store, tmp_path, scheduler="none", repeatable=True)
    order = RepeatableOrder(config, 1, lambda number, earlier: {})
    trials = Trials(config, tmp_path / "seeds", 0, order)
    trials.run(toy_store)
    assert not trials.ended


def write(folder, text: str) -> str:
    (folder / "space.yaml").write_text(text, encoding="utf-8")
    return str(folder / "space.yaml")


def test_a_sweep_is_not_begun_on_bad_input(toy_store, tmp_path):
    from lfmim.distributed.tuner import _identity, check_tune

    with pytest.raises(InputError, match=r"window: 3 means .*add --repeatable, or leave it out"):
        tiny_tune(toy_store, tmp_path, window=3)
    config = tiny_tune(toy_store, tmp_path, repeatable=True, window=3)
    with pytest.raises(InputError, match="the grid has 405 points"):
        check_tune(dataclasses.replace(config, search="grid"))
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    named = dataclasses.replace(config, run=dataclasses.replace(config.run, name="mine"))
    then = {"run_id": "1", "identity": {}, "uri": "sqlite:////else.db", "window": 7}
    (folder / "sweep.json").write_text(json.dumps(then))
    with pytest.raises(InputError, match="add --resume to continue it"):
        check_tune(named)
    with pytest.raises(
        InputError, match=r"made with other model, train, data, .*tracking\.uri, window"
    ):
        check_tune(dataclasses.replace(named, resume=True))
    whole = {"run_id": "1", "window": 3, "uri": f"sqlite:///{tmp_path}/runs/mlflow.db"}
    for repeatable in (True, False):
        mine = dataclasses.replace(named, repeatable=repeatable, window=0, resume=True)
        then = {
            **_identity(mine, check_tune(dataclasses.replace(mine, resume=False, run=config.run)))
        }
        (folder / "sweep.json").write_text(json.dumps({**whole, "identity": then}))
        check_tune(mine)
        with pytest.raises(InputError, match="made with other repeatable; use the same"):
            check_tune(dataclasses.replace(mine, repeatable=not repeatable))
    with pytest.raises(InputError, match="not a feature store"):
        check_tune(dataclasses.replace(config, store=str(tmp_path / "none")))


def test_a_sweep_of_0_1_is_known_again(toy_store, tmp_path):
    """Its identity is what 0.1 wrote into sweep.json and hashed for its folder."""
    from lfmim.distributed.tuner import _identity, check_tune

    spaces = []
    for heads in ("heads", "num_heads"):
        space = write(tmp_path, f"model.{heads}: [2, 4]\ntrain.lr: [0.01, 0.02]")
        config = tiny_tune(toy_store, tmp_path, space=space)
        spaces.append(_identity(config, check_tune(config)))
    assert spaces[0] == spaces[1]
    assert list(spaces[0]["space"]) == ["model.heads", "train.lr"]
    assert spaces[0]["model"]["ffn_multiple"] == 4
    assert {"width", "heads", "layers"} < set(spaces[0]["model"])
    assert {"schedule", "warmup", "ema"} < set(spaces[0]["train"])
