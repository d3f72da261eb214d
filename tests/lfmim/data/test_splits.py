"""6:2:2 splits: sizes, determinism, shares of labels, no speaker in two splits; folds: exhaustive,
no speaker in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.data.splits import (
    METHODS,
    Fold,
    Subset,
    fold_parts,
    groups_of,
    split_rows,
    store_folds,
)
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import SPLITS, InputError
from tests.support.toy import DIMS, EMOTIONS, SPEC, toy_rows


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


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), speakers=st.integers(3, 30), data=st.data())
def test_each_speaker_is_tested_in_one_fold_and_is_in_no_two_splits_of_any(seed, speakers, data):
    rows = frame(200, speakers, seed)
    folds = data.draw(st.integers(3, min(10, rows["speaker"].nunique())))
    parts = fold_parts(rows, folds, seed=seed)
    assert (parts == fold_parts(rows, folds, seed=seed)).all()
    made = pd.DataFrame({k: [Fold(k, folds).split_of(p) for p in parts] for k in set(parts)})
    assert made.shape[1] == folds
    for split in ("valid", "test"):
        assert made.eq(split).sum(axis=1).eq(1).all()
    for _, of_fold in made.items():
        assert set(of_fold) == set(SPLITS)
        assert of_fold.groupby(rows["speaker"].to_numpy()).nunique().eq(1).all()


def test_folds_of_as_many_speakers_are_in_name_order_and_too_few_are_refused():
    rows = pd.DataFrame({"speaker": [f"s{i % 7}" for i in range(70)], "label_multimodal": "a"})
    assert fold_parts(rows, 7)[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    # All labels are rarer than the folds: no ground to stratify by.
    rare = frame(9, 9).assign(
        speaker=[f"s{i}" for i in range(9)], label_multimodal=list("abcdefghi")
    )
    assert set(fold_parts(rare, 4)) == {1, 2, 3, 4}
    for folds, why in ((2, "3 are the least"), (8, "7 values of 'speaker'")):
        with pytest.raises(InputError, match=why):
            fold_parts(rows, folds)


def write_folds(folder: Path, *, speakers: int, fold: list[str] | None = None) -> Path:
    """A store of 60 rows, all of split train."""
    rows = toy_rows(60)
    for i, row in enumerate(rows):
        row["speaker"] = f"s{i % speakers}" if speakers else None
        row["fold"] = fold[i] if fold else None
    write_spec(folder, SPEC)
    schema = store_schema(DIMS, ["fold"] if fold else [])
    write_part(folder, rows_to_table(rows, schema, DIMS))
    return folder


def test_a_store_has_its_own_folds_or_those_of_its_speakers(tmp_path):
    own = write_folds(tmp_path / "own", speakers=6, fold=[str(i % 3 + 1) for i in range(60)])
    found = store_folds(own, 3)
    assert found.parts["train0004"] == 2
    assert "the store's column 'fold'; no speaker is in two folds" in found.how
    assert found.ids(Fold(3, 3), "valid") == [f"train{i:04}" for i in range(0, 60, 3)]
    mixed = write_folds(tmp_path / "mixed", speakers=4, fold=[str(i % 3 + 1) for i in range(60)])
    assert "4 of 4 speakers are in several folds" in store_folds(mixed, 3).how

    made = store_folds(write_folds(tmp_path / "made", speakers=12), 4)
    assert set(made.parts.values()) == {1, 2, 3, 4}
    assert "made of 12 whole speakers" in made.how


def test_what_a_store_has_in_place_of_its_folds_is_told(tmp_path):
    own = write_folds(tmp_path / "own", speakers=6, fold=["1", "2", "3", "4"] * 15)
    with pytest.raises(InputError, match=r"'fold': 15 rows '1', .* --folds 5 needs each of 1 to 5"):
        store_folds(own, 5)
    gap = write_folds(tmp_path / "gap", speakers=6, fold=["1", "2", "3", ""] * 15)
    with pytest.raises(InputError, match="15 rows '', 15 rows '1'"):
        store_folds(gap, 3)
    none = write_folds(tmp_path / "none", speakers=0)
    with pytest.raises(InputError, match=r"no column 'fold'.* 0 values of 'speaker'.*--folds 3"):
        store_folds(none, 3)


def test_a_larger_subset_holds_the_smaller_one_of_its_number():
    rows = {(n, k): Subset(n, k).rows(100) for n in (10, 40) for k in (0, 1)}
    for (n, k), drawn in rows.items():
        assert len(set(drawn)) == n
        assert list(drawn) == sorted(drawn) == list(Subset(n, k).rows(100))
    assert set(rows[10, 0]) < set(rows[40, 0])
    assert set(rows[10, 0]) != set(rows[10, 1])
    assert list(Subset(100, 3).rows(100)) == list(range(100))
    with pytest.raises(InputError, match="101 training utterances are asked for, and 100 are"):
        Subset(101, 0).rows(100)


@pytest.mark.parametrize(
    ("speakers", "clips", "unit"),
    [(6, 30, "speaker"), (4, 30, "clip"), (1, 60, "utterance"), (0, 30, "clip")],
)
def test_speakers_are_the_groups_where_they_are_enough_else_clips(tmp_path, speakers, clips, unit):
    rows = toy_rows(60)
    for i, row in enumerate(rows):
        row |= {"speaker": f"s{i % speakers}" if speakers else "", "video": f"{i % clips}.mp4"}
    write_spec(tmp_path, SPEC)
    write_part(tmp_path, rows_to_table(rows, store_schema(DIMS), DIMS))
    ids = [row["id"] for row in rows[:30]] if unit == "speaker" else [row["id"] for row in rows]
    found = groups_of(tmp_path, ids)
    assert found.unit == unit
    column = {"speaker": "speaker", "clip": "video", "utterance": "id"}[unit]
    assert found.names == [row[column] for row in rows[: len(ids)]]
