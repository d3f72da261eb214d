"""The paper's figures beside others: where they lie, and that they are what the paper says."""

from __future__ import annotations

import numpy as np
import pytest

from lfmim.experiments.comparison_report import write_comparison
from lfmim.experiments.difference import score
from lfmim.experiments.published import ACCURACY, SENTIMENT, table_published
from lfmim.schema import HEADS, MULTIMODAL
from tests.support.reports import benchmark_run
from tests.support.toy import ROOT

RUNS = [
    benchmark_run(s, k, p, h)
    for s, p, h in (("eft", 0.5, (MULTIMODAL,)), ("lfmim", 0.7, HEADS), ("mine", 0.9, HEADS))
    for k in range(3)
]


@pytest.mark.integration
def test_the_papers_systems_stand_beside_its_figures(tmp_path):
    table = table_published(RUNS)
    assert list(table.index) == ["eft multimodal", *(f"lfmim {h}" for h in HEADS)]
    assert list(table["published"]) == ["68.72", "64.61", "70.37", "54.60", "70.54"]
    lies = table["published lies"].to_dict()
    assert lies["eft multimodal"] == "above"
    assert lies["lfmim vision"] == "below"
    assert lies["lfmim multimodal"] == "inside"
    found = score(RUNS, "lfmim", MULTIMODAL)
    mean = np.mean([r["test"][MULTIMODAL]["accuracy"] for r in RUNS[3:6]])
    assert found.mean == pytest.approx(mean)
    assert found.low < mean < found.high

    # On other data than the paper's the two have nothing to do with each other.
    page = write_comparison(tmp_path, RUNS, [], title="t").read_text(encoding="utf-8")
    assert "Beside the paper" not in page
    page = write_comparison(tmp_path, RUNS, [], title="t", published=True)
    assert "Beside the paper" in page.read_text(encoding="utf-8")
    assert (tmp_path / "published.csv").is_file()


def test_accuracies_of_sentiment_are_of_its_classes():
    labels = [-1.0, -0.4, 0.0, 0.4, 1.0, 0.05]
    predicted = [-0.8, -0.8, 0.05, 0.6, 0.6, -0.05]
    test = {"mae": 0.0}
    run = {
        "system": "lfmim",
        "labels": [labels] * len(HEADS),
        "predictions": {MULTIMODAL: predicted},
        "test": {MULTIMODAL: test},
    }
    runs = [run, run]
    right = {k: 6 * score(runs, "lfmim", MULTIMODAL, k).mean for k in (2, 3, 5)}
    # Two classes: 0 and 0.05 cross zero. Five: -0.4 and 1 are a class off.
    assert right == {2: pytest.approx(4), 3: pytest.approx(6), 5: pytest.approx(4)}
    assert list(table_published(runs)["published"]) == ["83.37", "71.33", "48.36"]


def test_each_figure_is_in_the_page():

    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    figures = [*ACCURACY.values(), *(x for by in SENTIMENT.values() for x in by.values())]
    assert all(f"{x:.2f}" in text for x in figures)
