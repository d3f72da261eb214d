"""A corpus's labels as tables, figure and page: the paper's Table 1 and Figure 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lfmim.data.label_statistics import (
    corpus_statistics,
    inconsistency_with_multimodal,
    label_distribution,
    pairwise_inconsistency,
)
from lfmim.evaluation.figures import new_figure
from lfmim.evaluation.page import Html, frame_table, page, paragraph, section, wide_image
from lfmim.schema import HEADS, LABEL_COLUMNS, LabelSpec
from lfmim.storage import new_file, write_text

TITLES = {
    "table_1": "Corpus (Table 1)",
    "figure_1a": "Utterances per emotion and label (Figure 1 a)",
    "figure_1b": "Share of utterances whose two labels differ (Figure 1 b)",
    "figure_1c": "Share whose uni-modal label differs, per multimodal label (Figure 1 c)",
}


def label_tables(labels: pd.DataFrame, spec: LabelSpec) -> dict[str, pd.DataFrame]:
    """The four tables of a `read_labels` frame, keyed as TITLES, classes in the spec's order."""
    return dict(
        zip(
            TITLES,
            (
                corpus_statistics(labels),
                label_distribution(labels, spec),
                pairwise_inconsistency(labels),
                inconsistency_with_multimodal(labels, spec),
            ),
            strict=True,
        )
    )


def label_figure(tables: dict[str, pd.DataFrame]) -> Figure:
    """Figure 1 (a), (b), (c) side by side."""
    figure = new_figure(17, 4.8)
    a, b, c = figure.subplots(1, 3, width_ratios=(1.35, 0.9, 1.25))
    _bars(a, tables["figure_1a"])
    a.set(title="(a) labels", ylabel="utterances")

    shares = tables["figure_1b"].to_numpy()
    # The same colours for every corpus, so that two pages can be laid side by side; one that
    # disagrees more still has its darkest cell.
    top = max(0.7, float(np.nanmax(shares, initial=0)))
    b.imshow(shares, cmap="Blues", vmin=0, vmax=top)
    for i, j in np.ndindex(shares.shape):
        # A label agrees with itself, and heads that nobody labelled together have no share.
        if i != j and not np.isnan(shares[i, j]):
            b.text(
                j,
                i,
                f"{shares[i, j]:.2f}",
                ha="center",
                va="center",
                color="white" if shares[i, j] > 0.5 * top else "black",
            )
    b.set_xticks(range(len(HEADS)), HEADS)
    b.set_yticks(range(len(HEADS)), HEADS, rotation=90, va="center")
    b.set(title="(b) inconsistency of two labels")

    _bars(c, tables["figure_1c"])
    c.set(title="(c) inconsistency with the multimodal label", ylabel="share", ylim=(0, 1))
    return figure


def _bars(axis: Axes, table: pd.DataFrame) -> None:
    for i, head in enumerate(table.columns):
        # Centred, so that the tick stands under the middle of its group.
        x = np.arange(len(table)) + (i - (len(table.columns) - 1) / 2) * 0.8 / len(table.columns)
        axis.bar(x, table[head], 0.8 / len(table.columns), label=head)
    axis.set_xticks(range(len(table)), table.index, rotation=30, ha="right")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)


def label_sections(labels: pd.DataFrame, spec: LabelSpec) -> list[Html]:
    """The figure and the tables as sections of a page; a sentence where there is no label."""
    # A store of the sentiment task has scores alone, and is no worse a store for it.
    if labels[list(LABEL_COLUMNS.values())].isna().all(axis=None):
        return [section("Labels", paragraph("No emotion label of any head."))]

    tables = label_tables(labels, spec)
    alt = "Utterances per emotion and label, and shares of labels that differ (Figure 1)"
    return [
        section("Labels", wide_image(label_figure(tables), alt)),
        *(section(TITLES[n], frame_table(TITLES[n], _plain(t))) for n, t in tables.items()),
    ]


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Without pandas' names of rows and columns, which say nothing here."""
    return table.rename_axis(None)


def write_label_report(folder: Path, labels: pd.DataFrame, spec: LabelSpec, *, title: str) -> Path:
    """Write the tables as .csv, `figure_1.png` and `index.html`; returns the page's path."""
    tables = label_tables(labels, spec)
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", table.to_csv())

    with new_file(folder / "figure_1.png") as temporary:
        # savefig goes by the suffix, and the temporary name has none that it knows.
        label_figure(tables).savefig(temporary, dpi=130, format="png")
    return write_text(
        folder / "index.html",
        page(title, label_sections(labels, spec)),
    )
