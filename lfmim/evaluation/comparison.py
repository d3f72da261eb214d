"""Results of many runs -> the paper's tables and figures, with spread and p-values; Markdown, CSV, LaTeX, HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import permutation_test

from lfmim.evaluation.figures import confusion_matrices, learning_curves
from lfmim.evaluation.report import PAGE_STYLE, inline_image, write_text
from lfmim.schema import EMOTIONS, HEADS, MODALITIES, MULTIMODAL, REPORT_ORDER

Results = Sequence[Mapping[str, Any]]
REFERENCE = "lfmim"


def linear_cka(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> float:
    """Linear centred kernel alignment of two representations [N, D1], [N, D2] (Kornblith et al. 2019): 0 to 1."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm else 0.0


def paired_p_value(results: Results, a: str, b: str, head: str = MULTIMODAL) -> float:
    """Two-sided p of equal test accuracy of systems `a` and `b`: sign-flip permutation over the test utterances.

    Per utterance the difference of the share of seeds that are right; 9,999 permutations (scipy).
    """
    difference = _right(results, a, head) - _right(results, b, head)
    if not difference.any():
        return 1.0
    test = permutation_test(
        (difference,), lambda d, axis: d.mean(axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=9999, batch=500, rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _right(results: Results, system: str, head: str) -> npt.NDArray[np.float64]:
    runs = [r for r in results if r["system"] == system]
    index = HEADS.index(head)
    right = [np.asarray(r["predictions"][head]) == np.asarray(r["labels"][index]) for r in runs]
    return np.asarray(np.mean(right, axis=0)[np.asarray(runs[0]["labels"][index]) >= 0])


def systems_of(results: Results) -> list[str]:
    """Names in the order of their first run."""
    return list(dict.fromkeys(r["system"] for r in results))


def table_2(results: Results) -> pd.DataFrame:
    """Multimodal head: F1 per emotion in report order, accuracy ('overall F1' of the paper), p against LFMIM. In %."""
    rows = {}
    for system in systems_of(results):
        tests = [r["test"][MULTIMODAL] for r in results if r["system"] == system]
        run = next(r for r in results if r["system"] == system)
        row: dict[str, Any] = {e: _spread([t["f1"][e] for t in tests]) for e in REPORT_ORDER}
        row["accuracy"] = _spread([t["accuracy"] for t in tests])
        row["weighted F1"] = _spread([t["weighted_f1"] for t in tests])
        row["macro F1"] = _spread([t["macro_f1"] for t in tests])
        compared = system != REFERENCE and REFERENCE in systems_of(results)
        row["p vs LFMIM"] = f"{paired_p_value(results, REFERENCE, system):.4f}" if compared else ""
        row["parameters"] = f"{run['parameters']:,}"
        row["MFLOPs/sample"] = f"{run['flops'] / 1e6:.1f}"
        row["seeds"] = str(len(tests))
        rows[system] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")


def table_4(results: Results) -> pd.DataFrame:
    """Every head against its own label: F1 per emotion and accuracy, for systems with uni-modal heads. In %."""
    rows = {}
    for system in systems_of(results):
        runs = [r for r in results if r["system"] == system]
        for head in HEADS:
            tests = [r["test"][head] for r in runs if head in r["test"]]
            if tests and len(runs[0]["test"]) > 1:
                rows[f"{system} {head}"] = {
                    **{e: _spread([t["f1"][e] for t in tests]) for e in REPORT_ORDER},
                    "accuracy": _spread([t["accuracy"] for t in tests]),
                    "majority": f"{100 * tests[0]['majority']:.2f}",
                }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system, head")


def _spread(values: Sequence[float]) -> str:
    x = 100 * np.asarray(values)
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if len(x) > 1 else f"{x.mean():.2f}"


def f1_deviation(results: Results) -> Figure:
    """The paper's Figure 4 (c): per emotion the standard deviation of F1 over the heads, averaged over seeds."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    systems = [s for s in systems_of(results) if any(len(r["test"]) == len(HEADS) for r in results if r["system"] == s)]
    for i, system in enumerate(systems):
        f1 = np.array([[[r["test"][h]["f1"][e] for h in HEADS] for e in REPORT_ORDER]
                       for r in results if r["system"] == system])
        axis.bar(np.arange(len(EMOTIONS)) + (i - (len(systems) - 1) / 2) * 0.8 / len(systems),
                 100 * f1.std(axis=2).mean(axis=0), 0.8 / len(systems), label=system)
    axis.set_xticks(range(len(REPORT_ORDER)), REPORT_ORDER)
    axis.set(ylabel="deviation of F1 over heads (%)")
    if systems:
        axis.legend()
    return figure


def dependence(results: Results) -> Figure:
    """Linear CKA between uni-modal representations on test, mean and deviation over seeds (cf. Figure 2 b)."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axis = figure.subplots()
    systems = [s for s in systems_of(results) if any(r["cka"] for r in results if r["system"] == s)]
    pairs = [f"{a}-{b}" for i, a in enumerate(MODALITIES) for b in MODALITIES[i + 1 :]]
    for i, system in enumerate(systems):
        cka = np.array([[r["cka"][p] for p in pairs] for r in results if r["system"] == system])
        axis.bar(np.arange(len(pairs)) + (i - (len(systems) - 1) / 2) * 0.8 / len(systems), cka.mean(axis=0),
                 0.8 / len(systems), yerr=cka.std(axis=0), label=system, capsize=3)
    axis.set_xticks(range(len(pairs)), pairs)
    axis.set(ylabel="linear CKA")
    if systems:
        axis.legend()
    return figure


def mean_cka(results: Results) -> dict[str, float]:
    """Per system with uni-modal heads: linear CKA averaged over pairs and seeds."""
    return {s: float(np.mean([list(r["cka"].values()) for r in results if r["system"] == s]))
            for s in systems_of(results) if any(r["cka"] for r in results if r["system"] == s)}


def write_comparison(folder: Path, results: Results, failed: Sequence[str], *, title: str) -> Path:
    """table_2/table_4 as .csv, .md, .tex; figures as .png; `index.html` with all of it; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"table_2": table_2(results), "table_4": table_4(results)}
    for name, table in tables.items():
        if table.empty:
            continue
        write_text(folder / f"{name}.csv", table.to_csv())
        write_text(folder / f"{name}.md", _markdown(table))
        write_text(folder / f"{name}.tex", table.to_latex(escape=True).replace("±", r"$\pm$"))
    shown = REFERENCE if REFERENCE in systems_of(results) else systems_of(results)[0]
    run = next(r for r in results if r["system"] == shown)
    figures = {
        f"Losses and accuracies of {shown}, seed {run['seed']}, training and validation (Figure 3; the test split "
        "is read once, after selection)": ("figure_3", learning_curves(run["history"])),
        f"Confusion of {shown}, seed {run['seed']}, test": ("confusion", confusion_matrices(run["test"])),
        "Deviation of F1 over the heads (Figure 4 c)": ("figure_4c", f1_deviation(results)),
        "Dependence between uni-modal representations (Figure 2 b)": ("figure_2b", dependence(results)),
    }
    for name, figure in figures.values():
        figure.savefig(folder / f"{name}.png", dpi=110)
    notes = "".join(f"<li>failed: {html.escape(f)}</li>" for f in failed)
    page = f"""<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{PAGE_STYLE}</style>
<h1>{html.escape(title)}</h1><ul>{notes}</ul>
<p>In percent, mean ± standard deviation over seeds. Each run is chosen on validation accuracy of the multimodal head
and tested once. p: paired sign-flip permutation test over the test utterances.</p>
<h2>Multimodal head (Table 2)</h2>{tables['table_2'].to_html()}
<h2>Every head against its own label (Table 4)</h2>{tables['table_4'].to_html()}
{''.join(f'<h2>{html.escape(t)}</h2>{inline_image(f)}' for t, (_, f) in figures.items())}"""
    slim = [{k: v for k, v in r.items() if k not in ("predictions", "labels", "history")} for r in results]
    write_text(folder / "results.json", json.dumps(slim, indent=1))
    return write_text(folder / "index.html", page)


def _markdown(table: pd.DataFrame) -> str:
    header = [str(table.index.name), *map(str, table.columns)]
    lines = [header, ["---"] * len(header), *([str(i), *map(str, row)] for i, *row in table.itertuples())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
