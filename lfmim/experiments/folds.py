"""Cross-validation: the results of a system's folds, one model each, as one result of all
utterances."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lfmim.data.splits import StoreFolds
from lfmim.experiments.results import Results
from lfmim.metrics import metrics_from_dict, sums_for
from lfmim.schema import HEADS, MULTIMODAL, LabelSpec


def merge_folds(results: Results, folds: StoreFolds) -> list[dict[str, Any]]:
    """One result per system and seed of which every fold is there, in the order of their first
    runs.

    Labels and predictions are of all utterances in id order, each by the model of the fold that
    tested it, and the test metrics are of these together; costs are summed, CKA and validation
    scores averaged, subsets weighted by their utterances; history, curves and size are those of
    fold 1.
    """
    by_run: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for r in results:
        by_run.setdefault((r["system"], r["seed"]), []).append(r)

    count = max(folds.parts.values())
    whole = (sorted(runs, key=lambda r: r["fold"]) for runs in by_run.values())
    return [_merged(runs, folds.how) for runs in whole if len(runs) == count]


def _merged(runs: Sequence[Mapping[str, Any]], how: str) -> dict[str, Any]:
    ids = [name for r in runs for name in r["ids"]]
    order = sorted(range(len(ids)), key=ids.__getitem__)

    def in_order(parts: Sequence[Sequence[Any]]) -> list[Any]:
        values = [value for part in parts for value in part]
        return [values[i] for i in order]

    labels = [in_order([r["labels"][i] for r in runs]) for i in range(len(HEADS))]
    heads = [h for h in HEADS if any(h in r["test"] for r in runs)]
    predictions = {
        h: in_order([r["predictions"][h] for r in runs])
        for h in HEADS
        if all(h in r["predictions"] for r in runs)
    }

    counts = [r["test"][MULTIMODAL]["count"] for r in runs]
    return {
        **runs[0],
        "fold": None,
        "ids": [ids[i] for i in order],
        "labels": labels,
        "predictions": predictions,
        "test": {h: _test(h, runs, labels, predictions[h]) for h in heads},
        "seconds": sum(r["seconds"] for r in runs),
        "valid_score": _mean(runs, "valid_score"),
        "cka": _mean_of_each(runs, "cka"),
        "subsets": _mean_of_each(runs, "subsets", counts),
        "folds": {
            "how": how,
            "counts": counts,
            "scores": [metrics_from_dict(r["test"][MULTIMODAL]).score for r in runs],
        },
    }


def _test(
    head: str,
    runs: Sequence[Mapping[str, Any]],
    labels: Sequence[Sequence[Any]],
    predicted: Sequence[Any],
) -> dict[str, Any]:
    """A head's metrics over the utterances of all folds."""
    spec = LabelSpec.from_dict(runs[0]["label_spec"], source="result.json")
    label = torch.tensor(labels).T
    sums = sums_for(label, spec.classes)

    # Sentiment scores as they are; a class as logits of which it is the largest.
    answers = torch.tensor(predicted)
    logits = (
        answers[:, None]
        if label.is_floating_point()
        else torch.nn.functional.one_hot(answers, len(spec.classes))
    )
    sums.update({head: logits}, label, torch.zeros(label.shape))

    # The losses of single utterances are not in the results; their means are.
    tests = [r["test"][head] for r in runs if head in r["test"]]
    loss = np.average([t["loss"] for t in tests], weights=[t["count"] for t in tests])
    return vars(dataclasses.replace(sums.compute()[head], loss=float(loss)))


def _mean(runs: Sequence[Mapping[str, Any]], field: str) -> float:
    return float(np.mean([r[field] for r in runs]))


def _mean_of_each(
    runs: Sequence[Mapping[str, Any]], field: str, weights: Sequence[float] | None = None
) -> dict[str, float]:
    return {
        name: float(np.average([r[field][name] for r in runs], weights=weights))
        for name in runs[0][field]
    }
