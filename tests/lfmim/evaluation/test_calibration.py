"""Calibration and figures by group against hand-counted values."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from lfmim.evaluation.calibration import BINS, calibration
from lfmim.evaluation.figures import reliability_diagrams
from lfmim.evaluation.report import _group_figures, _groups
from lfmim.schema import HEADS


def test_expected_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [1.0, 0.0]])
    found = calibration(probabilities, np.array([0, 1, 1, 0]))
    # |1 - 1.8|, |1 - 0.7| and |1 - 1| of four answers
    assert found["ece"] == pytest.approx((0.8 + 0.3 + 0) / 4)
    bins = found["reliability"]
    assert [b["count"] for b in bins if b["count"]] == [1, 2, 1]
    assert bins[13] == {"count": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5}
    assert bins[0]["accuracy"] is None
    assert len(bins) == BINS
    figure = reliability_diagrams({"text": {"count": 4, **found}, "audio": {"count": 0}})
    assert [a.get_title() for a in figure.axes] == ["text: ECE 0.275"]
    assert np.isnan(calibration(np.empty((0, 2)), np.empty(0, int))["ece"])


def test_groups_have_their_own_counts():
    labels = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    always = dict.fromkeys(HEADS, torch.tensor([[0.8, 0.2]] * 3))
    found = _group_figures(["f", "m", "f"], always, labels, ("a", "b"), "emotion")
    assert list(found) == ["f", "m"]
    assert found["f"]["text"] == {
        "count": 2,
        "accuracy": 0.5,
        "uar": 0.5,
        "weighted_f1": pytest.approx(1 / 3),
    }
    assert (found["f"]["audio"]["count"], found["m"]["audio"]["accuracy"]) == (2, 0)
    assert list(_group_figures(["x", "", "x"], always, labels, ("a", "b"), "emotion")) == ["x"]


def test_many_ages_are_decades_and_numbers_of_speakers_are_not():
    numbers = [*map(str, range(20, 32)), None]
    table = pa.table({"age": numbers, "speaker": numbers})
    assert _groups(table, "age") == ["20-29"] * 10 + ["30-39"] * 2 + [""]
    assert _groups(table, "speaker") == [*numbers[:-1], ""]
    assert _groups(table, "gender") == []
