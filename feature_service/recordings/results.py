"""What is said of a recording, utterance by utterance: a table with a documented schema."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feature_service.recordings.tracks import Sight
from feature_service.recordings.utterances import Utterance
from lfmim.schema import HEADS, MODALITIES, SPEAKER, TEXT
from lfmim.storage import new_file, write_text

SCHEMA, VERSION = "lfmim-recording", 1
"""Name and version of the schema; docs/recordings.md has its columns. A column that is added keeps
the version, one that changes or goes raises it."""
ABSTAIN = 0.5
"""A head whose largest probability is lower abstains."""

_BOX = pa.struct([("time_s", pa.float64()), *((c, pa.float32()) for c in ("x1", "y1", "x2", "y2"))])
_OF_HEAD = {
    "label": pa.string(),
    "probabilities": pa.list_(pa.float32()),
    "calibrated": pa.bool_(),
    "abstain": pa.bool_(),
}
COLUMNS = pa.schema(
    [
        ("utterance", pa.int32()),
        ("kind", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        (SPEAKER, pa.string()),
        (TEXT, pa.string()),
        ("text_source", pa.string()),
        ("text_confidence", pa.float32()),
        ("track", pa.int32()),
        ("boxes", pa.list_(_BOX)),
        *((f"{what}_{head}", kind) for head in HEADS for what, kind in _OF_HEAD.items()),
        ("disagreement", pa.float64()),
        ("error", pa.string()),
    ]
)

Row = dict[str, Any]


def result_row(
    number: int,
    utterance: Utterance,
    probabilities: Mapping[str, np.ndarray | None],
    *,
    classes: Sequence[str],
    calibrated: Sequence[str],
    face: Sequence[Sight] = (),
    text_source: str | None = None,
    text_confidence: float | None = None,
    abstain: float = ABSTAIN,
    error: str | None = None,
) -> Row:
    """A row of COLUMNS. `probabilities` [C] by head, in the order of `classes`; None or absent: the
    head does not answer. `calibrated`: the heads whose probabilities a temperature was fitted for.
    `face`: that which the vision head saw."""
    row: Row = dict.fromkeys(COLUMNS.names)
    row |= {
        "utterance": number,
        "kind": utterance.kind,
        "start_s": utterance.start_s,
        "end_s": utterance.end_s,
        SPEAKER: utterance.speaker,
        TEXT: utterance.text or None,
        "text_source": text_source if utterance.text else None,
        "text_confidence": text_confidence if utterance.text else None,
        "track": face[0].track if face else None,
        "boxes": [_box(s) for s in face] if face else None,
        "error": error,
    }
    for head in HEADS:
        p = probabilities.get(head)
        if p is not None:
            row |= {
                f"label_{head}": classes[int(p.argmax())],
                f"probabilities_{head}": p.astype(np.float32).tolist(),
                f"calibrated_{head}": head in calibrated,
                f"abstain_{head}": bool(p.max() < abstain),
            }
    present = [p for m in MODALITIES if (p := probabilities.get(m)) is not None]
    row["disagreement"] = disagreement(present)
    return row


def disagreement(heads: Sequence[np.ndarray]) -> float | None:
    """How far the heads' probabilities [C] lie apart, 0 to 1: their Jensen-Shannon divergence in
    bits over the logarithm of their number, its largest value. None for fewer than two.

    Lin, 'Divergence measures based on the Shannon entropy', IEEE Trans. Inf. Theory 37 (1991).
    """
    if len(heads) < 2:
        return None
    p = np.stack(heads).astype(np.float64)
    apart = _bits(p.mean(axis=0)) - np.mean([_bits(one) for one in p])
    # Rounding may leave the ends by some 1e-17.
    return float(np.clip(apart / np.log2(len(p)), 0, 1))


def _bits(p: np.ndarray) -> float:
    some = p[p > 0]
    return float(-(some * np.log2(some)).sum())


def _box(sight: Sight) -> dict[str, float]:
    corners = zip(("x1", "y1", "x2", "y2"), map(float, sight.box), strict=True)
    return {"time_s": sight.time_s, **dict(corners)}


def write_results(
    rows: Sequence[Row], stem: Path, *, classes: Sequence[str], about: Mapping[str, Any]
) -> list[Path]:
    """Write <stem>.parquet, .csv and .json; returns them. `about`: what holds for the whole
    recording, JSON. Raises WriteError."""
    head = {"schema": SCHEMA, "version": VERSION, **about, "classes": list(classes)}
    table = pa.Table.from_pylist(list(rows), schema=COLUMNS)
    table = table.replace_schema_metadata({SCHEMA: json.dumps(head, ensure_ascii=False)})
    parquet, csv, whole = (stem.with_name(stem.name + end) for end in (".parquet", ".csv", ".json"))
    with new_file(parquet) as temporary:
        pq.write_table(table, temporary)

    # Read back from the table, so that the three hold the same numbers to the last digit.
    same = table.to_pylist()
    with new_file(csv) as temporary:
        flat(same, COLUMNS.names, classes).to_csv(temporary, index=False)
    write_text(whole, json.dumps({**head, "utterances": same}, ensure_ascii=False, indent=1) + "\n")
    return [parquet, csv, whole]


def read_row(path: Path, index: int) -> tuple[Row | None, dict[str, Any]]:
    """Row `index` of a result's Parquet file, without its boxes (None: there is no such row), and
    what holds for the whole recording."""
    file = pq.ParquetFile(path)
    head: dict[str, Any] = json.loads(file.schema_arrow.metadata[SCHEMA.encode()])
    columns = [name for name in COLUMNS.names if name != "boxes"]
    found = file.read(columns).slice(index, 1).to_pylist()
    return (found[0] if found else None), head


def flat(rows: Sequence[Row], names: Sequence[str], classes: Sequence[str]) -> Any:
    """A frame of single values: a column per head and class; the boxes are left out."""
    import pandas as pd

    columns: dict[str, list[Any]] = {}
    for name in names:
        head = name.removeprefix("probabilities_")
        if head != name:
            for k, c in enumerate(classes):
                columns[f"probability_{head}_{c}"] = [r[name] and r[name][k] for r in rows]
        elif name != "boxes":
            columns[name] = [r[name] for r in rows]
    # Objects: pandas' own choice would make 3.0 of a track beside an empty cell.
    return pd.DataFrame(columns, dtype=object)
