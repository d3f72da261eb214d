"""Which rows make which shard: a plan per state of the manifest, in Parquet beside the store.

    plan/0001.json            what the plan was made of, and its files; it counts once this is there
    plan/0001-00000.parquet   rows; a row group is a shard
    plan/finished.json        the manifest and settings of the last run that left nothing to do

A shard is what a worker takes, and what it commits as one part named after it (`data.parts`). A
plan is never changed: a manifest that grew or was mended, or a quarantine to try again, gets the
next one, of the rows that no finished shard and no other part has. Work is done on the last plan
alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lfmim.config import ExtractConfig
from lfmim.data.manifest import (
    KNOWN_COLUMNS,
    label_report,
    manifest_state,
    passthrough_columns,
    read_batches,
    refuse_duplicates,
)
from lfmim.data.parts import part_name, shards_of
from lfmim.data.shards import Scan, in_threads
from lfmim.data.store import (
    error_files,
    forget_quarantined,
    open_part,
    part_files,
    part_shards,
)
from lfmim.schema import ID, NUMBER_COLUMNS, PLAN_FOLDER, TEXT, VIDEO, LabelSpec, Modality
from lfmim.storage import new_file, write_text

FINISHED = "finished.json"
SHARDS_AT_LEAST = 64
"""Small manifests are cut finer, so that every worker gets some."""
ROWS = {True: (1, 16), False: (16, 512)}
"""Fewest and most rows of a shard, with media and of text alone. What a killed worker loses is half
a shard on average: 16 clips take it 10 to 40 s."""
SHARDS_PER_FILE = 64
"""Row groups of a plan's file. A footer of thousands would be read again for every shard."""
DIGEST = 16
"""Bytes of an id's digest: two ids of one do not occur."""


class Shard(NamedTuple):
    """Row group `group` of the plan's `file`."""

    plan: int
    number: int
    file: str
    group: int
    rows: int
    media: bool
    """Whether there is something to decode."""

    @property
    def part(self) -> str:
        """Name of the part that its rows become."""
        return part_name(self.plan, self.number)


class PlanFile(NamedTuple):
    """One Parquet file of a plan."""

    name: str
    media: bool
    rows: list[int]
    """Of each shard."""


class Plan(NamedTuple):
    """What an extraction has to do, as the driver knows it."""

    number: int
    rows_in: int
    """Rows of the manifest."""
    quarantined: int
    """Rows of the manifest that earlier runs quarantined and this one leaves so."""
    extra: list[str]
    """Columns that are carried into the store."""
    labels: list[str]
    """Lines of `label_report`."""
    files: list[PlanFile]

    def pending(self, done: Container[tuple[int, int]]) -> Iterator[Shard]:
        """The shards that are not `done` (`done_shards`), in order."""
        number = 0
        for file in self.files:
            for group, rows in enumerate(file.rows):
                if (self.number, number) not in done:
                    yield Shard(self.number, number, file.name, group, rows, file.media)
                number += 1


def plan_path(store: Path, number: int) -> Path:
    """The file that makes a plan count."""
    return store / PLAN_FOLDER / f"{number:04d}.json"


def read_shard(store: Path, shard: Shard) -> list[dict[str, Any]]:
    """The shard's rows as the manifest has them."""
    file = open_part(str(store / PLAN_FOLDER / shard.file))
    rows: list[dict[str, Any]] = file.read_row_group(shard.group).to_pylist()
    return rows


def make_plan(
    store: Path,
    config: ExtractConfig,
    labels: LabelSpec,
    *,
    need_media: bool = True,
    scan: Scan = in_threads,
) -> Plan:
    """Check the manifest, row by row, and plan what the store lacks of it; the last plan if that is
    what it was made of. Whoever calls it is the store's only writer.

    Memory: a batch of rows and 16 bytes for each. Raises InputError as `read_reported`, before
    anything is written.
    """
    with tempfile.TemporaryFile() as spool:
        seen = _Seen.of(config)
        for batch in read_batches(config.manifest, labels=labels, need_media=need_media, scan=scan):
            seen.take(batch.frame, batch.words, spool)
        ids = seen.ids()
        _refuse_duplicates(ids, config.manifest, labels, scan)

        plans, bad = _plans(store), np.unique(_digests(error_files(store)))
        again = bad[_among(bad, np.sort(ids))] if config.retry_quarantined else bad[:0]
        digest = seen.digest.hexdigest()
        about: dict[str, Any] = {
            "number": _next_number(store, plans),
            "digest": digest,
            "files": [],
        }
        if plans and plans[-1]["digest"] == digest and not len(again):
            about = plans[-1]
        elif (~_among(ids, np.setdiff1d(_done(store, plans), again))).any():
            # From here on workers of a killed run commit nothing more: what is done stays so.
            write_text(plan_path(store, about["number"]), "{}")
            wanted = ~_among(ids, np.setdiff1d(_done(store, plans), again))
            about["files"] = _write_rows(store, about["number"], seen, spool, wanted, config)
            about["retried"] = bool(len(again))
            write_text(plan_path(store, about["number"]), json.dumps(about))

    plan = Plan(
        number=about["number"],
        rows_in=len(ids),
        quarantined=0,
        extra=list(seen.extra),
        labels=label_report(seen.words, labels),
        files=[PlanFile(*file) for file in about["files"]],
    )
    # At every start: a run may have been killed between the plan and this.
    if about.get("retried"):
        tried = _ids_of(store, plan.pending(part_shards(store)))
        forget_quarantined(store, tried)
        bad = np.setdiff1d(bad, _as_array(tried))
    return plan._replace(quarantined=int(_among(ids, bad).sum()))


def wanted_state(config: ExtractConfig, labels: LabelSpec) -> str:
    """Differs once the manifest or a setting does that decides which rows are wanted. Looks at the
    manifest's bytes, at no row."""
    settings = [config.rows_per_part, config.extracted, labels.to_dict()]
    return f"{manifest_state(config.manifest)} {json.dumps(settings)}"


def note_finished(store: Path, plan: Plan, state: str, encoders: str) -> None:
    """Keep that of this `wanted_state`, with encoders of this state (`finished.encoders_state`),
    nothing is left to do. Whoever calls it is the store's only writer."""
    if plan.files:
        about = {**plan._asdict(), "files": None, "state": state, "encoders": encoders}
        write_text(store / PLAN_FOLDER / FINISHED, json.dumps(about))


def finished_plan(store: Path, config: ExtractConfig, labels: LabelSpec) -> tuple[Plan, str] | None:
    """The plan that `note_finished` kept and its encoders' state, if nothing that was wanted has
    changed since and all its parts are there; None if only `make_plan` can tell."""
    note, plans = store / PLAN_FOLDER / FINISHED, _plans(store)
    if not plans or not note.exists():
        return None
    about = json.loads(note.read_text(encoding="utf-8"))
    if about["number"] != plans[-1]["number"] or (
        about["quarantined"] and config.retry_quarantined
    ):
        return None
    if about.pop("state") != wanted_state(config, labels):
        return None
    encoders = about.pop("encoders", "")
    plan = Plan(**about | {"files": [PlanFile(*file) for file in plans[-1]["files"]]})
    return None if any(plan.pending(part_shards(store))) else (plan, encoders)


def _ids_of(store: Path, shards: Iterable[Shard]) -> pa.Array:
    groups: dict[str, list[int]] = {}
    for shard in shards:
        groups.setdefault(shard.file, []).append(shard.group)
    ids = [_ids(store / PLAN_FOLDER / file, which) for file, which in groups.items()]
    return pa.concat_arrays([*ids, pa.array([], pa.string())])


class _Seen:
    """What is kept of a manifest's rows that have gone by."""

    def __init__(self, settings: bytes) -> None:
        self.digest = hashlib.blake2b(settings, digest_size=DIGEST)
        self.words: Counter[str] = Counter()
        # a dict for its order
        self.extra: dict[str, None] = {}
        self._ids: list[bytes] = []

    @classmethod
    def of(cls, config: ExtractConfig) -> _Seen:
        """Nothing yet. What else decides a plan goes into the digest."""
        return cls(json.dumps([config.rows_per_part, config.extracted]).encode())

    def take(self, frame: pd.DataFrame, words: Counter[str], spool: BinaryIO) -> None:
        extra = passthrough_columns(frame)
        self.extra |= dict.fromkeys(extra)
        self.words += words
        self._ids.append(_digest(frame[ID]))
        table = _table(frame, extra)
        # A stream per batch, as rows of JSONL have each their own columns.
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        content = sink.getvalue()
        self.digest.update(content)
        spool.write(content)

    def ids(self) -> np.ndarray:
        """Digests of the ids [rows], in the manifest's order."""
        return np.frombuffer(b"".join(self._ids), f"S{DIGEST}")


def _table(frame: pd.DataFrame, extra: Sequence[str]) -> pa.Table:
    """A batch as the plan keeps it: text, and numbers as float64."""
    names = [*KNOWN_COLUMNS, *extra]
    columns = [
        pa.array(frame[name], pa.float64())
        if name in NUMBER_COLUMNS
        else pa.array([v if v is None else str(v) for v in frame[name]], pa.string())
        for name in names
    ]
    return pa.table(columns, names=names)


def _write_rows(
    store: Path,
    number: int,
    seen: _Seen,
    spool: BinaryIO,
    wanted: np.ndarray,
    config: ExtractConfig,
) -> list[PlanFile]:
    counts = Counter[bool]()
    for table, here in _spooled(spool, wanted):
        media = _has_media(table, config).filter(here)
        counts += Counter({True: pc.sum(media).as_py() or 0})
        counts += Counter({False: len(media) - (pc.sum(media).as_py() or 0)})

    files: list[PlanFile] = []
    size: dict[bool, int] = {}
    kept: dict[bool, list[pa.Table]] = {True: [], False: []}
    for media, (fewest, most) in ROWS.items():
        size[media] = min(most, max(fewest, counts[media] // SHARDS_AT_LEAST), config.rows_per_part)

    def write(media: bool) -> None:
        rows = pa.concat_tables(kept[media])
        at_once = size[media] * SHARDS_PER_FILE
        while len(rows):
            head, rows = rows.slice(0, at_once), rows.slice(at_once)
            name = f"{number:04d}-{len(files):05d}.parquet"
            with new_file(store / PLAN_FOLDER / name) as temporary:
                pq.write_table(head, temporary, row_group_size=size[media], compression="zstd")
            starts = range(0, len(head), size[media])
            files.append(PlanFile(name, media, [min(size[media], len(head) - s) for s in starts]))
        kept[media] = []

    for table, here in _spooled(spool, wanted):
        for name in seen.extra:
            if name not in table.column_names:
                kind = pa.float64() if name in NUMBER_COLUMNS else pa.string()
                table = table.append_column(name, pa.nulls(len(table), kind))
        table = table.select([*KNOWN_COLUMNS, *seen.extra])
        is_media = _has_media(table, config)
        for media, of_kind in ((True, is_media), (False, pc.invert(is_media))):
            rows = table.filter(pc.and_(of_kind, here))
            kept[media] += [rows] if len(rows) else []
            # whole files' worth
            if sum(map(len, kept[media])) >= size[media] * SHARDS_PER_FILE:
                whole = pa.concat_tables(kept[media])
                cut = len(whole) - len(whole) % (size[media] * SHARDS_PER_FILE)
                kept[media] = [whole.slice(0, cut)]
                write(media)
                kept[media] = [whole.slice(cut)] if cut < len(whole) else []
    for media in kept:
        if kept[media]:
            write(media)
    return files


def _spooled(spool: BinaryIO, wanted: np.ndarray) -> Iterator[tuple[pa.Table, pa.Array]]:
    """The batches again, each with which of its rows are wanted."""
    spool.seek(0)
    row = 0
    while row < len(wanted):
        with pa.ipc.open_stream(spool) as reader:
            table = reader.read_all()
        yield table, pa.array(wanted[row : row + len(table)])
        row += len(table)


def _has_media(table: pa.Table, config: ExtractConfig) -> pa.Array:
    """Which rows need decoding. A row without video and text does, too: decoding says what it
    lacks."""
    if Modality.TEXT not in config.extracted:
        return pa.array(np.ones(len(table), bool))
    alone = pc.and_(pc.equal(table[VIDEO], ""), pc.not_equal(table[TEXT], ""))
    return pc.invert(alone).combine_chunks()


def _refuse_duplicates(ids: np.ndarray, manifest: str, labels: LabelSpec, scan: Scan) -> None:
    ordered = np.sort(ids)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(twice):
        suspects = set(twice.tolist())
        batches = read_batches(manifest, labels=labels, need_media=False, scan=scan)
        refuse_duplicates(
            manifest, batches, lambda i: np.frombuffer(_digest([i]), f"S{DIGEST}")[0] in suspects
        )


def _plans(store: Path) -> list[dict[str, Any]]:
    """The plans that count, in order."""
    found = []
    for path in sorted((store / PLAN_FOLDER).glob("[0-9]*.json")):
        plan = json.loads(path.read_text(encoding="utf-8"))
        # one that was begun and not written: {}
        if plan:
            found.append(plan)
    return found


def _next_number(store: Path, plans: list[dict[str, Any]]) -> int:
    """One that no plan had, as far as plans and parts show."""
    held = filter(None, (shards_of(Path(p).name) for p in part_files(store)))
    numbers: list[int] = [0, *(p["number"] for p in plans), *(h.plan for h in held)]
    return max(numbers) + 1


def _done(store: Path, plans: list[dict[str, Any]]) -> np.ndarray:
    """Sorted digests of all ids that are stored or quarantined. Of shards the plans know them: a
    part would have to be opened for each."""
    known = {p["number"] for p in plans}
    parts = part_files(store)

    def no_plan(part: str) -> bool:
        held = shards_of(Path(part).name)
        return held is None or held.plan not in known

    done = np.unique(_digests([p for p in (*parts, *error_files(store)) if no_plan(p)]))
    finished = part_shards(store)
    for about in plans:
        number = 0
        for name, _, rows in about["files"]:
            here = [(about["number"], number + g) in finished for g in range(len(rows))]
            number += len(rows)
            path = store / PLAN_FOLDER / name
            # What it was to try again and has not is in the quarantine no more.
            if about["retried"]:
                left = [g for g, is_done in enumerate(here) if not is_done]
                done = np.setdiff1d(done, _as_array(_ids(path, left)))
            done = np.union1d(done, _as_array(_ids(path, [g for g, d in enumerate(here) if d])))
    return done


def _ids(path: Path, groups: list[int]) -> pa.Array:
    if not groups:
        return pa.array([], pa.string())
    return open_part(str(path)).read_row_groups(groups, columns=[ID])[ID].combine_chunks()


def _digests(parts: Iterable[str]) -> np.ndarray:
    """Of the ids in the parts."""
    ids = [open_part(part).read(columns=[ID])[ID].combine_chunks() for part in parts]
    return _as_array(pa.concat_arrays([*ids, pa.array([], pa.string())]))


def _as_array(ids: pa.Array) -> np.ndarray:
    return np.frombuffer(_digest(ids.to_pylist()), f"S{DIGEST}")


def _digest(ids: Iterable[str]) -> bytes:
    return b"".join(hashlib.blake2b(i.encode(), digest_size=DIGEST).digest() for i in ids)


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of `ids` are in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(ids), bool)
    place = np.searchsorted(known, ids)
    same: np.ndarray = known[np.minimum(place, len(known) - 1)] == ids
    return same
