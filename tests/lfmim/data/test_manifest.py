"""Manifests are checked as a whole, and what is wrong is told by file, row and field."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from lfmim.data.manifest import (
    manifest_labels,
    passthrough_columns,
    read_manifest,
    read_reported,
)
from lfmim.schema import LABEL_COLUMNS, InputError, LabelSpec
from tests.support.toy import EMOTIONS, LABELS

GOOD = """id,video,text,split,speaker,label_text,label_audio,label_vision,label_multimodal,mood
a,a.mp4,"你好, 世界",train,s1,anger,高兴,,Fear,calm
b,clips/b.mp4,,valid,,,,惊奇,sadness,7
007,,only text,,s2,neutrality,,,,
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "clips/b.mp4"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write(folder: Path, text: str, name: str = "m.csv", encoding: str = "utf-8") -> str:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return str(path)


def refusal(path: str, **options) -> str:
    with pytest.raises(InputError) as error:
        read_manifest(path, **options)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_good_manifest(folder, encoding):
    frame = read_manifest(write(folder, GOOD, encoding=encoding))
    assert frame["id"].tolist() == ["a", "b", "007"]
    assert frame["video"].tolist() == [f"{folder}/a.mp4", f"{folder}/clips/b.mp4", ""]
    assert frame["text"].tolist() == ["你好, 世界", "", "only text"]
    assert frame["split"].tolist() == ["train", "valid", ""]
    assert frame["label_audio"].tolist() == ["happiness", None, None]
    assert frame["label_multimodal"].tolist() == ["fear", "sadness", None]
    assert passthrough_columns(frame) == ["mood"]
    assert frame["mood"].tolist() == ["calm", "7", ""]


def test_only_id_and_video_are_needed(folder):
    frame = read_manifest(write(folder, "id,video\na,a.mp4\n"))
    assert frame.drop(columns=["id", "video"]).to_dict("records") == [
        {"text": "", "split": "", "speaker": "", **dict.fromkeys(LABEL_COLUMNS.values())}
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "JSONL"])
def test_formats_agree(folder, suffix):
    csv = read_manifest(write(folder, GOOD))
    # missing cells as nulls, as other tools write them
    raw = pd.read_csv(folder / "m.csv", dtype=str)
    raw["mood"] = raw["mood"].fillna("")
    path = folder / f"m.{suffix}"
    if suffix == "parquet":
        raw.to_parquet(path)
    else:
        raw.to_json(path, orient="records", lines=True, force_ascii=False)
    pd.testing.assert_frame_equal(read_manifest(str(path)), csv, check_dtype=False)


def test_published_label_words(folder):
    rows = "".join(f"{i},,{word}\n" for i, word in enumerate(LABELS.aliases))
    assert (
        tuple(read_manifest(write(folder, "id,video,label_audio\n" + rows))["label_audio"])
        == EMOTIONS
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("id,", "key,", ["column 'id' is missing", "key"]),
        ("video", "film", ["column 'video' is missing", "film"]),
        ("高兴", "bored", ["row 1, field 'label_audio'", "'bored'", "happiness"]),
        ("sadness", "难受", ["row 2, field 'label_multimodal'", "难受", "did you mean sadness"]),
        ("\nb,", "\na,", ["row 2, field 'id'", "duplicate id 'a'", "row 1"]),
        ("\n007,", "\n ,", ["row 3, field 'id'", "empty"]),
        ("clips/b.mp4", "c.mp4", ["row 2, field 'video'", "no such file", "/c.mp4"]),
        ("clips/b.mp4", "clips", ["row 2, field 'video'", "no such file"]),
        ("clips/b.mp4", "/nowhere/b.mp4", ["row 2, field 'video'", "no such file: /nowhere/b.mp4"]),
        ("clips/b.mp4", "clips/../a.mp4", ["row 2, field 'video'", "leaves the manifest's folder"]),
        ("valid", "dev", ["row 2, field 'split'", "'dev'", "train, valid, test"]),
    ],
)
def test_what_is_wrong_is_told_by_row_and_field(folder, old, new, words):
    message = refusal(write(folder, GOOD.replace(old, new, 1)))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("m.csv", "", "empty"),
        ("m.csv", "id,video\n", "no rows"),
        ("m.jsonl", "", "'id' is missing"),
        ("m.jsonl", '{"id": ', "cannot be read as jsonl"),
        ("m.parquet", "", "cannot be read as parquet"),
        ("m.parquet", "PAR1nonsense", "cannot be read as parquet"),
        ("m.csv", 'id,video\n"a', "cannot be read as csv"),
        ("m.xlsx", "x", ".csv, .jsonl, .parquet"),
        ("manifest", "x", ".csv, .jsonl, .parquet"),
    ],
)
def test_files_that_are_no_manifest(folder, name, text, word):
    assert word in refusal(write(folder, text, name))


def test_a_missing_file(folder):
    assert "no such file" in refusal(str(folder / "nothing.csv"))
    (folder / "folder.csv").mkdir()
    assert "cannot be read" in refusal(str(folder / "folder.csv"))


def test_media_that_need_not_be_here(folder):
    url = read_manifest(write(folder, "id,video\na,s3://bucket/a.mp4\n"))
    assert url["video"].tolist() == ["s3://bucket/a.mp4"]
    path = write(folder, "id,video\na,gone.mp4\n")
    assert read_manifest(path, need_media=False)["video"].tolist() == [f"{folder}/gone.mp4"]
    assert "leaves" in refusal(write(folder, "id,video\na,../a.mp4\n"), need_media=False)


def test_videos_beside_a_remote_manifest_get_its_url():
    import fsspec

    with fsspec.open("memory://corpus/m.csv", "w") as f:
        f.write("id,video\na,clips/a.mp4\n")
    assert read_manifest("memory://corpus/m.csv")["video"].tolist() == [
        "memory:///corpus/clips/a.mp4"
    ]


def test_parquet_with_nullable_types(folder):
    pd.DataFrame(
        {"id": [1, 2], "video": ["a.mp4", None], "label_text": [None, "fear"], "take": [None, 3]}
    ).convert_dtypes().to_parquet(folder / "m.parquet")
    frame = read_manifest(str(folder / "m.parquet"))
    assert frame["id"].tolist() == ["1", "2"]
    assert frame["label_text"].tolist() == [None, "fear"]
    assert frame["take"].tolist() == [None, 3]
    assert str(frame["take"][1]) == "3"


def test_jsonl_passthrough_values_stay_what_they_are(folder):
    rows = [{"id": "a", "video": "", "take": 1, "date": "2020-01-01"}, {"id": "b", "video": ""}]
    path = write(folder, "\n".join(map(json.dumps, rows)), "m.jsonl")
    frame = read_manifest(path)
    assert [str(v) for v in frame["take"]] == ["1", "None"]
    assert frame["date"].tolist() == ["2020-01-01", None]


@pytest.mark.parametrize("line", ["3", '"a"', "[1, 2]", "null"])
def test_jsonl_lines_that_are_no_objects(folder, line):
    refusal(write(folder, f'{{"id": "a", "video": ""}}\n{line}\n', "m.jsonl"))


@pytest.mark.parametrize(
    "text", ["id,text,video\na,hello,,\nb,you,,\n", "id,video,text\na,,well, yes\n"]
)
def test_cells_beyond_the_header_are_refused(folder, text):
    assert "more cells than the header" in refusal(write(folder, text))


@pytest.mark.parametrize(
    "column", ["duration_s", "face_found", "text_features", "error", "stage", "seconds_face"]
)
def test_passthrough_columns_may_not_take_the_stores_names(folder, column):
    assert f"'{column}'" in refusal(write(folder, f"id,video,{column}\na,a.mp4,3\n"))


def test_sentiment_scores_are_numbers(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("id,video,text,sentiment_text\na,,x,-0.4\nb,,y,\n", encoding="utf-8")
    assert read_manifest(str(path))["sentiment_text"].tolist() == [-0.4, None]
    for bad in ("1.2", "good", "nan "):
        path.write_text(f"id,video,text,sentiment_text\na,,x,{bad}\n", encoding="utf-8")
        with pytest.raises(InputError, match="row 1, field 'sentiment_text'"):
            read_manifest(str(path))


@pytest.mark.parametrize(
    "name", ["data::take1", "a::b::c", "simplecache::x", "::", "x:y", "100%#?*[1]!'", "-a 好"]
)
def test_local_names_are_taken_as_they_stand(tmp_path, name):
    """`::` chains file systems in fsspec; a local path is none of its business."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.mp4").write_bytes(b"x")
    for path in (f"{folder}/{name}.csv", f"file://{folder}/{name}.csv"):
        (folder / f"{name}.csv").write_text(f'id,video\na,"{name}.mp4"\nb,"{folder}/{name}.mp4"\n')
        frame = read_manifest(path)
        assert [v.removeprefix("file://") for v in frame["video"]] == [f"{folder}/{name}.mp4"] * 2
    gone = write(folder, "id,video\na,gone::.mp4\n", "m::.csv")
    assert f"no such file: {folder}/gone::.mp4" in refusal(gone)
    assert "no such file" in refusal(f"{folder}/gone::.csv")


def test_a_manifest_is_read_with_its_own_labels(folder):
    path = write(folder, "id,video,label_text,label_audio\na,,calm,exc\nb,,Angry,\nc,,fru,exc\n")
    assert "row 1, field 'label_text': unknown emotion 'calm'" in refusal(path)
    only_ravdess = write(folder, "id,video,label_text\na,,calm\nb,,fearful\n", "r.csv")
    assert refusal(only_ravdess).endswith("The words here fit --labels ravdess8")

    mine = LabelSpec(
        name="mine", classes=("calm", "angry"), merges={"exc": "angry"}, dropped=("fru",)
    )
    (folder / "m.labels.yaml").write_text(mine.to_yaml(), encoding="utf-8")
    assert manifest_labels(path) == mine
    frame, report = read_reported(path)
    assert frame["label_text"].tolist() == ["calm", "angry", None]
    assert frame["label_audio"].tolist() == ["angry", None, "angry"]
    assert report == [
        "labels mine: 2 x 'exc' counted as angry",
        "labels mine: 1 x 'fru' left empty",
    ]
    assert manifest_labels(path, "meld").name == "meld"


def test_a_row_may_be_a_stretch_of_its_video(folder):
    frame = read_manifest(
        write(folder, "id,video,start_s,end_s\na,a.mp4,0.5, 2\nb,a.mp4,,\nc,a.mp4,1e1,10.25\n")
    )
    assert frame["start_s"].tolist() == [0.5, None, 10.0]
    assert frame["end_s"].tolist() == [2.0, None, 10.25]
    assert passthrough_columns(frame) == ["start_s", "end_s"]


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ("start_s,end_s", "1,", "row 1, field 'end_s': empty, while 'start_s' is not"),
        ("start_s,end_s", ",1", "row 1, field 'start_s': empty, while 'end_s' is not"),
        ("start_s", "1", "row 1, field 'end_s': empty"),
        ("start_s,end_s", "2,1", "row 1, field 'end_s': 1 is not behind 'start_s', which is 2"),
        ("start_s,end_s", "1,1", "field 'end_s': 1 is not behind"),
        ("start_s,end_s", "-1,1", "row 1, field 'start_s': '-1' is not a number of seconds"),
        ("start_s,end_s", "0,inf", "row 1, field 'end_s': 'inf' is not a number of seconds"),
        ("start_s,end_s", "0:01,2", "row 1, field 'start_s': '0:01' is not a number"),
    ],
)
def test_stretches_that_are_none(folder, columns, row, message):
    assert message in refusal(write(folder, f"id,video,{columns}\na,a.mp4,{row}\n"))
