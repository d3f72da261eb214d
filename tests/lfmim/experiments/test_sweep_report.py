"""Sweep figures and tables, and the paired comparison behind promotion."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest

from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.data.loading import load_split
from lfmim.evaluation.promotion import Comparison, compare
from lfmim.experiments.search import best_trial, read_space
from lfmim.experiments.sweep_report import (
    importances,
    sweep_figures,
    sweep_page,
    sweep_table,
)
from lfmim.schema import HEADS, FeatureSpec, InputError
from lfmim.training.checkpoint import CheckpointMeta
from tests.support.reports import epochs, meta_of, sweep
from tests.support.toy import LABELS, SPEC

BASE = ExperimentConfig(store="s")
SPACE = read_space("", BASE)


@pytest.mark.integration
def test_the_parameter_that_matters_is_named_and_every_figure_drawn(tmp_path):
    records, style = sweep(SPACE, BASE, 30), dict(mpl.rcParams)
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
    assert importances(SPACE, sweep(SPACE, BASE, 2)) == {}
    assert "importance" not in sweep_figures(SPACE, sweep(SPACE, BASE, 2))
    same = [dataclasses.replace(r, score=0.5) for r in sweep(SPACE, BASE, 20) if r.score]
    assert importances(SPACE, same) == {}


@pytest.mark.integration
def test_the_page_of_a_sweep():
    records = sweep(SPACE, BASE, 9)
    winner, retrained = best_trial(records), meta_of(LABELS, epochs(6, best=2), 2, 3)
    retrained = dataclasses.replace(retrained, history=epochs(6, best=2))
    figures = sweep_figures(SPACE, records)
    page = sweep_page("Sweep <s>", figures, records, winner, retrained, [0.5, 0.7])
    assert "<title>Sweep &lt;s&gt;</title>" in page
    assert f"The winner is trial {winner.number}; retrained with 2 seeds it scores 0.6000" in page
    assert "the epoch 3 of 6" in page
    assert page.count("<img ") == len(figures) + 1
    trials = page[page.index('aria-label="Trials"') :]
    assert trials.count('<th scope="row">') == 9
    # the diverged one has no score
    assert re.search(r'row">7</th><td>diverged</td><td>–</td>', trials)
    assert "<td>nan</td>" not in page


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
