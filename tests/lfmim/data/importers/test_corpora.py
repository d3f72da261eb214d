"""Importers of corpora, on their real tables where those are at hand and on small trees of their
layout."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lfmim.data.importers.corpora import fold_splits
from lfmim.data.importers.ravdess import import_ravdess, read_aus
from lfmim.data.manifest import manifest_labels
from lfmim.schema import InputError, read_label_spec
from tests.support.toy import ROOT

REAL = ROOT.parent / "shared" / "real" / "data"


@pytest.fixture(scope="session")
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip("the real tables (../shared/real/data) are not here")
    return REAL


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_each_group_is_tested_once_and_is_in_no_two_splits_of_a_fold():
    speakers = [f"s{i % 7}" for i in range(70)]
    frame = pd.DataFrame({"speaker": speakers, "label_multimodal": ["a", "b"] * 35})
    for folds in (3, 7):
        made = fold_splits(frame, folds)
        tested = pd.DataFrame(made).eq("test").sum()
        assert (tested == 1).all()
        for split in made:
            assert set(split) == {"train", "valid", "test"}
            assert frame.assign(split=split).groupby("speaker").split.nunique().eq(1).all()
    assert fold_splits(frame, 7)[2][:7] == ["train"] * 2 + ["test", "valid"] + ["train"] * 3
    for folds, why in ((2, "3 are the least"), (8, "7 values of 'speaker'")):
        with pytest.raises(InputError, match=why):
            fold_splits(frame, folds)


def test_ravdess_with_action_units(real, tmp_path):
    audio, aus = real / "ravdess" / "audio", real / "ravdess" / "openface_au_means.csv"
    lines = import_ravdess(audio, tmp_path / "r.csv", aus=aus, folds=6)
    assert lines[0] == "1440 utterances of 24 speakers"
    rows = read(tmp_path / "r.csv")
    assert rows.split.value_counts().to_dict() == {"train": 900, "valid": 180, "test": 360}
    assert set(rows.speaker[rows.split == "test"]) == {f"Actor_{a}" for a in range(19, 25)}
    row = rows.set_index("id").loc["01-05-02-01-01-12"]
    assert row.label_audio == row.label_vision == row.label_multimodal == "angry"
    assert (row.gender, row.intensity) == ("female", "strong")
    assert "label_text" not in rows
    assert manifest_labels(str(tmp_path / "r.csv")) == read_label_spec("ravdess8")
    folds = [read(tmp_path / f"r.fold{k}.csv") for k in range(1, 7)]
    assert sum((f.split == "test").sum() for f in folds) == 1440
    arrays = pq.read_table(tmp_path / "r.vision.parquet").to_pylist()
    vectors, _ = read_aus(aus)
    assert len(arrays) == 1440
    assert arrays[0]["features"] == vectors[arrays[0]["id"]].tolist()


def test_ravdess_takes_one_file_an_utterance_and_names_the_field(tmp_path):
    tree = touched(
        tmp_path / "in",
        "Actor_02/03-01-02-01-01-01-02.wav",
        "Actor_02/01-01-02-01-01-01-02.mp4",
        "Actor_02/02-01-02-01-01-01-02.mp4",
        "Actor_16/02-01-03-01-01-01-16.mp4",
        "Actor_16/03-02-03-01-01-01-16.wav",
        "Actor_16/._03-01-03-01-01-01-16.wav",
    )
    import_ravdess(tree, tmp_path / "r.csv")
    rows = read(tmp_path / "r.csv")
    assert [Path(v).name[:2] for v in rows.video] == ["01", "02"]
    assert rows.label_audio.tolist() == ["calm", ""]
    assert rows.label_vision.tolist() == ["calm", "happy"]
    assert rows.split.tolist() == ["train", "valid"]
    own = tmp_path / "own.yaml"
    own.write_text("{name: own, classes: [neutral, happy], merges: {calm: neutral}}")
    lines = import_ravdess(tree, tmp_path / "r.csv", labels=str(own))
    assert "  'calm' counted as neutral: 1 times" in lines
    touched(tree, "Actor_16/03-01-09-01-01-01-16.wav")
    with pytest.raises(InputError, match=r"01-16\.wav, field 'emotion': 09 is not in 01 to 08"):
        import_ravdess(tree, tmp_path / "r.csv")


def test_action_units_are_named_by_row_and_column(tmp_path):
    table = tmp_path / "aus.csv"
    table.write_text("name;AU01_r\n01-01-02-01-01-01-02;0.5\n01-01-02-01-01-02-02;x\n")
    with pytest.raises(InputError, match=r"row 2, field 'AU01_r': 'x' is no number"):
        read_aus(table)
    table.write_text("name,AU01_r\n01-01,0.5\n")
    with pytest.raises(InputError, match="separated by ;"):
        read_aus(table)
