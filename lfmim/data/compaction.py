"""Many small parts of a planned extraction -> few large ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from lfmim.data.parts import Shards, part_name, shards_of
from lfmim.data.store import PARTS, error_files, open_part, part_files, part_shards, write_part
from lfmim.schema import ERRORS_FOLDER
from lfmim.storage import exclusive, listing


def compact(store: Path, rows: int) -> tuple[int, int]:
    """Merge the parts of finished shards that follow each other into parts of up to `rows` rows;
    returns the number of parts before and after.

    It may be killed at any moment: a merged part stands for its shards from the moment that it is
    there, and what it was made of is removed then, or by the next call. Raises InputError if an
    extraction is writing into the store, and WriteError.
    """
    with exclusive(store):
        before = part_files(store)
        done = part_shards(store)
        # The errors first: of a part that is not there they would count for nothing.
        for folder, files in ((store / ERRORS_FOLDER, error_files(store)), (store, before)):
            for group in list(_groups(files, rows, done)):
                _merge(folder, group)
            _remove_merged(folder)
        return len(before), len(part_files(store))


def _groups(
    files: list[str], most: int, done: set[tuple[int, int]]
) -> Iterator[list[tuple[Shards, str]]]:
    """Files of at most so many rows together, between which no shard is missing that is not
    done."""
    planned = sorted((held, f) for f in files if (held := shards_of(Path(f).name)))
    group: list[tuple[Shards, str]] = []
    rows = 0
    for held, file in planned:
        count = open_part(file).metadata.num_rows
        if group:
            last = group[-1][0]
            between = ((held.plan, shard) for shard in range(last.last + 1, held.first))
            follows = held.plan == last.plan and done.issuperset(between)
            if not follows or rows + count > most:
                yield group
                group, rows = [], 0
        group.append((held, file))
        rows += count
    if group:
        yield group


def _merge(folder: Path, group: list[tuple[Shards, str]]) -> None:
    if len(group) > 1:
        first, last = group[0][0], group[-1][0]
        table = pa.concat_tables([open_part(file).read() for _, file in group])
        write_part(folder, table, part_name(first.plan, first.first, last.last))


def _remove_merged(folder: Path) -> None:
    counted = set(part_files(folder))
    for part in listing(folder, PARTS):
        if str(part.path) not in counted:
            part.path.unlink()
