"""Figures: loss and accuracy curves per head, confusion matrices. Functions return matplotlib Figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lfmim.schema import EMOTIONS, HEADS, REPORT_ORDER, SENTIMENTS


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss and accuracy (sentiment: MAE) per head over epochs, training and validation (as the paper's Figure 3)."""
    figure = Figure(figsize=(3.2 * len(HEADS), 5.5), layout="constrained")
    axes = figure.subplots(2, len(HEADS), sharex=True, sharey="row")
    epochs = [entry["epoch"] + 1 for entry in history]
    emotions = all("accuracy" in entry["valid"][HEADS[-1]] for entry in history)
    for row, metric in enumerate(("loss", "accuracy" if emotions else "mae")):
        for column, head in enumerate(HEADS):
            axis = axes[row, column]
            for part, style in (("train", "--"), ("valid", "-")):
                axis.plot(epochs, [entry[part][head][metric] for entry in history], style, label=part)
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(head)
            else:
                axis.set_xlabel("epoch")
        axes[row, 0].set_ylabel(metric)
    axes[0, 0].legend()
    return figure


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """One matrix per head: share of each label (rows) by prediction (columns), counts written in.

    Emotions are in report order; sentiment has its five classes."""
    heads = [h for h in HEADS if h in metrics]
    figure = Figure(figsize=(4.6 * len(heads), 4.8), layout="constrained")
    for axis, head in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads, strict=True):
        counts, names = np.array(metrics[head]["confusion"]), SENTIMENTS
        if len(counts) == len(EMOTIONS):
            order, names = [EMOTIONS.index(e) for e in REPORT_ORDER], REPORT_ORDER
            counts = counts[np.ix_(order, order)]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            if counts[i, j]:
                axis.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8,
                          color="white" if share[i, j] > 0.5 else "black")
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(title=head, xlabel="predicted", ylabel="label")
    return figure
