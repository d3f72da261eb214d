"""CSV, JSONL and Parquet as people's tools write them -> frames of plain values, some rows at a
time; what is wrong is told by row."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lfmim.schema import InputError
from lfmim.text_files import UTF16, parse_json, text_stream

SEPARATORS = {"\t": "tabs", ";": "semicolons", "|": "vertical bars", "，": "full-width commas"}
"""What stands in place of commas in files that are no CSV."""
EXACT = 1 << 53
"""Whole numbers from here on are not exact as floats."""
# Python's own limit, 131,072 characters a cell, would refuse a long transcript.
csv.field_size_limit(1 << 30)


HEAD = 1 << 16
"""Characters in which a CSV's header must end."""


def read_csv(file: BinaryIO, path: str, rows: int = sys.maxsize) -> Iterator[pd.DataFrame]:
    """Frames of `rows` rows, at least one. Cells as text, as they stand. Raises InputError naming
    row and remedy, also for rows of another width than the header's and quotes that swallow rows;
    pandas' EmptyDataError if there is no header. UTF-16 may have tabs, as Excel's 'Unicode text'
    has."""
    # newline="", or a file whose lines end in "\r" alone is refused.
    text, encoding = text_stream(file, path, newline="")
    head = text.read(HEAD)
    text.seek(0)

    # max() keeps the first of equals, so the comma stands unless another is more frequent. By the
    # header alone: cells of text hold semicolons and bars of their own.
    header = next((line for line in head.splitlines() if line.strip()), "")
    separator = max(",", *SEPARATORS, key=header.count)
    if separator != "," and (separator, encoding) != ("\t", UTF16):
        raise InputError(
            f"{path}: its cells are separated by {SEPARATORS[separator]}, not by commas; save it "
            "as 'CSV UTF-8 (comma delimited)'"
        )
    names: list[str] = []
    kept: list[list[str]] = []
    done = 0

    try:
        # strict, or a quote left open swallows the rest of the file as one cell, without an error
        for cells in csv.reader(text, delimiter=separator, strict=True):
            # A blank line is no row of one empty cell.
            if len(cells) < 2 and not "".join(cells).strip():
                continue
            if not names:
                # pandas writes its index without a name, and calls such a column so itself.
                names = [name or f"Unnamed: {i}" for i, name in enumerate(cells)]
                continue
            if len(kept) == rows:
                check_names(names, path)
                yield pd.DataFrame(kept, columns=names, dtype=object)
                done, kept = done + len(kept), []
            kept.append(cells)
            _check_row(cells, names, separator, f"{path}: row {done + len(kept)}")
    except csv.Error as error:
        raise InputError(
            f"{path}: row {done + len(kept) + 1}: cannot be read as csv: {error}. A quote is open, "
            "or stands inside a quoted cell: close it, or double it there"
        ) from error

    # What pandas raises, so that `frames` has one message for all formats.
    if not names:
        raise pd.errors.EmptyDataError
    check_names(names, path)
    yield pd.DataFrame(kept, columns=names, dtype=object)


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


def read_jsonl(file: BinaryIO, path: str, rows: int = sys.maxsize) -> Iterator[pd.DataFrame]:
    """Frames of `rows` rows, at least one, each with the columns of its own rows; an object per
    line. Raises InputError naming row and remedy."""
    kept: list[dict[str, Any]] = []
    done = 0

    # Split at "\n" alone: a JSON text may hold U+2028 or U+0085, at which others would split, too.
    for line in filter(str.strip, text_stream(file, path, newline="\n")[0]):
        where = f"{path}: row {done + len(kept) + 1}: cannot be read as jsonl"
        try:
            row = parse_json(line)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: an object of columns and values is expected, in one line")
        if len(kept) == rows:
            yield pd.DataFrame(kept, dtype=object)
            done, kept = done + len(kept), []
        kept.append(row)

    yield pd.DataFrame(kept, dtype=object)


def read_parquet(file: BinaryIO, path: str, rows: int = sys.maxsize) -> Iterator[pd.DataFrame]:
    """Frames of `rows` rows, at least one. As objects; whole numbers as such even where a gap has
    made their column one of floats, and bytes as text."""
    # Before pandas: of two columns of one name pyarrow says "Multiple matches for FieldRef".
    check_names(pq.read_schema(file).names, path)
    file.seek(0)
    table = pq.ParquetFile(file)
    # An index that pandas wrote among the columns is one again only in the whole table's metadata,
    # which a batch has as well.
    batches = (
        (pa.Table.from_batches([b]) for b in table.iter_batches(rows))
        if rows < table.metadata.num_rows
        else iter([table.read()])
    )
    for batch in batches:
        # pandas gives columns that were called by numbers back so, and messages join names.
        frame = batch.to_pandas().rename(columns=str)
        yield pd.DataFrame(
            {
                c: pd.Series([_plain(v) for v in frame[c].astype(object)], dtype=object)
                for c in frame
            }
        )


def _plain(value: Any) -> Any:
    # One gap makes pandas' integers floats: id 7 would be "7.0" and meet no other table's 7.
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return int(value)
    return value.decode() if isinstance(value, bytes) else value
