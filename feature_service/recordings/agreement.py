"""Predicted labels against those of somebody who coded a sample of the recording by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from feature_service.recordings.job import Done
from feature_service.recordings.transcripts import END, START, seconds_of
from feature_service.recordings.utterances import LISTENER
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import HEADS, InputError, LabelSpec, listed
from lfmim.storage import write_text

LABEL, RECORDING, AGREEMENT = "label", "recording", "agreement.json"


class Code(NamedTuple):
    """A stretch that somebody coded. `recording`: the name of its result."""

    recording: str
    start_s: float
    end_s: float
    label: str


def read_codes(path: Path, labels: LabelSpec, recordings: Sequence[str]) -> list[Code]:
    """A CSV of `start`, `end` (seconds, or h:mm:ss), `label` and, for several recordings,
    `recording`, one of theirs. Raises InputError naming file, row and column."""
    codes = []
    for number, row in enumerate(read_rows(str(path), (START, END, LABEL)).to_dict("records"), 1):
        place = f"row {number}"
        start, end = (seconds_of(row[k], path, f"{place}, field '{k}'") for k in (START, END))
        if not 0 <= start < end:
            raise InputError(f"{path}: {place}: {start} to {end} s is no stretch of a recording")
        name = Path(cell(row.get(RECORDING))).stem
        name = name or (recordings[0] if len(recordings) == 1 else "")
        if name not in recordings:
            raise InputError(
                f"{path}: {place}, field '{RECORDING}': {name!r} is not among "
                f"{listed(recordings, most=5)}"
            )
        label = labels.parse(row[LABEL], where=f"{path}: {place}, field '{LABEL}'")
        if label is not None:
            codes.append(Code(name, start, end, label))
    if not codes:
        raise InputError(f"{path}: no row has a label")
    return codes


def write_agreement(
    codes: Sequence[Code], done: Sequence[Done], folder: Path, classes: Sequence[str]
) -> tuple[Path, str]:
    """Write agreement.json; returns it and a line for each head. A code is compared with the
    utterance or gap that it overlaps most; what a head does not answer, or abstains from, is
    counted and not compared. Raises WriteError."""
    rows = {one.task.stem.name: one.rows for one in done}
    heads: dict[str, Any] = {}
    pairs: dict[str, list[tuple[str, str]]] = {head: [] for head in HEADS}
    missing = dict.fromkeys(HEADS, 0)
    for code in codes:
        row = _at(rows.get(code.recording, []), code)
        for head in HEADS:
            label = row and not row[f"abstain_{head}"] and row[f"label_{head}"]
            if label:
                pairs[head].append((code.label, label))
            else:
                missing[head] += 1
    for head, both in pairs.items():
        heads[head] = {**_compared(both, classes), "not_compared": missing[head]}

    found = {"codes": len(codes), "classes": list(classes), "heads": heads}
    path = folder / AGREEMENT
    write_text(path, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    lines = [
        f"{head}: {h['compared']} of {len(codes)} codes compared"
        + ("" if h["kappa"] is None else f", kappa {h['kappa']:.3f}, equal {h['equal']:.1%}")
        for head, h in heads.items()
    ]
    return path, "\n".join(lines)


def _at(rows: Sequence[Mapping[str, Any]], code: Code) -> Mapping[str, Any] | None:
    shared = [
        (min(r["end_s"], code.end_s) - max(r["start_s"], code.start_s), -n)
        for n, r in enumerate(rows)
        if r["kind"] != LISTENER
    ]
    most, n = max(shared, default=(0.0, 0))
    return rows[-n] if most > 0 else None


def _compared(pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> dict[str, Any]:
    """`confusion`: rows are the codes, columns the predictions, in the order of `classes`. `kappa`:
    Cohen's; null where it is not defined, as where all are of one class."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    if not pairs:
        return {"compared": 0, "equal": None, "kappa": None, "confusion": None}
    theirs, ours = zip(*pairs, strict=True)
    several = len({*theirs, *ours}) > 1
    kappa = float(cohen_kappa_score(theirs, ours, labels=list(classes))) if several else None
    return {
        "compared": len(pairs),
        "equal": sum(a == b for a, b in pairs) / len(pairs),
        "kappa": kappa,
        "confusion": confusion_matrix(theirs, ours, labels=list(classes)).tolist(),
    }
