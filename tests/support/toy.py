"""A small feature store with labels that can be learnt, and where things lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lfmim.schema import (
    EMOTIONS,
    FEATURE_COLUMNS,
    HEADS,
    LABEL_COLUMNS,
    EncoderSpec,
    FeatureSpec,
    Modality,
)

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


def toy_rows(count: int, seed: int = 0, *, split: str = "train", absent: float = 0.0) -> list[dict]:
    """Rows with learnable features: each label shifts its modality's sequence along a direction of
    its own."""
    rng = np.random.default_rng(seed)
    directions = {
        m: np.random.default_rng(7).normal(size=(len(EMOTIONS), d)) for m, d in DIMS.items()
    }
    rows = []
    for i in range(count):
        label = dict(zip(HEADS, rng.integers(len(EMOTIONS), size=len(HEADS)), strict=True))
        row = {"id": f"{split}{i:04d}", "split": split, "text": "x", "speaker": "s"}
        row |= {LABEL_COLUMNS[h]: EMOTIONS[k] for h, k in label.items()}
        for m, d in DIMS.items():
            x = rng.normal(0, 0.3, (int(rng.integers(2, 9)), d)) + directions[m][label[m]]
            row[FEATURE_COLUMNS[m]] = None if rng.random() < absent else x.astype(np.float16)
        rows.append(row)
    return rows
