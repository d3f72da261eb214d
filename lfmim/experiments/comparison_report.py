"""The report of a benchmark: tables as CSV, Markdown and LaTeX, figures as PNG, and one
self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lfmim.evaluation.figures import (
    confusion_matrices,
    grouped_bars,
    learning_curves,
    lines_with_intervals,
    test_curves,
)
from lfmim.evaluation.page import (
    frame_table,
    markdown_table,
    page,
    paragraph,
    section,
    wide_image,
)
from lfmim.experiments.comparison import (
    COST,
    mean_cka,
    modality_deviation,
    size_differences,
    table_2,
    table_3,
    table_4,
    table_claims,
    table_folds,
    table_sizes,
    table_subsets,
)
from lfmim.experiments.optimism import about_optimism, table_optimism
from lfmim.experiments.published import table_published
from lfmim.experiments.results import (
    REFERENCE,
    Results,
    is_sentiment,
    label_spec_of,
    largest,
    runs_of,
    sizes_of,
    systems_of,
)
from lfmim.schema import MODALITIES
from lfmim.storage import new_file, write_text

# Per utterance or per epoch; the runs' own result.json keep them, and results.json is to be read.
HEAVY = ("ids", "groups", "predictions", "labels", "history", "test_curves")

ABOUT = (
    "Mean ± standard deviation over seeds. Every run has the same sizes, budget and data, its "
    "checkpoint is the epoch with the best validation score of the multimodal head, and the test "
    "split is read once, after that. Differences are of accuracy in points (sentiment: of minus "
    "the absolute error), with 95 % intervals and p-values of a bootstrap over test utterances "
    "(in pairs, whole speakers or clips where the store knows them) and over seeds. A p-value is "
    "of one pair, the same wherever the pair stands, and not corrected: of twenty pairs without a "
    "difference one falls below 0.05. “logistic” is regression on features averaged over time, "
    "“stacking” one on what such regressions make of each modality; ↓ marks a system below them. "
    "Steps and the sum of learning rates (Σ lr) say what budget a recipe had: systems whose "
    "budgets differ are not told apart by their models alone. A dash: nothing to measure, as of a "
    "class without labels, or to compare with."
)
ABOUT_CLAIMS = (
    "The gap is the paper's own, in points of accuracy, or one point where it has none. The power "
    "is the probability that runs like these tell such a gap from none; test utterances and seeds "
    "(with sizes: subsets) are what would make it 0.8, each leaving half of the error. With less "
    "a claim neither holds nor fails here: it cannot be decided."
)


def tables(results: Results, published: bool = False) -> dict[str, tuple[str, pd.DataFrame]]:
    """File name -> title and table; those with nothing in them left out; with the paper's figures
    where the data are its own (`published`). Of a benchmark over sizes those of one size are of the
    largest."""
    whole, sizes = largest(results), sizes_of(results)
    at = f", {sizes[-1]:,} training utterances" if sizes else ""
    if is_sentiment(results):
        found = {"table_3": (f"Sentiment, multimodal head (Table 3){at}", table_3(whole))}
        claims = pd.DataFrame()
    else:
        found = {
            "table_2": (f"Multimodal head (Table 2){at}", table_2(whole)),
            "table_4": (f"Every head against its own label (Table 4){at}", table_4(whole)),
        }
        # The paper's figures of sentiment are not the absolute errors that are compared here.
        claims = table_claims(results)

    if published:
        found["published"] = ("Beside the paper's figures", table_published(whole))
    found["folds"] = ("Multimodal head in each fold", table_folds(whole))
    found["claims"] = ("What was claimed", claims)
    found["sizes"] = ("Multimodal head by training utterances", table_sizes(results))
    found["optimism"] = (f"What other habits would have printed{at}", table_optimism(whole))
    found["subsets"] = (
        f"Multimodal head from every subset of the modalities{at}",
        table_subsets(whole),
    )
    # Empty without folds, where no pair of the claims ran, or no system accepts absent modalities.
    return {name: (title, table) for name, (title, table) in found.items() if not table.empty}


def figures(results: Results) -> dict[str, tuple[str, Figure]]:
    """File name -> title and figure; of a benchmark over sizes those of one size are of the
    largest."""
    found = _figures(largest(results))
    if lines := size_differences(results):
        points = {
            claim: [(n, 100 * d.mean, 100 * d.low, 100 * d.high) for n, d in curve]
            for claim, curve in lines.items()
        }
        found["sizes"] = (
            "Differences over the number of training utterances, with 95 % intervals",
            lines_with_intervals(points, "training utterances", "difference (points)"),
        )
    return found


def _figures(results: Results) -> dict[str, tuple[str, Figure]]:
    systems = systems_of(results)

    # The paper's Figure 3 is of LFMIM, its Figure 4 sets PMR beside it.
    shown = REFERENCE if REFERENCE in systems else systems[0]
    run = runs_of(results, shown)[0]
    found = {
        "figure_3": _curves(run, "Figure 3 a, b"),
        "confusion": (
            f"{shown}, seed {run['seed']}: confusion on test",
            confusion_matrices(run["test"], label_spec_of(results)),
        ),
    }
    if shown == REFERENCE and "pmr" in systems:
        found["figure_4"] = _curves(runs_of(results, "pmr")[0], "Figure 4 a, b, with the above")

    curves = {
        s: [r["test_curves"] for r in runs_of(results, s) if r["test_curves"]] for s in systems
    }
    curves = {s: c for s, c in curves.items() if c}
    if len(curves) > 1:
        title = (
            "Test curves of the multimodal head (Figure 3 c; measured after selection, and no part "
            "of it)"
        )
        found["figure_3c"] = (title, test_curves(curves))

    # Sentiment has no F1 per emotion.
    deviations = (
        {s: modality_deviation(results, s) for s in systems} if not is_sentiment(results) else {}
    )
    bars = {s: (100 * d, None) for s, d in deviations.items() if d is not None}
    if bars:
        found["figure_4c"] = (
            "Standard deviation of F1 over the modalities (Figure 4 c)",
            grouped_bars(label_spec_of(results).report_order, bars, "deviation of F1 (%)"),
        )

    # Of a corpus of two modalities there is one pair.
    measured = [r["cka"] for s in mean_cka(results) for r in runs_of(results, s)]
    pairs = [f"{a}-{b}" for a, b in combinations(MODALITIES, 2)]
    pairs = [p for p in pairs if all(p in found for found in measured)]
    cka = {
        s: np.array([[r["cka"][p] for p in pairs] for r in runs_of(results, s)])
        for s in mean_cka(results)
    }
    if cka:
        title = "Dependence between uni-modal representations on test: linear CKA (cf. Figure 2 b)"
        heights = {s: (x.mean(axis=0), x.std(axis=0)) for s, x in cka.items()}
        found["figure_2b"] = (title, grouped_bars(pairs, heights, "linear CKA"))
    return found


def _curves(run: Mapping[str, Any], figure: str) -> tuple[str, Figure]:
    """Title and figure of a run's curves; `figure` is the paper's."""
    history = [dict(entry) for entry in run["history"]]
    # Not strict: not every run's epochs are measured on test (`curves`).
    for entry, scores in zip(history, run["test_curves"], strict=False):
        entry["test"] = scores
    note = "; test: measured after selection, and no part of it" if run["test_curves"] else ""
    title = (
        f"{run['system']}, seed {run['seed']}: losses and accuracies per head, the chosen epoch "
        f"marked ({figure}{note})"
    )
    return title, learning_curves(history, run["best_epoch"])


def summary(results: Results, published: bool = False) -> str:
    """What a terminal shows: the main table without F1 per emotion, the claims, subsets and CKA."""
    parts = []
    for name, (title, table) in tables(results, published).items():
        # A row per system and head would push all else out of the terminal.
        if name != "table_4":
            emotions = [e for e in label_spec_of(results).report_order if e in table]
            parts.append(f"{title}\n{table.drop(columns=emotions).to_string()}")
        if name == "optimism":
            parts.append(about_optimism(largest(results)))

    if cka := mean_cka(largest(results)):
        shares = ", ".join(f"{s} {v:.3f}" for s, v in cka.items())
        parts.append(f"Linear CKA between uni-modal representations: {shares}")
    return "\n\n".join(parts)


def about_test(results: Results) -> str:
    """What the test split holds, and what is resampled of it."""
    first = results[0]
    unit, names = first.get("grouped_by", "utterance"), first.get("groups", [])
    count = len(first["labels"][0])
    if unit == "utterance":
        return f"The test split has {count:,} utterances, which are resampled one by one."
    return (
        f"The test split has {count:,} utterances of {len(set(names)):,} {unit}s, which are "
        "resampled whole."
    )


def about_sizes(results: Results) -> str:
    """How a benchmark over sizes was made."""
    whole = largest(results)
    subsets = len({r["subset"] for r in whole})
    return (
        f"Trained on {', '.join(f'{n:,}' for n in sizes_of(results))} training utterances, each "
        f"{subsets} times: the utterances of a subset were drawn by its number, a larger one holds "
        "the smaller one of its number, and every system was trained on the same. Validation and "
        "test splits are whole. Deviations and intervals are over subsets, which come with seeds "
        "of their own."
    )


def about_folds(folds: Mapping[str, Any]) -> str:
    """How a cross-validation was made, of a result's `folds`."""
    counts = folds["counts"]
    return (
        f"Cross-validation: {folds['how']} Each fold is tested once, by a model that was chosen on "
        "the next fold and trained on the others; figures are of all "
        f"{sum(counts)} predictions together ({', '.join(map(str, counts))} per fold), and curves "
        "are those of fold 1."
    )


def write_comparison(
    folder: Path,
    results: Results,
    failed: Sequence[str],
    *,
    title: str,
    published: bool = False,
) -> Path:
    """Every table as .csv, .md and .tex, every figure as .png, `results.json`, `index.html`;
    returns its path."""
    lead = [ABOUT, about_test(results)]
    if folds := results[0].get("folds"):
        lead.append(about_folds(folds))
    if sizes_of(results):
        lead.append(about_sizes(results))
    about = {"claims": ABOUT_CLAIMS, "optimism": about_optimism(largest(results))}

    sections = []
    if failed:
        sections.append(section("Failed runs", *map(paragraph, failed)))
    for name, (heading, frame) in tables(results, published).items():
        write_text(folder / f"{name}.csv", frame.to_csv())
        rows = [(i, *row) for i, *row in frame.itertuples()]
        header = [frame.index.name, *frame.columns]
        write_text(folder / f"{name}.md", markdown_table(header, rows))
        write_text(folder / f"{name}.tex", frame.to_latex(escape=True).replace("±", r"$\pm$"))
        # On the page two tables: as one they are wider than a screen.
        cost = [c for c in COST if c in frame]
        parts = [(heading, frame.drop(columns=cost)), (f"{heading}: cost", frame[cost])]
        said = [paragraph(about[name])] if name in about else []
        shown = [frame_table(*p) for p in parts if not p[1].empty]
        sections.append(section(heading, *said, *shown))
    for name, (heading, figure) in figures(results).items():
        with new_file(folder / f"{name}.png") as temporary:
            # savefig goes by the suffix, and the temporary name has none that it knows.
            figure.savefig(temporary, dpi=110, format="png")
        sections.append(section(heading, wide_image(figure, heading)))

    slim = [{k: v for k, v in r.items() if k not in HEAVY} for r in results]
    write_text(folder / "results.json", json.dumps(slim, indent=1))
    return write_text(folder / "index.html", page(title, sections, lead=lead))
