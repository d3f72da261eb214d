"""One policy of encodings: what is certain is read, what is not is refused by name and with a remedy."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfmim.schema import InputError
from lfmim.text_files import GB18030, UTF8, UTF16, decode, parse_json, read_yaml, whole

CHINESE = "id,text\n1,今天真高兴，你呢？\n2,我很难过\n"


@pytest.mark.parametrize(("encoding", "name"), [
    ("utf-8", UTF8), ("utf-8-sig", UTF8), ("utf-16", UTF16), ("gbk", GB18030), ("gb18030", GB18030),
    ("gb2312", GB18030),
])
def test_tables_of_excel_are_read_and_others_are_named(encoding, name, caplog):
    where = f"t-{encoding}.csv"
    assert decode(CHINESE.encode(encoding), where, table=True) == (CHINESE, name)
    decode(CHINESE.encode(encoding), where, table=True)
    assert [where in m and name in m and "CSV UTF-8" in m for m in caplog.messages] == [True] * (name != UTF8)  # once
    if name != UTF8:
        with pytest.raises(InputError, match=f"x.yaml: not UTF-8 .it looks like {name}.; save it as UTF-8"):
            decode(CHINESE.encode(encoding), "x.yaml")


def test_big_endian_utf16_and_emoji_in_gb18030():
    assert decode(b"\xfe\xff" + CHINESE.encode("utf-16-be"), "t", table=True)[0] == CHINESE
    text = CHINESE + "3,太好了😀\n"
    assert decode(text.encode("gb18030"), "t", table=True)[0] == text


@pytest.mark.parametrize(("text", "encoding"), [
    ("這是一個很長的句子，我們今天要去看電影，你覺得怎麼樣？", "big5"), ("Schöne Grüße aus München, größer", "cp1252"),
    ("これは長い文章です。今日は映画を見に行きましょう。", "shift_jis"), ("Привет, как дела? Идём в кино", "cp1251"),
    ("Ça va très bien, j'ai été fâché à l'école", "cp1252"),
])
def test_what_is_neither_is_refused_and_not_guessed(text, encoding):
    with pytest.raises(InputError, match=r"t\.csv: not UTF-8.*save it as 'CSV UTF-8'"):
        decode(text.encode(encoding), "t.csv", table=True)


def test_utf8_with_a_broken_character_is_not_taken_for_chinese():
    whole_text = "id,text\n1,你好，世界\n".encode()
    for end in ("2,再".encode()[:-1] + b"\n", "2,\ud83d\n".encode("utf-8", "surrogatepass")):
        with pytest.raises(InputError, match=r"t: line 3: a character of its UTF-8 text is broken .byte \d+"):
            decode(whole_text + end, "t", table=True)


@pytest.mark.parametrize("data", [CHINESE.encode("utf-16-le"), b"id,text\n1,a\0b\n", "id\n".encode("utf-32")])
def test_zero_bytes_are_no_text(data):
    with pytest.raises(InputError, match=r"t: not.* text: it holds zero .*save it as"):
        decode(data, "t", table=True)


@given(st.binary())
def test_bytes_are_text_or_refused(data):
    with contextlib.suppress(InputError):
        decode(data, "t", table=True)[0].encode()


def test_half_characters_of_json():
    assert parse_json(r'[{"a\ud83d": "so \ud83d", "b": {"c": "\ude00"}}, "\ud83d\ude00"]') == [
        {"a\ufffd": "so \ufffd", "b": {"c": "\ufffd"}}, "😀"]
    assert whole("a\ud83db😀") == "a\ufffdb😀"


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '[{"x": {"y": 1, "y": 2}}]', "[" * 100_000, "{"])
def test_json_that_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011 (the message is json's)
        parse_json(text)


@pytest.mark.parametrize(("content", "message"), [
    (b"a: 1\nb: 2\na: 3\n", "'a' is there twice, in lines 1 and 3; keep one"),
    (b"a:\n  b: 1\n  b: 2\n", "'b' is there twice, in lines 2 and 3"), (b"a: {b: 1, b: 2}", "in lines 1 and 1"),
    ("# 学习率\na: 1\n".encode("gbk"), "not UTF-8 .it looks like GBK/GB18030.; save it as UTF-8"),
    ("a: 1\n".encode("utf-16"), "not UTF-8 .it looks like UTF-16.; save it as UTF-8"), (b"a: [", "not YAML"),
    (b"a: \x07", "not YAML"), (b"[" * 5000, "not YAML"), (b"a: !!python/object:os.system x", "could not determine"),
])
def test_yaml_that_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_yaml(path)
    assert str(error.value).startswith(f"{path}: ")


def test_yaml_that_is_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes("\ufeffbase: &b {x: 1, y: 2}\nother:\n  <<: *b\n  x: 3\n# 注释\n".encode())
    assert read_yaml(path) == {"base": {"x": 1, "y": 2}, "other": {"x": 3, "y": 2}}
    for missing in (tmp_path, tmp_path / "nothing.yaml"):
        with pytest.raises(InputError, match="cannot be read"):
            read_yaml(missing)
