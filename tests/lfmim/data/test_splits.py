"""6:2:2 splits: sizes, determinism, shares of labels, no speaker in two splits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.data.splits import METHODS, split_rows
from lfmim.schema import SPLITS, InputError
from tests.support.toy import EMOTIONS


def frame(n: int, speakers: int = 20, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"u{i}" for i in range(n)],
            "speaker": [f"s{k}" for k in rng.integers(speakers, size=n)],
            "label_multimodal": rng.choice(EMOTIONS[:3], n, p=[0.7, 0.2, 0.1]),
        }
    ).astype(object)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(5, 300), seed=st.integers(0, 99))
def test_shuffled_is_6_2_2_and_each_row_has_one_split(n, seed):
    split = split_rows(frame(n), "shuffled", seed=seed)
    counts = [split.count(s) for s in SPLITS]
    assert sum(counts) == n
    assert np.abs(np.array(counts) - n * np.array([0.6, 0.2, 0.2])).max() <= 1.5


@pytest.mark.parametrize("method", METHODS)
def test_deterministic_by_seed(method):
    rows = frame(200)
    assert split_rows(rows, method, seed=3) == split_rows(rows, method, seed=3)
    assert split_rows(rows, method, seed=3) != split_rows(rows, method, seed=4)


def test_stratified_keeps_the_shares():
    rows = frame(500)
    rows["split"] = split_rows(rows, "stratified")
    whole = rows["label_multimodal"].value_counts(normalize=True)
    for _, part in rows.groupby("split"):
        shares = part["label_multimodal"].value_counts(normalize=True)
        assert (shares - whole).abs().max() < 0.01


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 99), speakers=st.integers(6, 30))
def test_no_speaker_is_in_two_splits(seed, speakers):
    rows = frame(300, speakers, seed)
    rows["split"] = split_rows(rows, "speaker", seed=seed)
    assert (rows.groupby("speaker")["split"].nunique() == 1).all()
    assert set(rows["split"]) == set(SPLITS)


def test_what_cannot_be_split_is_told():
    rows = frame(50)
    for bad, method, group, message in (
        (rows[:4], "shuffled", "speaker", "too few"),
        (rows, "random", "speaker", "not one of"),
        (rows, "speaker", "scene", "'scene' is missing"),
        (rows.assign(speaker="s"), "speaker", "speaker", "has 1 values"),
        (
            rows.assign(speaker=["", *rows["speaker"][1:]]),
            "speaker",
            "speaker",
            "row 1, field 'speaker'",
        ),
    ):
        with pytest.raises(InputError, match=message):
            split_rows(bad, method, group=group)
