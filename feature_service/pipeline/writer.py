"""The only writer of a feature store: gathers finished rows into parts, quarantined ones under
`errors/`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from feature_service.pipeline.stages import ERROR, STAGE, UNCUT_TOKENS, Row
from lfmim.data.store import ERROR_SCHEMA, rows_to_table, store_schema, write_part
from lfmim.schema import ERRORS_FOLDER, FEATURE_COLUMNS, ID, FeatureSpec

FLUSH_SECONDS = 30.0
"""A part is written at the latest after this time, so that a killed run loses little."""


class StoreWriter:
    """Takes each of `ids` once: what Ray hands over a second time after a failure is not stored
    again."""

    def __init__(
        self,
        store: Path,
        spec: FeatureSpec,
        extra: list[str],
        rows_per_part: int,
        ids: Iterable[str],
    ) -> None:
        self.store, self.dims, self.schema = store, spec.dims, store_schema(spec.dims, extra)
        self.rows_per_part = rows_per_part

        self.pending = set(ids)
        self.rows: list[Row] = []
        self.stored = self.texts_cut = self.longest_text = 0
        self.reasons: Counter[str] = Counter()
        self.last = time.monotonic()

    def add(self, row: Row) -> bool:
        """Take a finished row; False if it was taken before."""
        if row[ID] not in self.pending:
            return False
        self.pending.discard(row[ID])

        if row.get(UNCUT_TOKENS):
            self.texts_cut += 1
            self.longest_text = max(self.longest_text, row[UNCUT_TOKENS])

        self.rows.append(row)
        if len(self.rows) >= self.rows_per_part or time.monotonic() - self.last > FLUSH_SECONDS:
            self.flush()
        return True

    def finish(self) -> None:
        """Write what is left. Raises RuntimeError if some row never came back."""
        self.flush()
        if self.pending:
            raise RuntimeError(
                f"{len(self.pending)} rows were neither stored nor quarantined, "
                f"{min(self.pending)!r} among them; run the same command again"
            )

    def flush(self) -> None:
        # A clip may decode without fault and give nothing to store: no face, no sound, no text. In
        # the store such a row would be one without any modality.
        for row in self.rows:
            if not row[ERROR] and all(
                row.get(column) is None for column in FEATURE_COLUMNS.values()
            ):
                row.update(
                    {STAGE: "pipeline", ERROR: "no modality is left: no text, no audio, no face"}
                )

        good = [r for r in self.rows if not r[ERROR]]
        bad = [r for r in self.rows if r[ERROR]]
        if good:
            write_part(self.store, rows_to_table(good, self.schema, self.dims))
        if bad:
            write_part(
                self.store / ERRORS_FOLDER,
                pa.Table.from_pylist(
                    [{name: r[name] for name in ERROR_SCHEMA.names} for r in bad],
                    schema=ERROR_SCHEMA,
                ),
            )

        self.stored += len(good)
        self.reasons.update(f"{r[STAGE]}: {r[ERROR]}" for r in bad)
        self.rows, self.last = [], time.monotonic()
