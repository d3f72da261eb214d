"""Tar shards hold the same rows as a manifest, and what is wrong with them is told."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from lfmim.data.manifest import passthrough_columns, read_manifest
from lfmim.data.shards import expand_shards, member_uri, parse_member
from lfmim.schema import InputError
from tests.support.toy import EMOTIONS


def write_shard(path: Path, members: dict[str, bytes | str]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return str(path)


def test_samples_fields_and_media(tmp_path):
    fields = {
        "text": "你好",
        "split": "train",
        "label_text": "anger",
        "speaker": 7,
        "mood": "calm",
        "video": "x.avi",
    }
    write_shard(
        tmp_path / "s-00.tar",
        {"d/a.mp4": b"A" * 700, "d/a.json": json.dumps(fields), "README": "no sample"},
    )
    write_shard(
        tmp_path / "s-01.tar",
        {
            "b.txt": "only text\n",
            "b.cls": "3",
            "c.WAV": b"C" * 10,
            "c.cls": "愤怒",
            "c.json": '{"id": "third"}',
        },
    )
    by_glob, by_range = (
        read_manifest(str(tmp_path / name)) for name in ("s-*.tar", "s-{00..01}.tar")
    )
    assert by_glob.equals(by_range)
    assert by_glob["id"].tolist() == ["d/a", "b", "third"]
    assert by_glob["text"].tolist() == ["你好", "only text", ""]
    assert by_glob["label_multimodal"].tolist() == [None, EMOTIONS[3], "anger"]
    assert by_glob["label_text"].tolist() == ["anger", None, None]
    assert by_glob["speaker"].tolist() == ["7", "", ""]
    assert passthrough_columns(by_glob) == ["mood"]
    contents = []
    for video in by_glob["video"]:
        if video:
            shard, _, offset, size = parse_member(video)
            contents.append(Path(shard).read_bytes()[offset : offset + size])
    assert contents == [b"A" * 700, b"C" * 10]


@pytest.mark.parametrize("name", ["a.mp4", "日本&offset=0/#x y.mp4", "../../etc/passwd"])
def test_member_uris_round_trip(name):
    assert parse_member(member_uri("s3://b/x.tar", name, 512, 7)) == ("s3://b/x.tar", name, 512, 7)


def test_ranges_are_expanded_with_their_zeros():
    assert expand_shards("s3://b/{8..10}-{00..01}.tar")[::3] == [
        "s3://b/8-00.tar",
        "s3://b/9-01.tar",
    ]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.mp4": b"1", "a.avi": b"2"}, ["sample 'a'", "two media files"]),
        ({"a.json": "{"}, ["sample 'a'", ".json cannot be read"]),
        ({"a.json": "[1]"}, ["sample 'a'", "object of manifest fields"]),
        ({"a.txt": b"\xff\xfe"}, ["sample 'a'", ".txt cannot be read"]),
        ({"a.cls": "9"}, ["sample 'a', field 'label_multimodal'", "'9'"]),
        ({"a.txt": "x" * (1 << 20) + "x"}, ["sample 'a'", "fields may have"]),
        (
            {"a.txt": "x", "b.json": '{"id": "a"}'},
            ["sample 'b', field 'id'", "duplicate id 'a'", "sample 'a'"],
        ),
        ({"a.json": '{"frames": "1"}'}, ["column 'frames'"]),
        ({"readme": "x"}, ["missing"]),
        ({"a.json": '{"text": "x", "text": "y"}'}, ["sample 'a'", "'text' is there twice"]),
        (
            {"a.txt": "难过".encode("gbk")},
            ["sample 'a'", "its .txt cannot be read: not UTF-8", "save it as UTF-8"],
        ),
        (
            {"a.json": "{}".encode("utf-16")},
            ["sample 'a'", "its .json cannot be read: not UTF-8 (it looks like UTF-16)"],
        ),
    ],
)
def test_what_is_wrong_is_told_by_shard_and_sample(tmp_path, members, words):
    shard = write_shard(tmp_path / "s.tar", members)
    with pytest.raises(InputError) as error:
        read_manifest(shard)
    for word in (shard, *words):
        assert word in str(error.value)


def test_half_characters_in_fields(tmp_path):
    shard = write_shard(
        tmp_path / "s.tar", {"a.json": r'{"id": "x\ud83d", "text": "so \ud83d", "mood": "\ude00"}'}
    )
    frame = read_manifest(shard)
    assert [frame[c][0] for c in ("id", "text", "mood")] == ["x\ufffd", "so \ufffd", "\ufffd"]


def test_names_that_are_not_utf8_are_refused(tmp_path):
    """They would all be called the same, so one sample's text would meet another's video."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="gbk") as tar:
        for name in ("高兴.mp4", "悲伤.txt"):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(
        InputError, match=r"s\.tar: the name of a file in it is not UTF-8.*in UTF-8"
    ):
        read_manifest(str(path))


def test_files_that_are_no_shards(tmp_path):
    (tmp_path / "no.tar").write_bytes(b"no tar" * 500)
    (tmp_path / "zip.tar").write_bytes(gzip.compress(b"x" * 2000))
    for name in ("no.tar", "zip.tar"):
        with pytest.raises(InputError, match="cannot be read as a tar shard"):
            read_manifest(str(tmp_path / name))
    with pytest.raises(InputError, match="no such file"):
        read_manifest(str(tmp_path / "gone.tar"))
    with pytest.raises(InputError, match="no shard has such a name"):
        read_manifest(str(tmp_path / "gone-*.tar"))


@pytest.mark.parametrize("pattern", ["s::0.tar", "s::*.tar", "s::{0..0}.tar"])
def test_shards_with_a_double_colon_in_their_name(tmp_path, pattern):
    (tmp_path / "a::b").mkdir()
    write_shard(tmp_path / "a::b" / "s::0.tar", {"x::y.wav": b"1", "x::y.txt": "你好"})
    frame = read_manifest(str(tmp_path / "a::b" / pattern))
    assert frame["id"].tolist() == ["x::y"]
    shard, name, _, size = parse_member(frame["video"][0])
    assert (Path(shard).is_file(), name, size) == (True, "x::y.wav", 1)
