"""Figures: loss and accuracy curves per head, confusion matrices. Functions return matplotlib
Figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lfmim.schema import HEADS, MULTIMODAL, SENTIMENTS, LabelSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` by `height` inches. Only who draws waits for matplotlib's
    import."""
    from matplotlib.figure import Figure

    # Not by pyplot, which picks a backend by the machine's display and keeps every figure in memory
    # until it is closed.
    return Figure(figsize=(width, height), layout="constrained")


def learning_curves(history: Sequence[Mapping[str, Any]], chosen: int = -1) -> Figure:
    """Loss and accuracy (sentiment: MAE) per head over epochs, training, validation and, where the
    entries have it, test (as the paper's Figure 3); the epoch `chosen` (from 0; -1: none) is
    marked."""
    # A head without labels, as of a modality that the corpus lacks, has nothing to draw.
    valid = [entry["valid"] for entry in history]
    heads = [h for h in HEADS if any(h in v and v[h].get("count", 1) for v in valid)] or HEADS
    figure = new_figure(3.2 * len(heads), 5.5)
    axes = figure.subplots(2, len(heads), sharex=True, sharey="row", squeeze=False)
    # Counted from 0 in checkpoints, from 1 for people.
    epochs = [entry["epoch"] + 1 for entry in history]
    emotions = all("accuracy" in entry["valid"][HEADS[-1]] for entry in history)

    for row, metric in enumerate(("loss", "accuracy" if emotions else "mae")):
        for column, head in enumerate(heads):
            axis = axes[row, column]
            for part, style in (("train", "--"), ("valid", "-"), ("test", ":")):
                # TFN, LMF and others answer the multimodal head alone; test is in a benchmark's
                # first seeds only, put there after the checkpoint was chosen.
                if all(head in entry.get(part, ()) for entry in history):
                    figures = [entry[part][head][metric] for entry in history]
                    # A line of one epoch cannot be seen.
                    axis.plot(epochs, figures, style, label=part, marker="." * (len(epochs) == 1))
            if chosen >= 0:
                axis.axvline(chosen + 1, color="0.4", linewidth=1, label=f"chosen: {chosen + 1}")
            axis.grid(alpha=0.3)
            if row == 0:
                axis.set_title(head)
            else:
                axis.set_xlabel("epoch")
        axes[row, 0].set_ylabel(metric)

    # A run of two epochs would get a tick at 1.5.
    axes[0, 0].locator_params(axis="x", integer=True)
    # Every model has the multimodal head, the last one; the legend of an axis without lines warns.
    axes[0, -1].legend()
    return figure


def confusion_matrices(metrics: Mapping[str, Mapping[str, Any]], labels: LabelSpec) -> Figure:
    """One matrix per head with labels: share of each label (rows) by prediction (columns), counts
    written in.

    Emotions are in the report order of `labels`; sentiment has its five classes."""
    heads = [h for h in HEADS if h in metrics and metrics[h].get("count", 1)]
    # Room for a count in each cell, however many classes there are.
    side = max(4.6, 0.55 * len(labels.classes) + 0.8)
    figure = new_figure(side * len(heads), side + 0.2)
    order = [labels.classes.index(c) for c in labels.report_order]

    for axis, head in zip(figure.subplots(1, len(heads), squeeze=False)[0], heads, strict=True):
        counts, names = np.array(metrics[head]["confusion"]), SENTIMENTS
        if "mae" not in metrics[head]:
            names, counts = labels.report_order, counts[np.ix_(order, order)]

        # Shares of the row: in counts the most frequent emotion, a third of EmotionTalk's labels,
        # would leave the rare ones white. One without any label stays a white row.
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            if counts[i, j]:
                axis.text(
                    j,
                    i,
                    str(counts[i, j]),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.5 else "black",
                )

        axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(names)), names)
        axis.set(title=head, xlabel="predicted", ylabel="label")
    return figure


def reliability_diagrams(heads: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Accuracy against confidence of each head's answers, bin by bin (`calibration`); bars on the
    diagonal are as often right as they say."""
    shown = {h: m for h, m in heads.items() if m["count"]}
    figure = new_figure(3.4 * len(shown), 3.4)
    axes = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axis, (head, m) in zip(axes, shown.items(), strict=True):
        bins = m["reliability"]
        middle = (np.arange(len(bins)) + 0.5) / len(bins)
        # Paler where few answers are: three of them say little.
        most = max(b["count"] for b in bins)
        for x, b in zip(middle, bins, strict=True):
            if b["count"]:
                shade = 0.25 + 0.75 * b["count"] / most
                axis.bar(x, b["accuracy"], 0.9 / len(bins), color="C0", alpha=shade)
        axis.plot([0, 1], [0, 1], "k--", linewidth=1)
        axis.set(
            title=f"{head}: ECE {m['ece']:.3f}", xlabel="probability", xlim=(0, 1), ylim=(0, 1)
        )
    axes[0].set_ylabel("share that is right")
    return figure


def test_curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure:
    """Accuracy (sentiment: MAE) of the multimodal head over epochs, a line per system, averaged
    over its runs."""
    figure = new_figure(8, 4.2)
    axis = figure.subplots()
    metric = "accuracy" if "accuracy" in next(iter(runs.values()))[0][0][MULTIMODAL] else "mae"

    for i, (system, curves) in enumerate(runs.items()):
        mean = np.mean([[epoch[MULTIMODAL][metric] for epoch in curve] for curve in curves], axis=0)
        # matplotlib has ten colours: the eleventh system needs another line to be told from the
        # first.
        axis.plot(range(1, len(mean) + 1), mean, ("-", "--", ":")[i // 10 % 3], label=system)

    axis.grid(alpha=0.3)
    axis.set(xlabel="epoch", ylabel=metric)
    axis.locator_params(axis="x", integer=True)
    axis.legend(ncols=2)
    return figure


Numbers = npt.NDArray[np.float64]


def grouped_bars(
    groups: Sequence[str], bars: Mapping[str, tuple[Numbers, Numbers | None]], ylabel: str
) -> Figure:
    """A bar per name of `bars` (heights and error bars, or None for none) in each of `groups`."""
    figure = new_figure(8, 3.6)
    axis = figure.subplots()
    width = 0.8 / len(bars)

    for i, (name, (heights, errors)) in enumerate(bars.items()):
        middle = np.arange(len(groups)) + (i - (len(bars) - 1) / 2) * width
        axis.bar(middle, heights, width, yerr=errors, label=name, capsize=3)

    axis.set_xticks(range(len(groups)), groups)
    axis.set(ylabel=ylabel)
    axis.legend()
    return figure


def lines_with_intervals(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], xlabel: str, ylabel: str
) -> Figure:
    """A line per name over points (x, value, low, high), x on a log scale; 0 is marked."""
    figure = new_figure(8, 4.6)
    axis = figure.subplots()
    axis.axhline(0, color="0.4", linewidth=1)

    for i, (name, points) in enumerate(lines.items()):
        x, value, low, high = np.array(points).T
        # Beside each other: intervals of one size would cover one another.
        x = x * 1.02 ** (i - (len(lines) - 1) / 2)
        bars = (value - low, high - value)
        style = ("-", "--", ":")[i // 10 % 3]
        axis.errorbar(x, value, bars, label=name, capsize=3, marker="o", linestyle=style)

    sizes = sorted({int(point[0]) for points in lines.values() for point in points})
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.legend(ncols=2)
    return figure
