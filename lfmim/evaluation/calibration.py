"""How far probabilities can be taken at their word."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

BINS = 15


def calibration(probabilities: npt.NDArray[Any], labels: npt.NDArray[Any]) -> dict[str, Any]:
    """Of [N, C] probabilities and the N right classes: `ece`, the expected calibration error of the
    answers in BINS bins of equal width (Guo et al. 2017), NaN for no rows; and `reliability`, per
    bin its `count`, mean `confidence` and `accuracy`, None where it is empty."""
    confidence = probabilities.max(axis=1, initial=0.0)
    right = probabilities.argmax(axis=1) == labels
    # A confidence of 1 is in the last bin, as in np.histogram's own edges.
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count, sure, hits = (
        np.bincount(place, weights=w, minlength=BINS) for w in (None, confidence, right)
    )

    bins = [
        {
            "count": int(n),
            "confidence": float(c / n) if n else None,
            "accuracy": float(h / n) if n else None,
        }
        for n, c, h in zip(count, sure, hits, strict=True)
    ]
    ece = float(np.abs(sure - hits).sum() / len(labels)) if len(labels) else math.nan
    return {"ece": ece, "reliability": bins}
