"""Corrections: lines that are checked, survive kills and keep their order."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest

from lfmim.data.corrections import Correction, append_correction, read_corrections, row_id
from lfmim.schema import InputError
from lfmim.storage import WriteError

MEDIA = "0123456789abcdef" * 4
GIVEN = Correction(
    media_sha256=MEDIA,
    row=3,
    start_s=1.5,
    end_s=4.0,
    head="vision",
    label="生气",
    predicted=None,
    model="models:/lfmim/2",
    who="Zoë",
    when="2026-11-28T01:02:03Z",
    seen=True,
)


def _line(**changes: object) -> str:
    return json.dumps({**dataclasses.asdict(GIVEN), **changes}, ensure_ascii=False)


def test_what_is_appended_is_read_in_order(tmp_path):
    path = tmp_path / "new" / "talk.corrections.jsonl"
    given = [GIVEN, dataclasses.replace(GIVEN, row=0, label=None, seen=False)]
    for one in given:
        append_correction(path, one)

    assert read_corrections(path) == given
    assert "生气" in path.read_text(encoding="utf-8")


def test_a_row_id_sorts_as_the_rows_do():
    assert row_id(MEDIA, 42) == "0123456789abcdef-000042"
    assert row_id(MEDIA, 9) < row_id(MEDIA, 10)


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (_line(media_sha256=MEDIA.upper()), "media_sha256"),
        (_line(media_sha256=MEDIA + "\n"), "media_sha256"),
        (_line(row=-1), "row"),
        (_line(row=True), "row"),
        (_line(row=1.0), "row"),
        (_line(start_s="0"), "start_s"),
        (_line(start_s=float("nan")), "start_s"),
        (_line(end_s=float("inf")), "end_s"),
        (_line(end_s=1), "end_s"),
        (_line(head="face"), "head"),
        (_line(head=["text"]), "head"),
        (_line(label=" "), "label"),
        (_line(label=2), "label"),
        (_line(predicted=""), "predicted"),
        (_line(model=None), "model"),
        (_line(who="x" * 65), "who"),
        (_line(when="2026-11-28 01:02:03"), "when"),
        (_line(when=None), "when"),
        (_line(seen=1), "seen"),
        (_line(mood="good"), "mood"),
        (json.dumps({"row": 1}), "media_sha256"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(line, field, tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    path.write_text(f"{_line()}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=f"line 2.*'{field}'") as refused:
        read_corrections(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("line", ["", "{", "[]", "nobody", '{"row": 1, "row": 2}'])
def test_a_line_that_is_no_object_is_refused(line, tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    path.write_text(f"{line}\n{_line()}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        read_corrections(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_corrections(tmp_path / "talk.corrections.jsonl")


def test_half_a_line_of_a_killed_writer_is_passed_over_and_never_in_front_of_another(tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    whole = f"{_line()}\n".encode()
    half = _line(row=7).encode()
    # Every byte at which a writer may be killed, also within a character.
    for end in range(len(half)):
        path.write_bytes(whole + half[:end])
        assert read_corrections(path) == [GIVEN]
        append_correction(path, GIVEN)
        assert read_corrections(path) == [GIVEN, GIVEN]


def test_a_last_line_without_newline_counts_and_stays(tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    path.write_text(_line(row=7), encoding="utf-8")
    append_correction(path, GIVEN)
    assert [c.row for c in read_corrections(path)] == [7, 3]


@pytest.mark.parametrize("size", [3000, 4096, 20_000])
def test_the_last_line_may_be_of_any_length(size, tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    long = dataclasses.replace(GIVEN, label="x" * size)
    last = _line(label=long.label)
    for left, kept in ((last, [GIVEN, long]), (last[:-1], [GIVEN])):
        path.write_text(f"{_line()}\n{left}", encoding="utf-8")
        append_correction(path, GIVEN)
        assert read_corrections(path) == [*kept, GIVEN]


def test_several_writers_at_once_lose_nothing(tmp_path):
    path = tmp_path / "talk.corrections.jsonl"

    def write(row: int) -> None:
        for _ in range(5):
            append_correction(path, dataclasses.replace(GIVEN, row=row))

    writers = [threading.Thread(target=write, args=(row,)) for row in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(c.row for c in read_corrections(path)) == sorted([0, 1, 2, 3] * 5)


def test_a_place_that_takes_no_line_is_told(tmp_path):
    path = tmp_path / "talk.corrections.jsonl"
    path.mkdir()
    with pytest.raises(WriteError, match=r"talk\.corrections\.jsonl"):
        append_correction(path, GIVEN)
