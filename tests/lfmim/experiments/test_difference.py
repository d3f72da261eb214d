"""Differences between systems: intervals that cover, p-values that are uniform, and what power
they have."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lfmim.experiments.difference import difference
from lfmim.schema import HEADS, MULTIMODAL
from tests.support.reports import benchmark_run

RUNS = [benchmark_run(s, k, p) for s, p in (("eft", 0.5), ("lfmim", 0.6)) for k in range(6)]


def run(system: str, right: np.ndarray, **more: object) -> dict:
    """A run that answers `right` [N] of its utterances, whose label is 0, rightly."""
    return {
        "system": system,
        "labels": [[0] * len(right)] * len(HEADS),
        "test": {MULTIMODAL: {}},
        "predictions": {MULTIMODAL: (~right).astype(int).tolist()},
        **more,
    }


def test_p_values_tell_a_difference_from_none():
    d = difference(RUNS, "lfmim", "eft")
    scores = [r["test"][MULTIMODAL]["accuracy"] for r in RUNS]
    assert d.mean == pytest.approx(np.mean(scores[6:]) - np.mean(scores[:6]))
    assert d.low < d.mean < d.high
    assert d.p < 0.01
    assert difference(RUNS, "lfmim", "lfmim").p == 1.0
    # One pair, one answer.
    assert difference(RUNS, "eft", "lfmim") == -d


@pytest.mark.parametrize("paired", [False, True])
def test_p_values_are_uniform_under_the_null(paired):
    """Two systems of the same accuracy, over many corpora, though seeds or subsets add to the
    noise."""
    rng, below = np.random.default_rng(0), []
    for _ in range(150):
        runs = []
        luck = rng.normal(0, 0.03, 5) if paired else np.zeros(5)
        for system in ("lfmim", "pmr"):
            for k in range(5):
                accuracy = 0.6 + luck[k] + rng.normal(0, 0.03)
                subset = {"subset": k} if paired else {}
                runs.append(run(system, rng.random(300) < accuracy, **subset))
        below.append(difference(runs, "lfmim", "pmr").p < 0.05)
    assert np.mean(below) < 0.1


def test_whole_speakers_are_resampled():
    """Ten speakers of whom a system knows all utterances or none: as good as ten utterances."""
    rng = np.random.default_rng(0)
    speaker = np.repeat(np.arange(10), 40)
    knows = {s: rng.random(10) < 0.5 for s in ("lfmim", "pmr")}
    runs = [run(s, knows[s][speaker]) for s in knows for _ in range(2)]
    alone = difference(runs, "lfmim", "pmr")
    grouped = difference([r | {"groups": speaker.tolist()} for r in runs], "lfmim", "pmr")
    assert grouped.mean == alone.mean
    assert grouped.error == pytest.approx(alone.error * math.sqrt(40), rel=0.1)
    assert grouped.freedom == pytest.approx(9)


def test_the_easy_and_the_hard_subsets_are_those_of_both():
    """Subsets whose luck both systems share: unpaired, it would drown a difference that each
    shows."""
    rng, n = np.random.default_rng(0), 2000
    runs = []
    for k in range(5):
        level, u = rng.uniform(0.4, 0.7), rng.random(n)
        runs += [run("lfmim", u < level + 0.02, subset=k), run("pmr", u < level, subset=k)]
    paired = difference(runs, "lfmim", "pmr")
    apart = difference([r | {"subset": None} for r in runs], "lfmim", "pmr")
    assert paired.mean == pytest.approx(apart.mean) == pytest.approx(0.02, abs=0.01)
    assert paired.p < 0.05 < apart.p
    assert paired.runs == 5


def test_power_and_what_would_give_it():
    d = difference(RUNS, "lfmim", "eft")
    assert d.power(10.0) == pytest.approx(1)
    assert d.power(1e-9) == pytest.approx(0.025, abs=0.001)
    utterances, seeds = d.needed(0.01)
    assert utterances > d.utterances
    # Half the gap needs four times as many of both.
    assert d.needed(0.005) == (
        pytest.approx(4 * utterances, rel=0.01),
        pytest.approx(4 * seeds, rel=0.1),
    )


def test_what_is_needed_gives_the_power():
    """On as many utterances and seeds as that, in simulation."""
    rng = np.random.default_rng(0)

    def corpus(n: int, seeds: int, gap: float) -> list[dict]:
        levels = {"lfmim": 0.6 + gap, "pmr": 0.6}
        return [
            run(s, rng.random(n) < level + rng.normal(0, 0.01))
            for s, level in levels.items()
            for _ in range(seeds)
        ]

    first = difference(corpus(2000, 10, 0.0), "lfmim", "pmr")
    utterances, seeds = first.needed(0.03)
    found = [
        difference(corpus(utterances, seeds, 0.03), "lfmim", "pmr").p < 0.05 for _ in range(60)
    ]
    assert np.mean(found) > 0.6


def test_one_run_does_not_tell_how_runs_differ():
    d = difference([RUNS[0], RUNS[6]], "lfmim", "eft")
    assert d.low < d.mean < d.high
    assert math.isnan(d.power(0.01))
    assert d.needed(0.01)[1] is None
    # Of a regression there is one, and no luck in it.
    fitted = [benchmark_run("logistic", 0, 0.5), *RUNS[6:]]
    assert difference(fitted, "lfmim", "logistic").runs == 6
    assert difference(fitted, "lfmim", "logistic").power(10.0) == pytest.approx(1)
