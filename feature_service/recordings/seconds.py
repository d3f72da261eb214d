"""Rows of utterances -> what holds in each second of the recording."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_service.recordings.results import flat
from feature_service.recordings.utterances import LISTENER
from lfmim.schema import HEADS
from lfmim.storage import new_file

SECOND_COLUMNS = pa.schema(
    [
        ("second", pa.int32()),
        *((f"label_{head}", pa.string()) for head in HEADS),
        *((f"probabilities_{head}", pa.list_(pa.float32())) for head in HEADS),
    ]
)


def by_second(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], end_s: float
) -> list[dict[str, Any]]:
    """Rows of SECOND_COLUMNS, one for each second [n, n + 1) that begins before `end_s`: of each
    head the mean of the probabilities of the utterances and gaps that cover a part of it, weighted
    by the part; null where none does. Listeners do not count: they stand beside an utterance."""
    count = math.ceil(end_s)
    sums = {head: np.zeros((count, len(classes))) for head in HEADS}
    weights = {head: np.zeros(count) for head in HEADS}
    for row in rows:
        if row["kind"] == LISTENER:
            continue
        for second in range(int(row["start_s"]), min(count, math.ceil(row["end_s"]))):
            share = min(row["end_s"], second + 1) - max(row["start_s"], second)
            for head in HEADS:
                if row[f"probabilities_{head}"] is not None:
                    sums[head][second] += share * np.array(row[f"probabilities_{head}"])
                    weights[head][second] += share

    found = []
    for second in range(count):
        one: dict[str, Any] = {"second": second}
        for head in HEADS:
            known = weights[head][second] > 0
            p = sums[head][second] / weights[head][second] if known else None
            one[f"label_{head}"] = None if p is None else classes[int(p.argmax())]
            one[f"probabilities_{head}"] = None if p is None else p.astype(np.float32).tolist()
        found.append(one)
    return found


def write_seconds(
    rows: Sequence[dict[str, Any]], stem: Path, *, classes: Sequence[str]
) -> list[Path]:
    """Write <stem>.seconds.parquet and .csv; returns them. Raises WriteError."""
    table = pa.Table.from_pylist(list(rows), schema=SECOND_COLUMNS)
    parquet, csv = (stem.with_name(f"{stem.name}.seconds{end}") for end in (".parquet", ".csv"))
    with new_file(parquet) as temporary:
        pq.write_table(table, temporary)
    with new_file(csv) as temporary:
        flat(table.to_pylist(), SECOND_COLUMNS.names, classes).to_csv(temporary, index=False)
    return [parquet, csv]
