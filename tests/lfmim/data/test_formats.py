"""Tables as people's tools leave them: no value changes, no row is lost, and what is wrong is told
by row."""

from __future__ import annotations

import io
import json
import math

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lfmim.data.formats import read_csv
from lfmim.data.label_statistics import read_labels
from lfmim.data.manifest import read_frame, read_manifest
from lfmim.data.tables import read_rows, write_manifest
from lfmim.schema import InputError, default_labels


@pytest.fixture
def refusal(tmp_path):
    def read(content: str | bytes, name: str = "m.csv") -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        # one reader: manifests and other tables
        for reader in (read_manifest, lambda p: read_rows(p, ("id",))):
            with pytest.raises(InputError) as error:
                reader(str(path))
            assert str(error.value).startswith(f"{path}: ")
        return str(error.value).removeprefix(f"{path}: ")

    return read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,video,text\na,,x\nb,,\nc,\n", ["row 3: 2 cells, fewer cells than the header's 3"]),
        (
            "id,video,text\na,,well, yes\n",
            ["row 1: 4 cells, more cells than the header's 3", "quote cells"],
        ),
        (
            'id,video,text\na,,x\nb,,"hello\nc,,you\nd,,me\n',
            ["row 2: cannot be read as csv", "A quote is open"],
        ),
        (
            'id,video,text\na,,"hello\nb,,you\nc,,"again"\n',
            ["row 1: cannot be read as csv", "A quote is open"],
        ),
        (
            'id,video,text\na,,"hello\nb,,you\nc,,bye"\n',
            ["row 1, field 'text'", "like rows ('b,,you')", "close the quote"],
        ),
        (
            'id,video,text,label_text\na,,"hello,fear\nb,,you",fear\n',
            ["row 1, field 'text'", "look like rows ('b,,you')"],
        ),
        ("id,text,video,text\na,x,,y\n", ["2 columns are called 'text'"]),
        (
            "id;video;text\n1;;hi\n",
            ["separated by semicolons, not by commas", "CSV UTF-8 (comma delimited)"],
        ),
        ("id\tvideo\ttext\n1\t\thi, you\n", ["separated by tabs, not by commas"]),
        ("id，video，text\n1，，hi\n", ["separated by full-width commas"]),
        ("id;video;text\n1;;你好\n".encode("gbk"), ["separated by semicolons"]),
        ("id;video;text\n1;;hi\n".encode("utf-16"), ["separated by semicolons"]),
        (
            "id,video,text\n1,,caf\xe9 cr\xe8me\n".encode("cp1252"),
            ["not UTF-8", "save it as 'CSV UTF-8'"],
        ),
    ],
)
def test_csv_that_is_refused_by_row(refusal, content, words):
    message = refusal(content)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"id": "a", "video": ""}\n\n{"id": \n', "row 2: cannot be read as jsonl"),
        (
            '{"id": "a", "video": "", "id": "b"}',
            "row 1: cannot be read as jsonl: 'id' is there twice",
        ),
        ('{"id": "a", "video": ""}\n[["id", "b"]]', "row 2: cannot be read as jsonl: an object"),
        (b'{"id": "a", "video": "", "text": "\xff\xfe"}', "not UTF-8"),
        (b"[" * 99_999, "nested too deeply"),
    ],
)
def test_jsonl_that_is_refused_by_row(refusal, content, words):
    assert words in refusal(content, "m.jsonl")


def test_two_parquet_columns_of_one_name(refusal):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(
        pa.table([["a"], [""], ["x"], ["y"]], names=["id", "video", "text", "text"]), file
    )
    assert (
        refusal(file.getvalue(), "m.parquet") == "2 columns are called 'text'; rename or remove one"
    )


@pytest.mark.parametrize(
    ("separator", "encoding"),
    [
        (",", "utf-8"),
        (",", "utf-8-sig"),
        (",", "gbk"),
        (",", "utf-16"),
        ("\t", "utf-16"),
    ],
)
def test_tables_as_excel_writes_them(tmp_path, separator, encoding):
    rows = [
        ["id", "video", "text", "label_multimodal"],
        ["007", "", "今天真高兴", "高兴"],
        ["2", "", "我很难过", ""],
    ]
    (tmp_path / "m.csv").write_bytes(
        "".join(f"{separator.join(r)}\r\n" for r in rows).encode(encoding)
    )
    frame = read_manifest(str(tmp_path / "m.csv"))
    assert frame["id"].tolist() == ["007", "2"]
    assert frame["text"].tolist() == ["今天真高兴", "我很难过"]
    assert frame["label_multimodal"].tolist() == ["happiness", None]
    labels = read_labels(str(tmp_path / "m.csv"), default_labels())
    assert labels["text"].tolist() == frame["text"].tolist()


@pytest.mark.parametrize(
    "text",
    [
        "Well, yes\nNo, no, never",
        "one\ntwo",
        "a,b\nc, d",
        'he said "hi"',
        "",
        "你好，\n世界",
        "a\u2028b",
        "a\x85b\x0bc",
    ],
)
def test_cells_of_several_lines_stay_one(tmp_path, text):
    path = tmp_path / "m.csv"
    pd.DataFrame({"id": ["a", "b"], "video": "", "text": [text, "x"], "mood": "calm"}).to_csv(
        path, index=False
    )
    assert read_manifest(str(path))["text"].tolist() == [text, "x"]


# Not a bare "\r", which pandas leaves without quotes: no reader can tell it from a line's end then.
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
            min_size=3,
            max_size=3,
        ),
        min_size=1,
    )
)
def test_what_pandas_writes_is_what_is_read(rows):
    names = ["id", "video", "text"]
    raw = pd.DataFrame(rows, columns=names).to_csv(index=False)
    # may look like a row
    assume(not any("\n" in cell and "," in cell for row in rows for cell in row))
    (frame,) = read_csv(io.BytesIO(raw.encode()), "t")
    assert frame.to_numpy().tolist() == rows


def test_line_ends_and_empty_lines(tmp_path):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "m.csv").write_bytes(f"{end}id,video{end}{end}a,{end}   {end}b,".encode())
        assert read_manifest(str(tmp_path / "m.csv"))["id"].tolist() == ["a", "b"]


def test_whole_numbers_that_a_gap_made_floats_are_whole_again(tmp_path):
    path = tmp_path / "m.parquet"
    pd.DataFrame(
        {
            "id": [101.0, 102.0, 3.5],
            "video": "",
            "text": [b"hi", None, b"\xe4\xbd\xa0"],
            "speaker": [7, None, 7],
            "take": [3, None, 3.5],
            "big": [float(2**60), math.nan, -2.0],
            "flag": [True, None, False],
            "sentiment_text": [1.0, None, -0.5],
        }
    ).to_parquet(path)
    frame = read_manifest(str(path))
    assert frame["id"].tolist() == ["101", "102", "3.5"]
    assert frame["text"].tolist() == ["hi", "", "你"]
    assert frame["speaker"].tolist() == ["7", "", "7"]
    assert frame["take"].map(str).tolist() == ["3", "None", "3.5"]
    # whose digits are lost
    assert frame["big"].map(str).tolist() == ["1.152921504606847e+18", "None", "-2"]
    assert frame["flag"].map(str).tolist() == ["True", "None", "False"]
    assert frame["sentiment_text"].tolist() == [1.0, None, -0.5]
    assert read_rows(str(path), ())["id"].tolist() == [101, 102, 3.5]
    for name in ("again.parquet", "again.jsonl", "again.csv"):
        write_manifest(frame, tmp_path / name)
        again = read_manifest(str(tmp_path / name))
        assert again["id"].tolist() == frame["id"].tolist()
        assert again["take"].map(str).tolist()[::2] == ["3", "3.5"]


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl"])
def test_numbers_of_text_stay_as_they_stand(tmp_path, name):
    rows = [{"id": "101.0", "video": "", "take": "3.0"}, {"id": "007", "video": "", "take": "3.5"}]
    if name.endswith("csv"):
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
    else:
        (tmp_path / name).write_text(
            "\n".join(json.dumps(r) for r in rows) + '\n{"id": 5.0, "video": "", "take": 4}'
        )
    frame = read_manifest(str(tmp_path / name))
    assert frame["id"].tolist() == ["101.0", "007", "5.0"][: len(frame)]
    assert frame["take"].map(str).tolist() == ["3.0", "3.5", "4"][: len(frame)]


def test_half_characters_in_every_column(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(
        r'{"id": "a\ud83d", "video": "", "text": "so good \ud83d", '
        r'"speaker": "\ude00", "mood\ud83d": "\ud83d!"}'
        "\n"
        r'{"id": "b", "video": "", "text": "\ud83d\ude00"}'
    )
    frame = read_manifest(str(path))
    assert frame["id"].tolist() == ["a\ufffd", "b"]
    assert frame["text"].tolist() == ["so good \ufffd", "😀"]
    assert frame["speaker"].tolist() == ["\ufffd", ""]
    assert frame["mood\ufffd"].tolist() == ["\ufffd!", None]
    assert read_frame(str(path), "table")["text"].tolist() == frame["text"].tolist()
    write_manifest(frame, tmp_path / "again.csv")
    assert read_manifest(str(tmp_path / "again.csv"))["id"].tolist() == frame["id"].tolist()
