"""CHERMA dumps, CH-SIMS trees, EmotionTalk labels, raw annotations and character n-grams, on files
made to the spec."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from lfmim.data.importers.char_ngrams import import_char_ngrams
from lfmim.data.importers.cherma import import_cherma
from lfmim.data.importers.emotiontalk import import_emotiontalk, strip_marks
from lfmim.data.importers.raw_annotations import import_annotations
from lfmim.data.importers.sims import import_sims
from lfmim.data.manifest import read_manifest
from lfmim.data.store import quarantined, read_table, sequences
from lfmim.schema import HEADS, LABEL_COLUMNS, SENTIMENT_COLUMNS, FeatureSpec, InputError, Modality
from tests.support.toy import LABELS

T, A, V = Modality
SIZES = {"text": ((9, 6), ".npy"), "audio": ((7, 5), ".npy"), "visual": ((4, 8), ".mp4.npy")}


@pytest.fixture
def cherma(tmp_path):
    rng, words = np.random.default_rng(0), list(LABELS.aliases)
    root = tmp_path / "cherma"
    for split, count in (("train", 4), ("dev", 2), ("test", 2)):
        entries = []
        for i in range(count):
            name = f"{split}_{i}"
            entries.append(
                {
                    "audio_file": f"{name}.wav",
                    "video_file": f"{name}.mp4",
                    "txt_label": words[i],
                    "audio_label": words[i + 1],
                    "visual_label": words[i + 2],
                    "video_label": words[i + 3],
                }
            )
            for folder, (shape, ending) in SIZES.items():
                path = root / folder / split / f"{name}{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(
                    path,
                    rng.normal(size=shape).astype(rng.choice([np.float16, np.float32, np.float64])),
                )
        (root / f"{split}.json").write_text(
            json.dumps(entries, ensure_ascii=False), encoding="utf-8"
        )
    return root


def test_cherma(cherma, tmp_path):
    first = cherma / "text" / "train" / "train_0.npy"
    x = np.load(first).astype(np.float32)
    x[5:] = 0
    np.save(first, x)
    report = import_cherma(cherma, tmp_path / "store")
    table = read_table(tmp_path / "store")
    assert report.rows == report.stored == 8
    assert report.padding == {"text": 4, "audio": 0, "vision": 0}
    assert table["split"].to_pylist() == ["valid"] * 2 + ["test"] * 2 + ["train"] * 4
    row = table.to_pylist()[4]
    assert row["id"] == "train_0"
    assert [row[LABEL_COLUMNS[h]] for h in HEADS] == list(LABELS.aliases.values())[:4]
    np.testing.assert_array_equal(sequences(table, T)[4], x[:5].astype(np.float16))
    np.testing.assert_array_equal(
        sequences(table, V)[0], np.load(cherma / "visual/dev/dev_0.mp4.npy").astype(np.float16)
    )
    spec = FeatureSpec.load(tmp_path / "store")
    assert spec.dims == {T: 6, A: 5, V: 8}
    import_cherma(cherma, tmp_path / "again")
    assert FeatureSpec.load(tmp_path / "again").differences(spec) == []
    np.save(cherma / "audio/test/test_1.npy", np.ones((2, 5)))
    import_cherma(cherma, tmp_path / "changed")
    assert (
        FeatureSpec.load(tmp_path / "changed")
        .differences(spec)[0]
        .startswith("audio.weights_sha256")
    )


def test_cherma_files_that_are_missing_or_damaged(cherma, tmp_path):
    (cherma / "audio/train/train_0.npy").unlink()
    (cherma / "audio/train/train_1.npy").write_bytes(b"\x93NUMPY half")
    np.save(
        cherma / "visual/train/train_2.mp4.npy",
        np.array([{"os": "system"}], dtype=object),
        allow_pickle=True,
    )
    np.save(cherma / "text/train/train_3.npy", np.ones((9, 7)))
    report = import_cherma(cherma, tmp_path / "store")
    assert {r["id"]: r["error"] for r in quarantined(tmp_path / "store").to_pylist()} == {
        "train_1": "audio: the file is no array of numbers",
        "train_2": "vision: the file is no array of numbers",
        "train_3": "text: shape [9, 7] where [T, 6] is expected",
    }
    table = read_table(tmp_path / "store")
    absent = dict(
        zip(table["id"].to_pylist(), table["audio_features"].is_null().to_pylist(), strict=True)
    )
    assert [k for k, gone in absent.items() if gone] == ["train_0"]
    assert report.absent == {"audio": 1}
    assert report.rows == 8 == report.stored + 3


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("audio_file", "../../etc/x.wav", "leaves the dump"),
        ("audio_file", "/etc/x.wav", "leaves the dump"),
        ("audio_file", "train_0.wav", r"row 2, field 'audio_file': duplicate, first in .*row 1"),
        ("audio_file", None, "row 2, field 'audio_file': missing"),
        ("txt_label", "难受", "row 2, field 'txt_label'"),
    ],
)
def test_cherma_bad_entries_are_named_and_nothing_is_written(
    cherma, tmp_path, field, value, message
):
    entries = json.loads((cherma / "train.json").read_text(encoding="utf-8"))
    entries[1][field] = value
    (cherma / "train.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        import_cherma(cherma, tmp_path / "store")
    assert "train.json: row 2" in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["cherma"]


def rewrite(path, **changes):
    """The entries of a CHERMA list with fields changed (None: removed), as ASCII."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps([{k: v for k, v in (e | changes).items() if v is not None} for e in entries])
    )


def test_cherma_tells_what_it_does_not_know(cherma, tmp_path):
    assert import_cherma(cherma, tmp_path / "all").notes == []
    rewrite(cherma / "dev.json", txt_label=None, text_label="高兴")
    (cherma / "valid.json").write_text("[]", encoding="utf-8")
    assert import_cherma(cherma, tmp_path / "store").notes == [
        "field 'text_label' of 2 entries was not read: its name is not known here",
        "valid.json was not read: the files known are train.json, dev.json, test.json",
    ]
    for split in ("train", "dev", "test"):
        rewrite(
            cherma / f"{split}.json",
            **{f"{c}_label": None for c in ("txt", "audio", "visual", "video")},
        )
    assert any(
        note.startswith("no label is there")
        for note in import_cherma(cherma, tmp_path / "bare").notes
    )


def test_cherma_in_another_encoding_and_with_half_characters(cherma, tmp_path):
    entries = json.loads((cherma / "train.json").read_text(encoding="utf-8"))
    entries[0]["audio_file"] = "a\ud83d.wav"
    (cherma / "train.json").write_text(json.dumps(entries))
    import_cherma(cherma, tmp_path / "store")
    # no features of that name
    assert quarantined(tmp_path / "store")["id"].to_pylist() == ["a\ufffd"]
    (cherma / "train.json").write_text(json.dumps(entries[1:], ensure_ascii=False), encoding="gbk")
    with pytest.raises(
        InputError, match=r"train\.json: not UTF-8 .it looks like GBK/GB18030.; save it as UTF-8"
    ):
        import_cherma(cherma, tmp_path / "other")


SIMS = """clip_id,video_id,label,text,label_A,label_T,label_V,annotation,mode
0001,video_0001,-0.8,"坏，了",0.2,-1,,Negative,train
0002,video_0001,0,好,0,1.0,0.4,Neutral,valid
"""


@pytest.fixture
def sims(tmp_path):
    root = tmp_path / "sims"
    (root / "Raw" / "video_0001").mkdir(parents=True)
    (root / "Raw" / "video_0001" / "0001.mp4").write_bytes(b"video")
    (root / "label.csv").write_text("\ufeff" + SIMS, encoding="utf-8")
    return root


def test_sims_tree(sims, tmp_path):
    lines = import_sims(sims, sims / "clips.csv")
    assert lines == ["2 clips; 1 videos missing (their rows keep the text)"]
    frame = read_manifest(str(sims / "clips.csv"))
    assert frame["id"].tolist() == ["video_0001$_$0001", "video_0001$_$0002"]
    assert frame["video"].tolist() == [str(sims / "Raw/video_0001/0001.mp4"), ""]
    assert frame["split"].tolist() == ["train", "valid"]
    assert frame[list(SENTIMENT_COLUMNS.values())].values.tolist() == [
        [-1.0, 0.2, None, -0.8],
        [1.0, 0.0, 0.4, 0.0],
    ]
    assert "Raw/video_0001/0001.mp4" in (sims / "clips.csv").read_text()
    assert str(sims) not in (sims / "clips.csv").read_text()
    import_sims(sims, tmp_path / "out" / "clips.parquet")  # elsewhere: absolute paths
    assert (
        read_manifest(str(tmp_path / "out" / "clips.parquet"))["video"].tolist()
        == frame["video"].tolist()
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0002,video_0001", "0002,../..", "row 2, field 'video_id'"),
        ("0002,video", "a/b,video", "row 2, field 'clip_id'"),
        ("0002", "0001", "row 2, field 'clip_id': video_id and clip_id repeat"),
        ("valid", "dev", "row 2, field 'mode'"),
        (",0,好", ",-2,好", "row 2, field 'label'"),
        ("clip_id", "clip", "column 'clip_id' is missing"),
    ],
)
def test_sims_bad_rows_are_named(sims, old, new, message):
    (sims / "label.csv").write_text(SIMS.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        import_sims(sims, sims / "clips.csv")
    assert not (sims / "clips.csv").exists()


def test_a_sims_table_in_gbk_and_columns_that_are_not_carried_over(sims):
    text = "".join(
        f"{line},{end}\n"
        for line, end in zip(SIMS.splitlines(), ("speaker", "s1", "s2"), strict=True)
    )
    (sims / "label.csv").write_text(text, encoding="gbk")
    assert import_sims(sims, sims / "clips.csv")[1:] == ["  columns not carried over: speaker"]
    assert read_manifest(str(sims / "clips.csv"))["text"].tolist() == ["坏，了", "好"]


@pytest.mark.parametrize(
    ("marked", "words"),
    [
        ("[over/]还给他点[/over]饭。", "还给他点饭。"),
        ("挺[interrupted][/over]。", "挺。"),
        ("[laughing]好[Sobbing]", "好"),
        ("[over/我敲您]的门[/over/]", "我敲您的门"),
        ("觉得[over[/over]]挺好的[[/over]over]。", "觉得挺好的。"),
        ("没问题/over]。", "没问题。"),
        ("game over了", "game over了"),
    ],
)
def test_marks_are_stripped_and_speech_is_kept(marked, words):
    assert strip_marks(marked) == words


def test_emotiontalk(tmp_path):
    frame = pd.DataFrame(
        {
            "id": ["a", "b"],
            "speaker": ["01", "02"],
            "dialogue": ["d", "d"],
            "split": ["train", "valid"],
            "transcript": ["[over/]好[/over]。", "走"],
            **{c: ["anger", "fear"] for c in LABEL_COLUMNS.values()},
        }
    )
    frame.to_parquet(tmp_path / "labels.parquet")
    lines = import_emotiontalk(tmp_path / "labels.parquet", tmp_path / "m.jsonl")
    assert lines[0] == "2 utterances: train 1, valid 1"
    assert lines[2] == "no speaker is in two splits"
    manifest = read_manifest(str(tmp_path / "m.jsonl"))
    assert manifest[
        ["id", "video", "text", "split", "speaker", "label_vision"]
    ].values.tolist() == [
        ["a", "", "好。", "train", "01", "anger"],
        ["b", "", "走", "valid", "02", "fear"],
    ]
    frame.assign(speaker="01").to_parquet(tmp_path / "labels.parquet")
    assert import_emotiontalk(tmp_path / "labels.parquet", tmp_path / "m.jsonl")[2].startswith(
        "1 speakers are in more"
    )


def test_annotations_with_and_without_a_manifest(tmp_path):
    rows = [
        (s, h, f"r{i}", e)
        for s, labels in (("a", "anger anger anger"), ("b", "anger fear sadness"))
        for h in HEADS
        for i, e in enumerate(labels.split())
    ]
    pd.DataFrame(
        [*rows, ("stray", "text", "r", "anger")], columns=["id", "modality", "annotator", "label"]
    ).to_csv(tmp_path / "votes.csv", index=False)
    lines = import_annotations(tmp_path / "votes.csv", tmp_path / "alone.csv")
    assert read_manifest(str(tmp_path / "alone.csv"))[["id", "label_text"]].values.tolist() == [
        ["a", "anger"]
    ]
    assert lines[0].startswith("3 samples annotated: 1 kept, 2 discarded")
    assert any("Fleiss' kappa of the first three annotators, vision:" in line for line in lines)
    (tmp_path / "clips.csv").write_text(
        "id,video,text,scene\na,a.mp4,好,x\nb,,坏,y\nc,,走,z\n", encoding="utf-8"
    )
    lines = import_annotations(
        tmp_path / "votes.csv", tmp_path / "labelled.csv", str(tmp_path / "clips.csv")
    )
    labelled = pd.read_csv(tmp_path / "labelled.csv", dtype=str, keep_default_na=False)
    assert labelled[["id", "video", "scene", "label_multimodal"]].values.tolist() == [
        ["a", "a.mp4", "x", "anger"]
    ]
    discarded = pd.read_csv(tmp_path / "labelled.csv.discarded.csv", keep_default_na=False)
    assert set(discarded["id"]) == {"b", "c", "stray"}
    assert discarded.loc[discarded["id"] == "b", "reason"].tolist() == ["1:1:1"] * 4
    assert lines[-1].strip().startswith("1 annotated ids are not in")
    undecided = pd.DataFrame(rows[12:], columns=["id", "modality", "annotator", "label"])
    undecided.to_csv(tmp_path / "votes.csv", index=False)
    with pytest.raises(InputError, match="no sample is left: 4 x 1:1:1"):
        import_annotations(tmp_path / "votes.csv", tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_char_ngrams(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text(
        "id,video,text,split,label_text,sentiment_text,scene\na,,你好啊,train,anger,0.4,x\n"
        "b,,你好啊,valid,fear,,y\nc,,,train,fear,,z\n",
        encoding="utf-8",
    )
    report = import_char_ngrams(str(path), tmp_path / "store", dim=256)
    assert report.quarantined == {"the row has no text": 1}
    table = read_table(tmp_path / "store")
    a, b = sequences(table, T)
    assert a.shape == (1, 256)
    np.testing.assert_array_equal(a, b)
    assert np.count_nonzero(a) == 6  # three characters, two pairs, one triple
    assert (a.astype(float) ** 2).mean() == pytest.approx(1, abs=1e-3)
    assert table["sentiment_text"].to_pylist() == [0.4, None]
    assert table["scene"].to_pylist() == ["x", "y"]
    spec = FeatureSpec.load(tmp_path / "store")
    import_char_ngrams(str(path), tmp_path / "longer", dim=256, longest=2)
    assert spec.dims == {T: 256}
    assert spec.differences(FeatureSpec.load(tmp_path / "longer"))[0].startswith(
        "text.weights_sha256"
    )
