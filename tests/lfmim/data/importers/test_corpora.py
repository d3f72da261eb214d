"""Importers of corpora, on their real tables where those are at hand and on small trees of their
layout."""

from __future__ import annotations

import wave
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from lfmim.data.importers.crema_d import import_crema_d
from lfmim.data.importers.folders import import_folders
from lfmim.data.importers.iemocap import import_iemocap
from lfmim.data.importers.meld import import_meld
from lfmim.data.importers.mer import import_mer
from lfmim.data.importers.ravdess import import_ravdess, read_aus
from lfmim.data.importers.sims import import_sims
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
    assert "  labels own: 1 x 'calm' counted as neutral" in lines
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


def test_crema_d_has_three_heads_of_the_votes(real, tmp_path):
    lines = import_crema_d(real / "crema_d", tmp_path / "c.csv")
    rows = read(tmp_path / "c.csv").set_index("id")
    votes = pd.read_csv(real / "crema_d" / "tabulatedVotes.csv")
    assert len(rows) == 7442
    assert rows.speaker.groupby(rows.split).nunique().sum() == 91
    # The table's own answer, which names both of a tie.
    word = dict(zip("ADFHNS", ("anger", "disgust", "fear", "happy", "neutral", "sad"), strict=True))
    for digit, head in ((1, "audio"), (2, "vision"), (3, "multimodal")):
        own = votes[votes.iloc[:, 0] // 100_000 == digit].set_index("fileName").emoVote
        want = own.map(lambda v: word.get(v, "")).reindex(rows.index)
        assert (rows[f"label_{head}"] == want).all()
        assert f"  {(want == '').sum()} ties of label_{head}: left empty" in lines
    assert (rows.gender["1001_IEO_NEU_XX"], rows.age["1001_IEO_NEU_XX"]) == ("male", "51")


def test_crema_d_finds_media_and_names_row_and_field(tmp_path):
    names = [f"{a}_IEO_ANG_HI" for a in range(1001, 1007)]
    table = ",A,D,F,H,N,S,fileName\n" + "".join(
        f"30000{i},3,0,0,0,1,0,{n}\n" for i, n in enumerate(names)
    )
    tree = touched(
        tmp_path / "in",
        f"AudioWAV/{names[0]}.wav",
        f"VideoFlash/{names[0]}.flv",
        f"AudioWAV/{names[1]}.wav",
    )
    (tree / "tabulatedVotes.csv").write_text(table)
    lines = import_crema_d(tree, tmp_path / "c.csv", folds=3)
    rows = read(tmp_path / "c.csv")
    assert [Path(v).suffix for v in rows.video[:3]] == [".flv", ".wav", ""]
    assert "  4 clips have no file: their column 'video' is empty" in lines
    assert set(rows.label_multimodal) == {"anger"}
    (tree / "tabulatedVotes.csv").write_text(table.replace("300002,3", "300002,x"))
    with pytest.raises(
        InputError, match=r"tabulatedVotes\.csv: row 3, field 'A': 'x' is no number"
    ):
        import_crema_d(tree, tmp_path / "c.csv")


def test_meld_keeps_its_splits_and_names_its_defects(real, tmp_path):
    lines = import_meld(real / "meld", tmp_path / "m.csv")
    rows = read(tmp_path / "m.csv").set_index("id")
    assert rows.split.value_counts().to_dict() == {"train": 9989, "valid": 1109, "test": 2610}
    row = rows.loc["train_dia0_utt1"]
    assert row.text == "You must’ve had your hands full."
    assert (row.label_multimodal, row.sentiment_multimodal) == ("neutral", "0.0")
    assert set(rows.sentiment_multimodal) == {"-1.0", "0.0", "1.0"}
    odd = [line for line in lines if "s long" in line]
    assert [line.split()[3] for line in odd] == ["41.040", "304.940", "0.000", "235.068"]


def test_meld_opens_its_clips(tmp_path):
    header = "Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID\n"
    rows = [f"It\x92s me,Joey,joy,positive,0,{k}\n" for k in range(3)]
    (tmp_path / "train_sent_emo.csv").write_text(header + "".join(rows), encoding="utf-8")
    clips = touched(tmp_path / "media", "x/train_splits/dia0_utt1.mp4")
    with wave.open(str(clips / "x" / "train_splits" / "dia0_utt0.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    lines = import_meld(tmp_path, tmp_path / "m.csv", media=clips)
    found = read(tmp_path / "m.csv")
    assert found.video.tolist() == ["media/x/train_splits/dia0_utt0.mp4", "", ""]
    assert found.text[0] == "It’s me"
    assert any("dia0_utt1.mp4: cannot be used" in line for line in lines)
    assert "  1 clips of train are missing" in lines
    (tmp_path / "train_sent_emo.csv").write_text(header + rows[0].replace("joy,", "glee,"))
    with pytest.raises(InputError, match=r"row 1, field 'Emotion': unknown emotion 'glee'"):
        import_meld(tmp_path, tmp_path / "m.csv")


def test_folders_of_classes_with_splits_and_speakers(tmp_path):
    tree = touched(
        tmp_path / "in", *(f"dev/happy/p{k}_1.mp4" for k in range(2)), "train/fear/p2_1.wav"
    )
    (tree / "train" / "fear" / "p2_1.txt").write_text("no!\n", encoding="utf-8")
    import_folders(tree, tmp_path / "f.csv", speaker=r"(p\d)_")
    rows = read(tmp_path / "f.csv")
    assert rows.split.tolist() == ["valid", "valid", "train"]
    assert rows.label_multimodal.tolist() == ["happiness", "happiness", "fear"]
    assert rows.speaker.tolist() == ["p0", "p1", "p2"]
    assert rows.text.tolist() == ["", "", "no!"]
    with pytest.raises(InputError, match=r"p0_1\.mp4: --speaker '\(q\)' is not found in it"):
        import_folders(tree, tmp_path / "f.csv", speaker="(q)")
    with pytest.raises(InputError, match="one group is needed"):
        import_folders(tree, tmp_path / "f.csv", speaker="q")
    touched(tree, "boredom/1.mp4")
    with pytest.raises(InputError, match=r"boredom, the folder's name: unknown emotion 'boredom'"):
        import_folders(tree, tmp_path / "f.csv")


def iemocap_tree(root: Path) -> Path:
    for session in range(1, 6):
        name, folder = f"Ses0{session}F_impro01", root / f"Session{session}"
        evaluated = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"
        for who, emotion, valence in (
            ("F000", "exc", 4.5),
            ("M000", "fru", 2),
            ("F001", "xxx", 5.5),
        ):
            evaluated += (
                f"[6.2901 - 8.2357]\t{name}_{who}\t{emotion}\t[{valence:.4f}, 2.5000, 3.0000]\n"
            )
            evaluated += "C-E2:\tHappiness;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
        for path, text in (
            ("EmoEvaluation", evaluated),
            ("transcriptions", f"{name}_F000 [006.2901-008.2357]: Excuse me.\n"),
        ):
            (folder / "dialog" / path).mkdir(parents=True)
            (folder / "dialog" / path / f"{name}.txt").write_text(text)
        touched(folder, f"sentences/wav/{name}/{name}_F000.wav")
    return root


def test_iemocap_by_sessions(tmp_path):
    tree = iemocap_tree(tmp_path / "in")
    lines = import_iemocap(tree, tmp_path / "i.csv", folds=5)
    rows = read(tmp_path / "i.csv")
    first = rows.iloc[0]
    assert (first.id, first.text) == ("Ses01F_impro01_F000", "Excuse me.")
    assert first.video == "in/Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F000.wav"
    assert (first.label_multimodal, first.sentiment_multimodal) == ("happy", "4.5")
    assert (first.speaker, rows.speaker[1], rows.emotion[1]) == ("Ses01_F", "Ses01_M", "fru")
    assert rows.label_multimodal[1:3].tolist() == ["", ""]
    assert rows.groupby("session").split.first().tolist() == ["train"] * 3 + ["valid", "test"]
    for told in (
        "labels iemocap4: 5 x 'exc' counted as happy",
        "5 utterances have a valence beyond 1 to 5",
    ):
        assert any(told in line for line in lines)
    for k in range(1, 6):
        fold = read(tmp_path / f"i.fold{k}.csv")
        assert set(fold.session[fold.split == "test"]) == {str(k)}
        assert set(fold.session[fold.split == "valid"]) == {str(k % 5 + 1)}
    import_iemocap(tree, tmp_path / "six.csv", labels="iemocap6")
    assert read(tmp_path / "six.csv").label_multimodal[:2].tolist() == ["excited", "frustrated"]
    path = tree / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"
    path.write_text(path.read_text().replace("\tfru\t", "\t"))
    with pytest.raises(InputError, match=r"Ses02F_impro01\.txt: line 7: .*is not \[start - end\]"):
        import_iemocap(tree, tmp_path / "i.csv")


def test_mer_tables_and_texts(tmp_path):
    table, text = tmp_path / "train-label.csv", tmp_path / "text.csv"
    table.write_text("name,discrete,valence\nsample_0001,worried,-2.5\nsample_0002,happy,3\n")
    text.write_text("name,sentence\nsample_0001,我担心\n", encoding="utf-8")
    media = touched(tmp_path / "video", "sample_0002.avi")
    lines = import_mer(table, tmp_path / "m.csv", media=media, text=text)
    rows = read(tmp_path / "m.csv")
    assert rows.label_multimodal.tolist() == ["worried", "happy"]
    assert rows.sentiment_multimodal.tolist() == ["-2.5", "3"]
    assert rows.video.tolist() == ["", "video/sample_0002.avi"]
    assert rows.text.tolist() == ["我担心", ""]
    assert "  1 rows have no video: the column is empty there" in lines
    table.write_text("name,discrete\n" + "".join(f"s{k},sad\n" for k in range(10)))
    lines = import_mer(table, tmp_path / "n.csv")
    assert (
        "  split 6:2:2 at random: without a column 'speaker', one may be in several splits" in lines
    )
    found = read(tmp_path / "n.csv").split.value_counts().to_dict()
    assert found == {"train": 6, "valid": 2, "test": 2}
    table.write_text("name,discrete,valence\nsample_0001,worried,-7\n")
    with pytest.raises(InputError, match=r"row 1, field 'valence': '-7' is not a sentiment score"):
        import_mer(table, tmp_path / "m.csv")
    table.write_text("name,label\nsample_0001,worried\n")
    with pytest.raises(InputError, match="no column 'discrete' or"):
        import_mer(table, tmp_path / "m.csv")


def test_sims_v2_has_another_table_and_another_word_for_valid(tmp_path):
    touched(tmp_path, "Raw/v/0001.mp4")
    (tmp_path / "meta.csv").write_text(
        "video_id,clip_id,text,label,mode\nv,0001,好,0.4,val\n", encoding="utf-8"
    )
    import_sims(tmp_path, tmp_path / "s.csv")
    (row,) = read(tmp_path / "s.csv").to_dict("records")
    assert (row["split"], row["video"]) == ("valid", "Raw/v/0001.mp4")
