"""A small feature store with labels that can be learnt, and where things lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    LABEL_COLUMNS,
    EncoderSpec,
    FeatureSpec,
    LabelSpec,
    Modality,
    default_labels,
)

LABELS = default_labels()
EMOTIONS, REPORT_ORDER = LABELS.classes, LABELS.report_order
ROOT = Path(__file__).resolve().parents[2]
MEDIA = ROOT.parent / "shared" / "media"
DIMS = {Modality.TEXT: 12, Modality.AUDIO: 10, Modality.VISION: 8}
SPEC = FeatureSpec(
    encoders={
        m.value: EncoderSpec(
            name=f"toy-{m}", revision="", weights_sha256=m.value * 4, dim=d, max_length=0
        )
        for m, d in DIMS.items()
    }
)


def toy_rows(
    count: int,
    seed: int = 0,
    *,
    split: str = "train",
    absent: float = 0.0,
    classes: Sequence[str] = EMOTIONS,
) -> list[dict]:
    """Rows with learnable features: each label shifts its modality's sequence along a direction of
    its own."""
    rng = np.random.default_rng(seed)
    directions = {
        m: np.random.default_rng(7).normal(size=(len(classes), d)) for m, d in DIMS.items()
    }
    rows = []
    for i in range(count):
        label = dict(zip(HEADS, rng.integers(len(classes), size=len(HEADS)), strict=True))
        row = {"id": f"{split}{i:04d}", "split": split, "text": "x", "speaker": "s"}
        row |= {LABEL_COLUMNS[h]: classes[k] for h, k in label.items()}
        for m, d in DIMS.items():
            x = rng.normal(0, 0.3, (int(rng.integers(2, 9)), d)) + directions[m][label[m]]
            row[FEATURE_COLUMNS[m]] = None if rng.random() < absent else x.astype(np.float16)
        rows.append(row)
    return rows


def write_toy_store(
    folder: Path,
    *,
    labels: LabelSpec = LABELS,
    dims: dict[Modality, int] = DIMS,
    empty: Sequence[Modality] = (),
) -> Path:
    """A store of 61 training, 23 validation and 20 test rows, of the modalities in `dims`; those
    of `empty` are absent from every row."""
    encoders = {m: e for m, e in SPEC.encoders.items() if m in dims}
    write_spec(folder, dataclasses.replace(SPEC, encoders=encoders), labels)
    for k, (split, count) in enumerate((("train", 61), ("valid", 23), ("test", 20))):
        rows = toy_rows(count, k, split=split, classes=labels.classes)
        for row in rows:
            row |= dict.fromkeys((FEATURE_COLUMNS[m] for m in empty), None)
        write_part(folder, rows_to_table(rows, store_schema(dims), dims))
    return folder
