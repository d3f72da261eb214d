"""Sweep figures and tables, and the paired comparison behind promotion."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.data.loading import load_split
from lfmim.evaluation.promotion import Comparison, compare
from lfmim.experiments.search import TrialRecord, read_space, suggest
from lfmim.experiments.sweep_report import importances, sweep_figures, sweep_table
from lfmim.schema import HEADS, FeatureSpec, InputError
from lfmim.training.checkpoint import CheckpointMeta
from tests.support.toy import SPEC

BASE = ExperimentConfig(store="s")
SPACE = read_space("", BASE)


def sweep(count: int) -> list[TrialRecord]:
    """Trials whose score is told by the learning rate alone; every fifth is stopped, one
    diverged."""
    records = []
    for n in range(count):
        params = suggest(SPACE, "random", 1, n, BASE, [])
        score = 0.5 + 0.1 * np.log10(params["train.lr"] / BASE.train.lr)
        state = "diverged" if n == 7 else "stopped" if n % 5 == 4 else "finished"
        records.append(
            TrialRecord(
                number=n,
                params=params,
                state=state,
                score=None if n == 7 else score,
                loss=1.0,
                config={},
                history=[] if n == 7 else [{"score": score}],
            )
        )
    return records


@pytest.mark.integration
def test_the_parameter_that_matters_is_named_and_every_figure_drawn(tmp_path):
    records, style = sweep(30), dict(mpl.rcParams)
    share = importances(SPACE, records)
    assert max(share, key=share.get) == "train.lr"
    assert share["train.lr"] > 0.8
    assert sum(share.values()) == pytest.approx(1)
    figures = sweep_figures(SPACE, records)
    assert set(figures) == {"best_so_far", "importance", "parallel_coordinates"}
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    line = figures["best_so_far"].axes[0].lines[-1].get_ydata()
    finished = [r.score if r.state == "finished" else 0 for r in records if r.score is not None]
    assert list(line) == pytest.approx(np.maximum.accumulate(finished))
    assert dict(mpl.rcParams) == style  # Optuna's plots change matplotlib's global style
    table = sweep_table(records)
    assert list(table["score"][:29]) == sorted(table["score"][:29], reverse=True)
    assert table["trial"].iloc[-1] == 7


def test_nothing_is_claimed_from_too_little():
    assert importances(SPACE, sweep(2)) == {}
    assert "importance" not in sweep_figures(SPACE, sweep(2))
    same = [dataclasses.replace(r, score=0.5) for r in sweep(20) if r.score]
    assert importances(SPACE, same) == {}


class Guess:
    """A predictor that knows the label of the first `known` utterances and is wrong about the
    others."""

    def __init__(self, labels: np.ndarray, known: range) -> None:
        self.labels, self.known = labels, known
        self.meta = CheckpointMeta.start(ExperimentConfig(store="-"), SPEC)
        self.model = SimpleNamespace(answers=HEADS)

    def check_store(self, store):
        assert FeatureSpec.load(store) == SPEC

    def predict(self, features):
        index = [k if i in self.known else (k + 1) % 7 for i, k in enumerate(self.labels)]
        return dict.fromkeys(HEADS, np.eye(7, dtype=np.float32)[index])


def test_promotion_needs_a_significant_gain(toy_store):
    labels = (
        load_split(toy_store, "valid", ModelConfig(max_text=9, max_audio=9, max_vision=9))
        .labels[:, 3]
        .numpy()
    )

    def against(a: range, b: range) -> Comparison:
        return compare(
            Guess(labels, a), Guess(labels, b), toy_store, split="valid", head="multimodal"
        )

    clear = against(range(5), range(20))
    assert (clear.champion_only, clear.challenger_only) == (0, 15)
    assert clear.p_value == pytest.approx(2 * 0.5**15)
    assert clear.verdict(0.05)[0]
    small = against(range(5), range(8))
    assert small.p_value == pytest.approx(2 * 0.5**3)
    assert not small.verdict(0.05)[0]
    assert "may be chance" in small.verdict(0.05)[1]
    worse = against(range(20), range(5))
    assert "it is not better" in worse.verdict(0.05)[1]
    assert against(range(9), range(9)).p_value == 1
    with pytest.raises(InputError, match="no rows of split 'none'"):
        compare(
            Guess(labels, range(1)),
            Guess(labels, range(1)),
            toy_store,
            split="none",
            head="multimodal",
        )
