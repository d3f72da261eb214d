"""Feature dumps -> feature store: cleaning, padding, and a writer that leaves a whole store or
none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lfmim.data.store import (
    ERROR_SCHEMA,
    quarantined,
    rows_to_table,
    store_schema,
    write_part,
    write_spec,
)
from lfmim.progress import log_console
from lfmim.schema import (
    ERRORS_FOLDER,
    FEATURE_COLUMNS,
    ID,
    SPEC_FILE,
    VIDEO,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.storage import new_folder, write_text

ROWS_PER_PART = 256
FLOAT16_MAX = float(np.finfo(np.float16).max)
IMPORT_FILE = "import.json"
ERROR = "error"
"""Key of a row that cannot be used, with the reason."""
CLEANING = {
    "non_finite": "NaN and infinities are 0",
    "range": f"clipped to ±{FLOAT16_MAX:g} (float16)",
}
"""How values are changed: part of an imported store's FeatureSpec."""


@dataclasses.dataclass
class ImportReport:
    """What an import found; kept beside the store. Counts are keyed by modality, those of
    `quarantined` by reason."""

    source: str
    sha256: str = ""
    rows: int = 0
    stored: int = 0
    quarantined: Counter[str] = dataclasses.field(default_factory=Counter)
    absent: Counter[str] = dataclasses.field(default_factory=Counter)
    values: Counter[str] = dataclasses.field(default_factory=Counter)
    non_finite: Counter[str] = dataclasses.field(default_factory=Counter)
    non_finite_rows: Counter[str] = dataclasses.field(default_factory=Counter)
    clipped: Counter[str] = dataclasses.field(default_factory=Counter)
    padding: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        out = [
            f"rows in {self.rows}: {self.stored} stored, {sum(self.quarantined.values())} "
            "quarantined"
        ]
        out += [f"  quarantined {n} x {why}" for why, n in sorted(self.quarantined.items())]

        for m in Modality:
            if self.values[m]:
                out.append(
                    f"  {m}: absent in {self.absent[m]} rows; {self.non_finite[m]} of "
                    f"{self.values[m]} values not finite, in {self.non_finite_rows[m]} rows (now "
                    f"0); {self.clipped[m]} beyond float16 (now ±{FLOAT16_MAX:g}); "
                    f"{self.padding[m]} padding vectors left out"
                )

        return [*out, *(f"  {note}" for note in self.notes)]


def clean(x: np.ndarray, modality: Modality, report: ImportReport) -> np.ndarray:
    """[T, D] floats -> float16: NaN and infinities become 0, what float16 cannot hold its largest
    value; counted."""
    x = np.asarray(x, dtype=np.float32)

    bad = ~np.isfinite(x)
    report.values[modality] += x.size
    if bad.any():
        report.non_finite[modality] += int(bad.sum())
        report.non_finite_rows[modality] += 1
        x = np.where(bad, np.float32(0), x)

    # float16 would make them infinite, and one infinite input makes the whole loss NaN.
    beyond = int((np.abs(x) > FLOAT16_MAX).sum())
    if beyond:
        report.clipped[modality] += beyond
        x = np.clip(x, -FLOAT16_MAX, FLOAT16_MAX)

    return x.astype(np.float16)


def trim(x: np.ndarray, *, leading: bool = True) -> np.ndarray:
    """[T, D] without the all-zero vectors at its end, and at its beginning if `leading`."""
    used = np.flatnonzero((x != 0).any(axis=1))
    if not len(used):
        return x[:0]
    # Zero vectors in between stay: without them what follows would move in time.
    return x[used[0] if leading else 0 : used[-1] + 1]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_new(store: Path) -> None:
    """Raise InputError if there is something at `store`: an import makes a whole store, it does not
    add to one."""
    if store.exists() and (not store.is_dir() or any(store.iterdir())):
        raise InputError(
            f"{store}: exists already, and imports do not mix; choose another --store, or remove "
            "it to import again"
        )


def quarantined_rows(store: Path) -> Iterator[dict[str, Any]]:
    """What a store has quarantined, as rows that `write_store` quarantines again."""
    for row in quarantined(store).to_pylist():
        yield {ID: row[ID], VIDEO: row[VIDEO], ERROR: f"{row['stage']}: {row['error']}"}


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=log_console(),
    )


def write_store(
    store: Path,
    dims: Mapping[Modality, int],
    passthrough: Sequence[str],
    rows: Iterator[dict[str, Any]],
    total: int,
    report: ImportReport,
    make_spec: Callable[[], FeatureSpec],
    labels: LabelSpec | None = None,
) -> None:
    """Write `rows` as a feature store, in parts, below a temporary folder that gets its name at the
    very end.

    A row with ERROR goes to `errors/`, and so does one without any modality. `make_spec` is called
    after the last row. `labels` None: CHERMA's. Memory is bounded by a part's rows. Raises
    InputError if something is at `store` already or no row could be used, and WriteError.
    """
    # Once more: importers ask before they read their source, which may have taken minutes.
    check_new(store)
    schema = store_schema(dims, passthrough)
    good: list[dict[str, Any]] = []
    bad: list[dict[str, Any]] = []

    with new_folder(store, last=SPEC_FILE) as temporary:
        with _progress() as progress:
            for row in progress.track(rows, total=total, description="import"):
                report.rows += 1
                # A modality of nothing but padding is absent, so a whole row may turn out empty.
                if not row.get(ERROR) and all(row.get(c) is None for c in FEATURE_COLUMNS.values()):
                    row[ERROR] = "no modality is left: all absent or only padding"
                if row.get(ERROR):
                    report.quarantined[row[ERROR]] += 1
                    # Without the row's features, which would grow with the rows.
                    video, why = row.get(VIDEO, ""), row[ERROR]
                    bad.append({ID: row[ID], VIDEO: video, "stage": "import", ERROR: why})
                    continue

                report.absent.update(m.value for m in dims if row.get(FEATURE_COLUMNS[m]) is None)
                report.stored += 1
                good.append(row)
                if len(good) >= ROWS_PER_PART:
                    write_part(temporary, rows_to_table(good, schema, dims))
                    good = []
        if good:
            write_part(temporary, rows_to_table(good, schema, dims))

        # Raised inside the block, so that the folder goes with it and --store stays free.
        if not report.stored:
            raise InputError(
                f"{report.source}: no row could be used; for example "
                f"{next(iter(report.quarantined), '')}"
            )
        if bad:
            write_part(temporary / ERRORS_FOLDER, pa.Table.from_pylist(bad, schema=ERROR_SCHEMA))
        # Only now: the sources are hashed while their rows are read.
        write_spec(temporary, make_spec(), labels)
        write_text(temporary / IMPORT_FILE, json.dumps(vars(report), indent=1, ensure_ascii=False))
