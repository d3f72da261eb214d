"""Text, JSON and YAML that people bring: one policy of encodings, one reader of each."""

from __future__ import annotations

import codecs
import functools
import io
import json
import logging
import re
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import yaml

from lfmim.schema import InputError

UTF8, UTF16, GB18030 = "UTF-8", "UTF-16", "GBK/GB18030"
_HALF = re.compile("[\ud800-\udfff]")
_COMMON = {0xA1, 0xA3, *range(0xB0, 0xF8)}
"""First bytes of GB2312's punctuation and characters."""


def whole(text: str) -> str:
    """`text` with halves of characters (lone surrogates, as cutting an emoji leaves them) as
    U+FFFD."""
    return _HALF.sub("\ufffd", text)


def decode(data: bytes, where: str, *, table: bool = False) -> tuple[str, str]:
    """Text without byte-order mark, and its encoding. UTF-8; of a `table` also what Excel writes:
    UTF-16 with a byte-order mark, else GB18030 where that gives Chinese text (said once). Raises
    InputError naming `where`, the encoding and what to do.
    """
    # Excel's own name for it; its plain 'CSV' is what gives GBK on a Chinese Windows.
    remedy = "save it as 'CSV UTF-8' (UTF-8 text)" if table else "save it as UTF-8"
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in data and not marked:
        raise InputError(
            f"{where}: not UTF-8 text: it holds zero bytes (UTF-16 without a byte-order mark "
            f"looks like that); {remedy}"
        )

    encoding = UTF16 if marked else UTF8
    try:
        # surrogatepass, as half a character becomes U+FFFD below and is no broken file; -sig, as
        # Excel begins its UTF-8 with a byte-order mark, which would be part of the first column's
        # name.
        text = data.decode("utf-16", "surrogatepass") if marked else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        lenient = "" if marked else data.decode("utf-8", "replace")
        bad = lenient.count("\ufffd")
        # Most of it is UTF-8, so it is a damaged file and no other encoding: pairs of GBK's bytes
        # may happen to be a character of two bytes in UTF-8, but hardly one of three (U+0800 on, as
        # all Chinese is).
        if marked or 0 < bad <= sum(c >= "\u0800" for c in lenient) - bad:
            line = len(data[: error.start].splitlines() or [b""])
            raise InputError(
                f"{where}: line {line}: a character of its {encoding} text is broken (byte "
                f"{error.start}); mend it, and {remedy}"
            ) from error
        if not _chinese(data):
            raise InputError(
                f"{where}: not UTF-8, and no encoding that can be told from its bytes; {remedy}"
            ) from error
        encoding, text = GB18030, data.decode("gb18030")

    # Only tables come from programs that choose an encoding for people; for JSON UTF-8 is the
    # standard, and a config is written in an editor.
    if encoding != UTF8 and not table:
        raise InputError(f"{where}: not UTF-8 (it looks like {encoding}); {remedy}")
    if "\0" in text:
        raise InputError(f"{where}: not text: it holds zero characters; {remedy}")
    if encoding != UTF8:
        _say(
            f"{where}: read as {encoding}, since it is not UTF-8; if its text comes out wrong, "
            f"{remedy}"
        )
    return whole(text), encoding


_CHUNK = 1 << 20


def text_stream(file: BinaryIO, where: str, newline: str) -> tuple[TextIO, str]:
    """A table's text, to be read on and on, and its encoding; `newline` as `open` takes it.

    UTF-8 is never held whole, whatever its size. Anything else is read and refused as by `decode`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(_CHUNK):
            if b"\0" in chunk:
                raise ValueError("zero bytes")
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except ValueError:
        file.seek(0)
        text, encoding = decode(file.read(), where, table=True)
        return io.StringIO(text, newline=newline), encoding
    file.seek(0)
    return io.TextIOWrapper(file, "utf-8-sig", newline=newline), UTF8


@functools.cache
def _say(line: str) -> None:
    """Once a process: a job reads its manifest more than once."""
    logging.getLogger(__name__).warning(line)


def _chinese(data: bytes) -> bool:
    """Whether these are GB18030's bytes for mostly common Chinese. Other encodings' bytes can be
    decoded so, too, but give rare characters."""
    # GB18030, of which GBK is a part: every file in GBK reads the same.
    try:
        characters = [c for c in data.decode("gb18030") if c > "\x7f"]
    except UnicodeDecodeError:
        return False
    common = sum(c.encode("gb2312", "replace")[0] in _COMMON for c in characters)
    return 2 * common >= len(characters)


def parse_json(text: str) -> Any:
    """JSON, with half characters as U+FFFD. Raises ValueError, also for a name that an object holds
    twice."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    # json itself keeps the last of two equal names without a word.
    for key, value in ((whole(k), whole(v) if isinstance(v, str) else v) for k, v in pairs):
        if key in out:
            raise ValueError(f"'{key}' is there twice in one object")
        out[key] = value
    return out


class _Loader(yaml.SafeLoader):
    """YAML whose mappings hold a key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML keeps the last: a second `train:` below would undo the first without a word.
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"'{key.value}' is there twice, in lines {seen[key.value]} and {line}; keep "
                    "one",
                )
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """The YAML file `path`. Raises InputError naming it if it cannot be read, is not UTF-8 or no
    YAML, or a mapping holds a key twice."""
    try:
        return yaml.load(decode(Path(path).read_bytes(), str(path))[0], _Loader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    # A YAMLError, too, but this is YAML: what it holds is refused (a key twice, an unknown tag), as
    # the problem says by itself.
    except yaml.constructor.ConstructorError as error:
        raise InputError(f"{path}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A ValueError as well: what `decode` says, which is better than "not YAML".
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
