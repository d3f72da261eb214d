"""A recording's rows -> out of a feature store, for whoever wants them gone."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lfmim.config import cache_folder, config_hash
from lfmim.data.store import error_files, open_part, part_files, store_state, write_part
from lfmim.schema import ID, MEDIA_SHA256, PLAN_FOLDER, VIDEO
from lfmim.storage import as_path, exclusive, listing, new_file

PLANNED = "*-*.parquet"
"""Files of rows in a store's PLAN_FOLDER."""


def delete_rows(store: Path, media_sha256: str, paths: Collection[str]) -> int:
    """Delete what a store has of a recording: rows whose media has the hash or lies at one of
    `paths`, quarantined ones, what the plans of extractions know of them but the ids (so that a
    rerun makes them no more), and copies of the store for training; returns how many rows.

    A store that holds a copy of these rows under other ids is another store. Raises InputError if
    another run writes into it, and WriteError; the same call again goes on.
    """
    before, found = store_state(store), dict[str, list[str]]()
    with exclusive(store):
        for part in (*part_files(store), *error_files(store)):
            file = open_part(part)
            # Not the features, which are all but everything.
            names = [n for n in (ID, VIDEO, MEDIA_SHA256) if n in file.schema_arrow.names]
            table = file.read(names)
            ids = table.filter(_recordings(table, media_sha256, paths))[ID].to_pylist()
            found |= {part: ids} if ids else {}
        gone = {id for ids in found.values() for id in ids}
        # The parts last: by them alone a call after a kill knows the ids.
        for listed in listing(store / PLAN_FOLDER, PLANNED):
            _blank(listed.path, media_sha256, paths, gone)
        for part, ids in found.items():
            table, path = open_part(part).read(), as_path(part)
            left = pc.invert(pc.is_in(table[ID], pa.array(ids)))
            write_part(path.parent, table.filter(left), path.name)
    for copy in (cache_folder() / "splits").glob(f"*-{config_hash(before)}"):
        shutil.rmtree(copy, ignore_errors=True)
    return len(gone)


def _recordings(table: pa.Table, media_sha256: str, paths: Collection[str]) -> pa.ChunkedArray:
    """Which rows are the recording's."""
    ours = pc.is_in(table[VIDEO], pa.array(sorted(paths), pa.string()))
    if MEDIA_SHA256 in table.column_names:
        ours = pc.or_(ours, pc.equal(table[MEDIA_SHA256], media_sha256).fill_null(False))
    return ours


def _blank(path: Path, media_sha256: str, paths: Collection[str], gone: Collection[str]) -> None:
    file = open_part(str(path))
    table = file.read()
    known = pc.is_in(table[ID], pa.array(sorted(gone), pa.string()))
    ours = pc.or_(known, _recordings(table, media_sha256, paths))
    if not pc.any(ours).as_py():
        return
    for n, field in enumerate(table.schema):
        if field.name != ID:
            nothing = pa.scalar("" if field.name == VIDEO else None, field.type)
            table = table.set_column(n, field, pc.if_else(ours, nothing, table[field.name]))
    # A row group is a shard.
    rows = file.metadata.row_group(0).num_rows
    with new_file(path) as temporary:
        pq.write_table(table, temporary, row_group_size=rows, compression="zstd")
