"""WebDataset tar shards as a manifest: files of one basename are one sample (a media file, and its
fields).

Nothing is unpacked: a sample's media is named by its shard and byte range, and read from there when
it is decoded.
"""

from __future__ import annotations

import functools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from lfmim.schema import ID, LABEL_COLUMNS, MULTIMODAL, TEXT, VIDEO, InputError, LabelSpec
from lfmim.storage import file_system, reaching
from lfmim.text_files import decode, parse_json, whole

MEDIA_SUFFIXES = frozenset(
    (
        "mp4",
        "m4v",
        "mov",
        "mkv",
        "webm",
        "avi",
        "mpg",
        "mpeg",
        "ts",
        "mts",
        "flv",
        "wmv",
        "3gp",
        "ogv",
        "wav",
        "mp3",
        "m4a",
        "aac",
        "flac",
        "ogg",
        "opus",
        "wma",
    )
)
FIELD_LIMIT = 1 << 20
"""Bytes; a larger .json, .txt or .cls member is refused rather than read."""
_MEMBER = re.compile(
    r"(?P<shard>.+\.tar)#member=(?P<name>[^&]*)&offset=(?P<offset>\d+)&size=(?P<size>\d+)"
)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def member_uri(shard: str, name: str, offset: int, size: int) -> str:
    """Where a sample's media lies: `size` bytes of `shard` from `offset` on."""
    return f"{shard}#member={quote(name)}&offset={offset}&size={size}"


def parse_member(uri: str) -> tuple[str, str, int, int] | None:
    """Inverse of `member_uri`: shard, member name, offset and size; None for any other path or
    URL."""
    found = _MEMBER.fullmatch(uri)
    return found and (
        found["shard"],
        unquote(found["name"]),
        int(found["offset"]),
        int(found["size"]),
    )


def expand_shards(pattern: str) -> list[str]:
    """`s3://bucket/train-{000..009}.tar` or a glob -> the shards' names. Raises InputError if there
    is none."""
    names = [pattern]
    # As often as there are ranges left: a name may hold one for the folder and one for the file.
    while any(_RANGE.search(n) for n in names):
        names = [new for n in names for new in _one_range(n)]

    out = []
    for name in names:
        if not set("*?[") & set(name):
            out.append(name)
            continue
        # glob() answers without the scheme, under which alone the shard is found again.
        fs, path = file_system(name)
        with reaching(name):
            found = fs.glob(path)
        out += sorted(fs.unstrip_protocol(p) if "://" in name else str(p) for p in found)

    if not out:
        raise InputError(f"{pattern}: no shard has such a name")
    return out


def _one_range(name: str) -> list[str]:
    found = _RANGE.search(name)
    if not found:
        return [name]
    low, high = found.groups()
    # {000..009} counts with leading zeros, as a shell does.
    return [
        f"{name[: found.start()]}{i:0{len(low)}d}{name[found.end() :]}"
        for i in range(int(low), int(high) + 1)
    ]


Sample = tuple[dict[str, Any], str]
"""A sample's manifest fields, and where it is, for messages."""
Scan = Callable[[Callable[[str], list[Sample]], Sequence[str]], Iterable[list[Sample]]]
"""`map` of a function over shards, in their order; elsewhere perhaps."""


def in_threads(read: Callable[[str], list[Sample]], shards: Sequence[str]) -> list[list[Sample]]:
    """A Scan in this process."""
    # More threads than cores: reading the headers of remote shards is waiting, not work.
    with ThreadPoolExecutor(min(16, len(shards))) as pool:
        return list(pool.map(read, shards))


def read_shards(
    pattern: str, labels: LabelSpec, scan: Scan = in_threads
) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    """Per shard, in order: its samples' manifest fields (`id` defaulting to the sample's key), in
    the order of the shard, and where each comes from.

    A sample has at most one media file. `.json` holds an object of manifest fields; `.txt` is the
    text; `.cls` is the multimodal label: a word of `labels`, or an index of its classes. Other
    files are ignored. Raises InputError naming shard and sample.
    """
    for samples in scan(functools.partial(_read_shard, labels=labels), expand_shards(pattern)):
        yield [row for row, _ in samples], [where for _, where in samples]


def _read_shard(shard: str, labels: LabelSpec) -> list[Sample]:
    samples: dict[str, dict[str, Any]] = {}
    try:
        fs, path = file_system(shard)
        # Small reads, as most of a shard is media that is skipped. Not fsspec.open(block_size=...):
        # that hands it to the file system's constructor, and s3fs refuses it.
        with reaching(shard), fs.open(path, "rb", block_size=1 << 16) as file:
            for name, offset, size in _members(shard, file):
                # WebDataset's rule: a sample's name ends at the first dot of the file's. A name
                # that begins with one is no sample: macOS packs ._x.mp4 beside x.mp4.
                folder, _, base = name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                if stem and suffix.rpartition(".")[2] in MEDIA_SUFFIXES | {"json", "txt", "cls"}:
                    fields = samples.setdefault(key, {})
                    _add_member(
                        fields,
                        f"{shard}: sample {key!r}",
                        suffix,
                        file,
                        (shard, name, offset, size),
                        labels,
                    )
    except FileNotFoundError as error:
        raise InputError(f"{shard}: no such file") from error
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{shard}: cannot be read as a tar shard (plain .tar, not compressed): {error}"
        ) from error

    return [
        ({ID: key, VIDEO: "", **fields}, f"{shard}: sample {key!r}")
        for key, fields in samples.items()
    ]


def _members(shard: str, file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every regular file."""
    # "r:" takes plain tar files only: in a compressed one no byte range is a member's.
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            # A sparse file does not lie in the shard in one piece.
            if member.isreg() and not member.issparse():
                # tarfile gives bytes that are no UTF-8 as lone surrogates. Made U+FFFD, different
                # names would become one, and a sample's text would meet another's video.
                if member.name != whole(member.name):
                    raise InputError(
                        f"{shard}: the name of a file in it is not UTF-8: {whole(member.name)}; "
                        "names are ids, so pack it again with names in UTF-8"
                    )
                yield member.name, member.offset_data, member.size
            # tarfile remembers every header, and a shard may have a million.
            tar.members = []  # type: ignore[attr-defined]


def _add_member(
    fields: dict[str, Any],
    where: str,
    suffix: str,
    file: BinaryIO,
    place: tuple[str, str, int, int],
    labels: LabelSpec,
) -> None:
    kind, size = suffix.rpartition(".")[2], place[3]
    if kind in MEDIA_SUFFIXES:
        if VIDEO in fields:
            raise InputError(f"{where}: has two media files; keep one")
        fields[VIDEO] = member_uri(*place)
        return

    if size > FIELD_LIMIT:
        raise InputError(f"{where}: its .{kind} has {size} bytes; fields may have {FIELD_LIMIT}")
    # Moving the file under tarfile's hands is safe: it seeks before it reads the next header.
    file.seek(place[2])
    content = file.read(size)
    try:
        text = decode(content, f"{where}: its .{kind} cannot be read")[0].strip()
        value = parse_json(text) if kind == "json" else text
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where}: its .{kind} cannot be read: {error}") from error

    if kind == "json":
        if not isinstance(value, dict):
            raise InputError(f"{where}: its .json must hold an object of manifest fields")
        # The sample's own file is its media; a field of that name only says what it was called
        # once. A null is left out, so that it does not hide the .txt or .cls read before.
        fields |= {k: v for k, v in value.items() if k != VIDEO and v is not None}
    elif kind == "txt":
        fields[TEXT] = text
    else:
        # WebDataset's .cls is a class number by custom; a word (RAVDESS has "05" as one) goes on to
        # the manifest's check, which names the classes it knows.
        index = text.isdigit() and int(text) < len(labels.classes) and not labels.knows(text)
        fields[LABEL_COLUMNS[MULTIMODAL]] = labels.classes[int(text)] if index else text
