"""Results of many runs -> the paper's tables. distributed/benchmark.py writes a result per run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lfmim.config import experiment_from_dict
from lfmim.experiments.difference import ALPHA, POWER, Estimate, difference
from lfmim.experiments.published import ACCURACY
from lfmim.experiments.results import (
    REFERENCE,
    Results,
    at_size,
    label_spec_of,
    runs_of,
    sizes_of,
    systems_of,
)
from lfmim.experiments.systems import BASELINES
from lfmim.metrics import labelled_f1, metrics_from_dict
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL
from lfmim.training.loop import learning_rate, warmup_factor

CLAIMS = (
    ("lfmim", "pmr"),
    ("pmr", "mult"),
    ("mult", "lft"),
    ("lft", "eft"),
    ("eft", "tfn"),
    ("tfn", "lmf"),
    ("lfmim", "lfmim-ml"),
    ("strong", "paper"),
    ("strong", "lfmim"),
    ("strong", "logistic"),
)
"""Pairs of which the first is said to be better: the paper's order in Tables 2 and 4, and ours of
the preset `strong`."""
OUR_GAP = 1.0
"""Points of accuracy that a claim of ours is about."""
COST = ("parameters", "MFLOPs/sample", "steps", "Σ lr", "seeds")
"""Columns of `table_2` and `table_3` on what a system costs."""


def linear_cka(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> float:
    """Linear centred kernel alignment of two representations [N, D1], [N, D2] (Kornblith et al.
    2019): 0 to 1."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    # By [D, D] products, which give the same number as Gram matrices of [N, N] and fit any split.
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm else 0.0


def _spread(values: Sequence[float], factor: float = 100) -> str:
    x = factor * np.asarray(values)
    # Of a class without labels: the runs share a test split, so it is all of them or none.
    if np.isnan(x).any():
        return "–"
    # ddof 1: a handful of seeds is a sample, and the deviation of five would come out 11 % too
    # small.
    return f"{x.mean():.2f} ± {x.std(ddof=1):.2f}" if len(x) > 1 else f"{x.mean():.2f}"


def _class_f1(tests: Results, order: Sequence[str]) -> dict[str, str]:
    f1 = [labelled_f1(t) for t in tests]
    return {e: _spread([of[e] for of in f1]) for e in order}


def _frame(rows: Mapping[str, Mapping[str, Any]], name: str) -> pd.DataFrame:
    # A row without a column has nothing to say there.
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name=name)).fillna("")


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _against_reference(results: Results) -> dict[str, dict[str, str]]:
    """Per system its difference to LFMIM and the p-value."""
    systems = systems_of(results)
    out = {s: {"vs LFMIM": "", "p vs LFMIM": ""} for s in systems}
    # Without LFMIM among the systems there is nothing to compare with, and the columns stay empty.
    for system in systems if REFERENCE in systems else ():
        # A baseline is compared in the columns of its own: each pair once.
        if system != REFERENCE and system not in BASELINES:
            d = difference(results, system, REFERENCE)
            out[system] = {"vs LFMIM": _interval(d), "p vs LFMIM": p_text(d.p)}
    return out


def _against_baseline(results: Results, system: str, head: str = MULTIMODAL) -> dict[str, str]:
    """Difference to each baseline and its p-value; an arrow marks who is below it."""
    # Their uni-modal heads are the same regressions.
    asked = BASELINES if head == MULTIMODAL else BASELINES[:1]
    columns: dict[str, str] = {}
    for baseline in asked:
        if baseline not in systems_of(results):
            continue
        if head not in runs_of(results, baseline)[0]["test"]:
            continue
        difference_column, p_column = f"vs {baseline}", f"p vs {baseline}"
        # Each pair once: of two baselines the later stands against the earlier.
        if system in BASELINES and BASELINES.index(system) <= BASELINES.index(baseline):
            columns |= {difference_column: "", p_column: ""}
            continue
        d = difference(results, system, baseline, head)
        mark = " ↓" if d.mean < 0 else ""
        columns |= {difference_column: f"{_interval(d)}{mark}", p_column: p_text(d.p)}
    return columns


def _cost(results: Results, system: str) -> dict[str, str]:
    runs = runs_of(results, system)
    return {
        "parameters": f"{runs[0]['parameters']:,}",
        "MFLOPs/sample": f"{runs[0]['flops'] / 1e6:.1f}",
        **_budget(runs),
        "seeds": str(len(runs)),
    }


def _budget(runs: Results) -> dict[str, str]:
    """Optimizer steps, averaged over the runs, and the sum of their learning rates; "" for a fitted
    model and where a result does not hold its config."""
    if not runs[0]["config"] or not any(entry["lr"] for entry in runs[0]["history"]):
        return {"steps": "", "Σ lr": ""}

    config = experiment_from_dict(dict(runs[0]["config"]), stored=True).train
    found = []
    for run in runs:
        # No epoch reads fewer samples than its best-labelled head counts.
        samples = max(m["count"] for m in run["history"][0]["train"].values())
        steps = -(-samples // config.batch_size)
        rates = [
            learning_rate(config, epoch) * warmup_factor(config, epoch, step, steps)
            for epoch in range(len(run["history"]))
            for step in range(steps)
        ]
        found.append((len(rates), sum(rates)))
    steps_, total = np.mean(found, axis=0)
    momentum = f", momentum {config.momentum:g}" if config.momentum else ""
    return {"steps": f"{steps_:,.0f}", "Σ lr": f"{total:.3g} ({config.optimizer}{momentum})"}


def _interval(d: Estimate) -> str:
    return f"{100 * d.mean:+.2f} [{100 * d.low:+.2f}, {100 * d.high:+.2f}]"


def table_2(results: Results) -> pd.DataFrame:
    """Multimodal head: accuracy (the paper's 'overall F1'), against LFMIM, F1 per emotion in report
    order; in %."""
    rows, against = {}, _against_reference(results)
    order = label_spec_of(results).report_order
    for system in systems_of(results):
        tests = [r["test"][MULTIMODAL] for r in runs_of(results, system)]
        # Accuracy is what the paper calls overall F1: its Table 4's equal the accuracies of §5.1.3.
        rows[system] = {
            "accuracy": _spread([t["accuracy"] for t in tests]),
            **_against_baseline(results, system),
            **against[system],
            **_class_f1(tests, order),
            "weighted F1": _spread([t["weighted_f1"] for t in tests]),
            "macro F1": _spread([t["macro_f1"] for t in tests]),
            **_cost(results, system),
        }
    return _frame(rows, "system")


def table_3(results: Results) -> pd.DataFrame:
    """Sentiment, multimodal head, CH-SIMS conventions: zero counts as negative in Acc-2 and F1, or
    is left out. In %, but MAE and Pearson's r."""
    # The paper prints the first four; the field uses either convention for zero, and they differ.
    columns = {
        "Acc-2": "accuracy_2",
        "Acc-3": "accuracy_3",
        "Acc-5": "accuracy_5",
        "F1": "weighted_f1",
        "Acc-2 without 0": "accuracy_2_nonzero",
        "F1 without 0": "weighted_f1_nonzero",
    }

    rows, against = {}, _against_reference(results)
    for system in systems_of(results):
        tests = [r["test"][MULTIMODAL] for r in runs_of(results, system)]
        rows[system] = {
            **{title: _spread([t[c] for t in tests]) for title, c in columns.items()},
            "MAE": _spread([t["mae"] for t in tests], 1),
            "r": _spread([t["pearson"] for t in tests], 1),
            **_against_baseline(results, system),
            **against[system],
            **_cost(results, system),
        }
    return _frame(rows, "system")


def table_4(results: Results) -> pd.DataFrame:
    """Every head against its own label: F1 per emotion and accuracy, for systems with uni-modal
    heads. In %."""
    rows = {}
    order = label_spec_of(results).report_order
    for system in systems_of(results):
        runs = runs_of(results, system)
        for head in HEADS:
            tests = [r["test"][head] for r in runs if head in r["test"]]
            # Systems of the multimodal head alone are in Table 2 already.
            if tests and len(runs[0]["test"]) > 1:
                rows[f"{system} {head}"] = {
                    **_class_f1(tests, order),
                    "accuracy": _spread([t["accuracy"] for t in tests]),
                    "majority": f"{100 * tests[0]['majority']:.2f}",
                    **_against_baseline(results, system, head),
                }
    return _frame(rows, "system, head")


def table_subsets(results: Results) -> pd.DataFrame:
    """Multimodal head from every subset of the modalities, systems that accept absent ones:
    accuracy in % (sentiment: minus the mean absolute error, in hundredths)."""
    rows = {}
    for system in systems_of(results):
        runs = [r for r in runs_of(results, system) if r["subsets"]]
        if runs:
            rows[system] = {
                subset: _spread([r["subsets"][subset] for r in runs])
                for subset in runs[0]["subsets"]
            }
    return _frame(rows, "system")


def table_folds(results: Results) -> pd.DataFrame:
    """Multimodal head in each fold of a cross-validation, averaged over seeds, and mean ± deviation
    over the folds: accuracy in % (sentiment: minus the mean absolute error, in hundredths)."""
    rows = {}
    for system in systems_of(results):
        runs = [r["folds"]["scores"] for r in runs_of(results, system) if r.get("folds")]
        if runs:
            mean = np.mean(runs, axis=0)
            by_fold = {f"fold {k}": f"{100 * x:.2f}" for k, x in enumerate(mean, start=1)}
            rows[system] = {"over folds": _spread(mean), **by_fold}
    return _frame(rows, "system")


def table_claims(results: Results) -> pd.DataFrame:
    """The pairs of CLAIMS that ran, at each size: difference of the multimodal head's accuracy with
    its 95 % interval and p, the gap that is claimed, the power that these runs have for it and what
    would give 0.8, and a verdict where they have that."""
    rows = {}
    for part, where in _parts(results):
        for a, b in CLAIMS:
            if {a, b} <= set(systems_of(part)):
                rows[f"{a} > {b}{where}"] = _claim(difference(part, a, b), claimed_gap(a, b))
    return _frame(rows, "claim")


def _parts(results: Results) -> list[tuple[Results, str]]:
    """The results of each size, and how rows say so; those of a benchmark without sizes as they
    are."""
    by_size = [(at_size(results, n), f" at {n:,}") for n in sizes_of(results)]
    return by_size or [(results, "")]


def claimed_gap(a: str, b: str) -> float:
    """Points between two systems in the paper; OUR_GAP where it does not have both."""
    figures = [ACCURACY.get((system, MULTIMODAL)) for system in (a, b)]
    if figures[0] is None or figures[1] is None:
        return OUR_GAP
    return round(figures[0] - figures[1], 2)


def _claim(d: Estimate, gap: float) -> dict[str, str]:
    power = d.power(gap / 100)
    utterances, runs = d.needed(gap / 100)
    return {
        "difference [95 %]": _interval(d),
        "p": p_text(d.p),
        "gap": f"{gap:.2f}",
        "power": "–" if math.isnan(power) else f"{power:.2f}",
        "test utterances for 0.8": f"{utterances:,}",
        "and seeds": "–" if runs is None else f"{runs:,}",
        "verdict": verdict(d, power),
    }


def verdict(d: Estimate, power: float) -> str:
    """`holds` or `fails` where the data could have told the gap from none (a power of 0.8 for
    it)."""
    # NaN, where a single run tells nothing, compares false.
    if not power >= POWER:
        return "cannot be decided"
    return "holds" if d.p < ALPHA and d.mean > 0 else "fails"


def table_sizes(results: Results) -> pd.DataFrame:
    """Multimodal head by number of training utterances, each subset averaged over its seeds: mean ±
    deviation over the subsets of accuracy in % (sentiment: minus the mean absolute error, in
    hundredths)."""
    rows: dict[str, dict[str, str]] = {}
    for n in sizes_of(results):
        part = at_size(results, n)
        for system in systems_of(part):
            by_subset: dict[int, list[float]] = {}
            for r in runs_of(part, system):
                score = metrics_from_dict(r["test"][MULTIMODAL]).score
                by_subset.setdefault(r["subset"], []).append(score)
            means = [float(np.mean(scores)) for scores in by_subset.values()]
            rows.setdefault(system, {})[f"{n:,}"] = _spread(means)
    return _frame(rows, "system")


def size_differences(results: Results) -> dict[str, list[tuple[int, Estimate]]]:
    """Per claim that ran at every size: training utterances and difference, the smallest first."""
    out = {}
    parts = [(n, at_size(results, n)) for n in sizes_of(results)]
    for a, b in CLAIMS if parts else ():
        if all({a, b} <= set(systems_of(part)) for _, part in parts):
            out[f"{a} > {b}"] = [(n, difference(part, a, b)) for n, part in parts]
    return out


def mean_cka(results: Results) -> dict[str, float]:
    """Per system with uni-modal heads: linear CKA averaged over pairs and seeds."""
    return {
        s: float(np.mean([list(r["cka"].values()) for r in runs_of(results, s)]))
        for s in systems_of(results)
        if all(r["cka"] for r in runs_of(results, s))
    }


def modality_deviation(results: Results, system: str) -> npt.NDArray[np.float64] | None:
    """[emotions in report order] standard deviation of F1 over the modalities with a head and
    labels, averaged over seeds (NaN where one has no label of the emotion); None where there are
    not two."""
    runs = runs_of(results, system)
    heads = [m for m in MODALITIES if all(m in r["test"] for r in runs)]
    if len(heads) < 2:
        return None

    order = label_spec_of(results).report_order
    f1 = [[labelled_f1(r["test"][m]) for m in heads] for r in runs]
    found = np.array([[[of[e] for of in by_head] for e in order] for by_head in f1])
    return np.asarray(found.std(axis=2).mean(axis=0))
