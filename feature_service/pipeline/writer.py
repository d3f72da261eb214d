"""A shard's rows -> one part of the feature store, what cannot be used under `errors/`: the commit
of an extraction."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from feature_service.pipeline.plan import Shard, plan_path
from feature_service.pipeline.stages import ERROR, STAGE, STAGES, UNCUT_TOKENS, Row
from lfmim.data.store import ERROR_SCHEMA, rows_to_table, store_schema, write_part
from lfmim.schema import ERRORS_FOLDER, FEATURE_COLUMNS, FeatureSpec, InputError


@dataclasses.dataclass
class Tally:
    """What the driver hears of a shard: counts, never rows."""

    rows: int = 0
    stored: int = 0
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)
    """Count per 'stage: error'."""
    texts_cut: int = 0
    longest_text: int = 0
    busy: Counter[str] = dataclasses.field(default_factory=Counter)
    """Seconds per stage."""
    nodes: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    """Rows per stage and node."""
    gpu_percent: float | None = None

    def add(self, other: Tally) -> None:
        """Take in another shard's."""
        self.rows += other.rows
        self.stored += other.stored
        self.reasons.update(other.reasons)
        self.texts_cut += other.texts_cut
        self.longest_text = max(self.longest_text, other.longest_text)
        self.busy.update(other.busy)
        self.nodes.update(other.nodes)
        if other.gpu_percent is not None:
            self.gpu_percent = other.gpu_percent


def commit(
    store: Path, shard: Shard, rows: Sequence[Row], spec: FeatureSpec, extra: Sequence[str]
) -> Tally:
    """Write the finished rows of a whole shard; once its part is there, it is done.

    However often it is done, and by whom, the shard has one part of one name. Raises WriteError,
    and InputError if another run has made a new plan since.
    """
    for row in rows:
        # A clip may decode without fault and give nothing to store: no face, no sound, no text. In
        # the store such a row would be one without any modality.
        if not row[ERROR] and all(row.get(c) is None for c in FEATURE_COLUMNS.values()):
            row |= {STAGE: "pipeline", ERROR: "no modality is left: no text, no audio, no face"}
    good, bad = [r for r in rows if not r[ERROR]], [r for r in rows if r[ERROR]]

    if plan_path(store, shard.plan + 1).exists():
        raise InputError(f"{store}: another run has taken over this store; nothing more is written")
    # The errors first: they count from the moment that the part is there. A worker that was killed
    # in between may have left others.
    errors = store / ERRORS_FOLDER
    if bad:
        kept = [{name: r[name] for name in ERROR_SCHEMA.names} for r in bad]
        write_part(errors, pa.Table.from_pylist(kept, schema=ERROR_SCHEMA), shard.part)
    else:
        (errors / shard.part).unlink(missing_ok=True)
    write_part(store, rows_to_table(good, store_schema(spec.dims, extra), spec.dims), shard.part)
    return _tally(rows, len(good))


def _tally(rows: Sequence[Row], stored: int) -> Tally:
    cut = [row[UNCUT_TOKENS] for row in rows if row.get(UNCUT_TOKENS)]
    tally = Tally(
        rows=len(rows),
        stored=stored,
        reasons=Counter(f"{r[STAGE]}: {r[ERROR]}" for r in rows if r[ERROR]),
        texts_cut=len(cut),
        longest_text=max(cut, default=0),
    )
    for row in rows:
        for stage in STAGES:
            if seconds := row.get(f"seconds_{stage}"):
                tally.busy[stage] += seconds
                tally.nodes[stage, row[f"node_{stage}"]] += 1
    return tally
