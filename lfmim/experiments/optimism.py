"""What published habits would have printed of the same runs: the epoch chosen on the test split,
the best of several seeds, or both; beside the mean over seeds of the epoch that validation chose.

The test score of every epoch is measured once the choice is made and stored, of weights that were
kept; nothing reads it but this table and the curves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lfmim.experiments.results import Results, is_sentiment, runs_of, systems_of
from lfmim.metrics import metrics_from_dict
from lfmim.schema import MULTIMODAL

HONEST, EPOCH, SEED, BOTH = (
    "validation chooses, mean",
    "test chooses the epoch, mean",
    "validation chooses, best run",
    "test chooses both",
)


def table_optimism(results: Results) -> pd.DataFrame:
    """Multimodal head per system, accuracy in % (sentiment: minus the mean absolute error, in
    hundredths), and what the last column is above the first; a dash where not every run's epochs
    were measured on test (`curves`, folds)."""
    rows = {}
    for system, found in _scores(results).items():
        row = {name: _text(value) for name, value in found.items()}
        row["optimism"] = _text(found[BOTH] - found[HONEST], "+.2f")
        rows[system] = row
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name="system"))


def about_optimism(results: Results) -> str:
    """`table_optimism` in a sentence."""
    scores = _scores(results)
    # Of a single run there is nothing to pick, and of a fitted model no epoch either.
    several = {s: f for s, f in scores.items() if len(runs_of(results, s)) > 1}
    several = {s: f for s, f in several.items() if not math.isnan(f[BOTH])}
    if not several:
        return (
            "With several seeds and every epoch measured on test (curves: -1, no folds) this "
            "table says what choosing on the test split would have added."
        )

    added = {s: f[BOTH] - f[HONEST] for s, f in several.items()}
    most = max(added, key=added.__getitem__)
    honest, picked = (max(scores, key=lambda s: _or_least(scores[s][c])) for c in (HONEST, BOTH))
    first = (
        f"{honest} would be first either way"
        if honest == picked
        else f"the first place would go to {picked} instead of {honest}"
    )
    runs = max(len(runs_of(results, s)) for s in several)
    unit = "hundredths" if is_sentiment(results) else "points"
    return (
        f"With the epoch chosen on test and the best of {runs} runs printed, the same runs would "
        f"have looked {np.mean(list(added.values())):.2f} {unit} better on average, {most} "
        f"{added[most]:.2f} ({several[most][BOTH]:.2f} instead of {several[most][HONEST]:.2f}); "
        f"{first}."
    )


def _scores(results: Results) -> dict[str, dict[str, float]]:
    out = {}
    for system in systems_of(results):
        runs = runs_of(results, system)
        chosen = [_score(r["test"]) for r in runs]
        # The curves of folds are those of one of them.
        whole = all(r["test_curves"] for r in runs) and not runs[0].get("folds")
        peaks = [max(map(_score, r["test_curves"])) for r in runs] if whole else [math.nan]
        out[system] = {
            HONEST: float(np.mean(chosen)),
            EPOCH: float(np.mean(peaks)),
            SEED: max(chosen),
            BOTH: max(peaks),
        }
    return out


def _score(test: dict[str, Any]) -> float:
    return 100 * metrics_from_dict(test[MULTIMODAL]).score


def _text(value: float, style: str = ".2f") -> str:
    return "–" if math.isnan(value) else f"{value:{style}}"


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value
