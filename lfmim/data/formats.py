"""CSV, JSONL and Parquet as people's tools write them -> frames of plain values; what is wrong is
told by row."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any, BinaryIO

import pandas as pd
import pyarrow.parquet as pq

from lfmim.schema import InputError
from lfmim.text_files import UTF16, decode, parse_json

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", "，": "full-width commas"}
"""What stands in place of commas in files that are no CSV."""
EXACT = 1 << 53
"""Whole numbers from here on are not exact as floats."""
# Python's own limit, 131,072 characters a cell, would refuse a long transcript.
csv.field_size_limit(1 << 30)


def read_csv(file: BinaryIO, path: str) -> pd.DataFrame:
    """Cells as text, as they stand. Raises InputError naming row and remedy, also for rows of
    another width than the header's and quotes that swallow rows; pandas' EmptyDataError if there is
    no header. UTF-16 may have tabs, as Excel's 'Unicode text' has."""
    text, encoding = decode(file.read(), path, table=True)

    # max() keeps the first of equals, so the comma stands unless another is more frequent. By the
    # header alone: cells of text hold semicolons and bars of their own.
    header = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(",", *SEPARATORS, key=header.count)
    if separator != "," and (separator, encoding) != ("\t", UTF16):
        raise InputError(
            f"{path}: its cells are separated by {SEPARATORS[separator]}, not by commas; save it "
            "as 'CSV UTF-8 (comma delimited)'"
        )
    names: list[str] = []
    rows: list[list[str]] = []

    try:
        # strict, or a quote left open swallows the rest of the file as one cell, without an error;
        # newline="", or a file whose lines end in "\r" alone is refused.
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            # A blank line is no row of one empty cell.
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if not names:
                # pandas writes its index without a name, and calls such a column so itself.
                names = [name or f"Unnamed: {i}" for i, name in enumerate(cells)]
                continue
            rows.append(cells)
            _check_row(cells, names, separator, f"{path}: row {len(rows)}")
    except csv.Error as error:
        raise InputError(
            f"{path}: row {len(rows) + 1}: cannot be read as csv: {error}. A quote is open, or "
            "stands inside a quoted cell: close it, or double it there"
        ) from error

    # What pandas raises, so that read_frame has one message for all formats.
    if not names:
        raise pd.errors.EmptyDataError
    check_names(names, path)
    return pd.DataFrame(rows, columns=names, dtype=object)


def _check_row(cells: list[str], names: list[str], separator: str, where: str) -> None:
    if len(cells) != len(names):
        kind, remedy = "fewer", "write an empty cell as nothing between two commas"
        if len(cells) > len(names):
            kind, remedy = "more", "quote cells that contain a comma"
        raise InputError(
            f"{where}: {len(cells)} cells, {kind} cells than the header's {len(names)}; {remedy}"
        )

    for i, cell in ((i, cell) for i, cell in enumerate(cells) if "\n" in cell):
        lines = cell.replace("\r\n", "\n").split("\n")[1:]
        # Rows that an open quote swallowed: each as wide as the header, the last up to this column.
        # A dialogue of several lines has a space after its commas, a row has none.
        counts = [line.count(separator) for line in lines]
        if (
            any(counts)
            and counts == [len(names) - 1] * (len(counts) - 1) + [i]
            and not any(f"{separator} " in line for line in lines)
        ):
            raise InputError(
                f"{where}, field '{names[i]}': a quoted cell of {len(lines) + 1} lines, of which "
                f"the later look like rows ({lines[0][:40]!r}); close the quote before them, or, "
                "if they are one cell, give the table as JSONL"
            )


def check_names(names: list[str], path: str) -> None:
    """Raise InputError for two columns of one name."""
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"{path}: {count} columns are called '{name}'; rename or remove one")


def read_jsonl(file: BinaryIO, path: str) -> pd.DataFrame:
    """An object per line. Raises InputError naming row and remedy."""
    # Not splitlines(): a JSON text may hold U+2028 or U+0085, at which that would split, too.
    lines = decode(file.read(), path, table=True)[0].split("\n")
    rows: list[dict[str, Any]] = []

    for line in filter(str.strip, lines):
        where = f"{path}: row {len(rows) + 1}: cannot be read as jsonl"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: an object of columns and values is expected, in one line")
        rows.append(row)

    return pd.DataFrame(rows, dtype=object)


def read_parquet(file: BinaryIO, path: str) -> pd.DataFrame:
    """As objects; whole numbers as such even where a gap has made their column one of floats, and
    bytes as text."""
    # Before pandas: of two columns of one name pyarrow says "Multiple matches for FieldRef".
    check_names(pq.read_schema(file).names, path)
    file.seek(0)
    # pandas gives columns that were called by numbers back so, and messages join names.
    frame = pd.read_parquet(file).rename(columns=str)
    return pd.DataFrame(
        {c: pd.Series([_plain(v) for v in frame[c].astype(object)], dtype=object) for c in frame}
    )


def _plain(value: Any) -> Any:
    # One gap makes pandas' integers floats: id 7 would be "7.0" and meet no other table's 7.
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value.decode() if isinstance(value, bytes) else value
