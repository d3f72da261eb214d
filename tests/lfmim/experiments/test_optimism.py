"""What picking on the test split would have printed, of curves with known peaks."""

from __future__ import annotations

import pytest

from lfmim.experiments.optimism import about_optimism, table_optimism
from lfmim.schema import MULTIMODAL
from tests.support.reports import benchmark_run


def run(system: str, seed: int, curve: list[float], best: int) -> dict:
    """A run whose epochs have these accuracies on test, of which validation chose `best`."""
    result = benchmark_run(system, seed, 0.5)
    test = result["test"][MULTIMODAL]
    epochs = [{MULTIMODAL: test | {"accuracy": x}} for x in curve]
    return result | {"test": epochs[best], "test_curves": epochs, "best_epoch": best}


RUNS = [
    run("logistic", 0, [0.60], 0),
    run("lfmim", 0, [0.50, 0.56, 0.54], 2),
    run("lfmim", 1, [0.52, 0.58, 0.66], 1),
    run("pmr", 0, [0.59, 0.61], 0),
    run("pmr", 1, [0.57, 0.55], 0),
]


def test_the_habits_stand_beside_the_honest_mean():
    table = table_optimism(RUNS)
    assert list(table.loc["lfmim"]) == ["56.00", "61.00", "58.00", "66.00", "+10.00"]
    assert list(table.loc["pmr"]) == ["58.00", "59.00", "59.00", "61.00", "+3.00"]
    # Of one fit there is nothing to pick.
    assert set(table.loc["logistic"]) == {"60.00", "+0.00"}


def test_a_sentence_says_how_much_and_who_would_be_first():
    said = about_optimism(RUNS)
    assert "best of 2 runs" in said
    assert "6.50 points better on average, lfmim 10.00 (66.00 instead of 56.00)" in said
    assert "the first place would go to lfmim instead of logistic" in said


@pytest.mark.parametrize("gone", ["curves", "folds"])
def test_without_every_epoch_on_test_there_is_a_dash(gone):
    more = {"test_curves": []} if gone == "curves" else {"folds": {"scores": []}}
    runs = [r | more for r in RUNS]
    row = table_optimism(runs).loc["lfmim"]
    assert list(row) == ["56.00", "–", "58.00", "–", "–"]
    assert "every epoch measured on test" in about_optimism(runs)
