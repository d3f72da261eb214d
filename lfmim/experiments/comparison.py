"""Results of many runs -> statistics and the paper's tables. distributed/benchmark.py writes a
result per run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from lfmim.config import experiment_from_dict
from lfmim.experiments.systems import BASELINES
from lfmim.metrics import labelled_f1
from lfmim.schema import (
    HEADS,
    IGNORE_LABEL,
    MODALITIES,
    MULTIMODAL,
    LabelSpec,
    default_labels,
)
from lfmim.training.loop import learning_rate, warmup_factor

Results = Sequence[Mapping[str, Any]]
REFERENCE = "lfmim"
CLAIMS = (
    ("lfmim", "pmr"),
    ("pmr", "mult"),
    ("lfmim", "lfmim-ml"),
    ("strong", "paper"),
    ("strong", "lfmim"),
)
"""Pairs of which the first is said to be better: the paper's Tables 2 and 4, and ours of the preset
`strong`."""
COST = ("parameters", "MFLOPs/sample", "steps", "Σ lr", "seeds")
"""Columns of `table_2` and `table_3` on what a system costs."""
RESAMPLES = 4999
"""With the observed difference 5,000, so p-values come in steps of 0.0002."""


def linear_cka(x: npt.NDArray[np.floating[Any]], y: npt.NDArray[np.floating[Any]]) -> float:
    """Linear centred kernel alignment of two representations [N, D1], [N, D2] (Kornblith et al.
    2019): 0 to 1."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    # By [D, D] products, which give the same number as Gram matrices of [N, N] and fit any split.
    norm = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(x.T @ y) ** 2 / norm) if norm else 0.0


@dataclasses.dataclass(frozen=True)
class Difference:
    """Mean test score of one system minus another's, its 95 % interval and two-sided p-value of no
    difference."""

    mean: float
    low: float
    high: float
    p: float


def difference(results: Results, a: str, b: str, head: str = MULTIMODAL) -> Difference:
    """Score of system `a` minus that of `b` (accuracy; for sentiment minus the absolute error): a
    two-level bootstrap.

    The figure depends on which utterances happened to be in the test split and which seeds happened
    to be drawn, so both are resampled. A test over utterances alone would take these trained
    weights for the systems.
    """
    gains = [_gains(results, s, head) for s in (a, b)]
    observed = float(gains[0].mean() - gains[1].mean())
    # Seeds are drawn for each side on its own, so even a system against itself would get an
    # interval of some width.
    if a == b or (gains[0].shape == gains[1].shape and bool((gains[0] == gains[1]).all())):
        return Difference(observed, observed, observed, 1.0)

    # Of a fixed seed: a report made again from the same runs says the same.
    rng, n = np.random.default_rng(0), gains[0].shape[1]
    drawn = []
    # 500 at a time: for CHERMA's 5,743 test utterances all of them would be 230 MB an array.
    for start in range(0, RESAMPLES, 500):
        size = min(500, RESAMPLES - start)
        # Drawing with replacement is drawing how often each is taken. Nothing pairs seed k of one
        # model with seed k of another, so each system draws its own.
        over_seeds = [
            rng.multinomial(len(g), np.full(len(g), 1 / len(g)), size=size) @ g / len(g)
            for g in gains
        ]
        # Utterances in pairs: both systems answer the same ones, the hard and the easy.
        weight = rng.multinomial(n, np.full(n, 1 / n), size=size) / n
        drawn.append(((over_seeds[0] - over_seeds[1]) * weight).sum(axis=1))

    sample = np.concatenate(drawn)
    low, high = np.quantile(sample, [0.025, 0.975])
    # The sample lies around what was observed; as far from there is what chance does around 0. The
    # observed difference counts as a draw, or p could be 0.
    more_extreme = np.count_nonzero(np.abs(sample - observed) >= abs(observed))
    return Difference(observed, float(low), float(high), (1 + more_extreme) / (1 + RESAMPLES))


def _gains(results: Results, system: str, head: str) -> npt.NDArray[np.float64]:
    """[seeds, labelled test utterances]: 1 where right; for sentiment minus the absolute error."""
    runs, index = runs_of(results, system), HEADS.index(head)
    # The first run's will do: every run reads the same test split in the order of its ids.
    label = np.asarray(runs[0]["labels"][index])
    predicted = np.array([r["predictions"][head] for r in runs])
    # CH-SIMS' figures are of scores clipped to [-1, 1]; so is this one, or it would test another.
    gain = (
        -np.abs(np.clip(predicted, -1, 1) - label) if is_sentiment(results) else predicted == label
    )
    return np.asarray(gain, dtype=np.float64)[:, label != IGNORE_LABEL]


def systems_of(results: Results) -> list[str]:
    """Names in the order of their first run."""
    return list(dict.fromkeys(r["system"] for r in results))


def runs_of(results: Results, system: str) -> list[Mapping[str, Any]]:
    return [r for r in results if r["system"] == system]


def label_spec_of(results: Results) -> LabelSpec:
    """The LabelSpec of the store that all runs share; CHERMA's where results are of before it."""
    raw = results[0].get("label_spec")
    return LabelSpec.from_dict(raw, source="result.json") if raw else default_labels()


def is_sentiment(results: Results) -> bool:
    """Whether the runs predict sentiment scores rather than emotions."""
    return "mae" in next(iter(results[0]["test"].values()))


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
    return pd.DataFrame(list(rows.values()), index=pd.Index(list(rows), name=name))


def p_text(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def _against_reference(results: Results) -> dict[str, dict[str, str]]:
    """Per system its difference to LFMIM and the p-value, corrected for the number of systems
    (Holm)."""
    # Its import, with scipy, takes seconds: only who compares waits for it.
    from statsmodels.stats.multitest import multipletests

    systems = systems_of(results)
    out = {s: {"vs LFMIM": "", "p (Holm)": ""} for s in systems}
    others = [s for s in systems if s != REFERENCE]
    # Without LFMIM among the systems there is nothing to compare with, and the columns stay empty.
    if others and len(others) < len(systems):
        tests = [difference(results, s, REFERENCE) for s in others]
        corrected = multipletests([t.p for t in tests], method="holm")[1]
        for system, test, p in zip(others, tests, corrected, strict=True):
            out[system] = {"vs LFMIM": _interval(test), "p (Holm)": p_text(float(p))}
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


def _interval(d: Difference) -> str:
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
    """The pairs of CLAIMS that ran: difference of the multimodal head with its 95 % interval, p,
    and what it says."""
    rows = {}
    for a, b in CLAIMS:
        if {a, b} <= set(systems_of(results)):
            d = difference(results, a, b)
            # Not "refuted": a claim that these runs are too few to resolve may hold all the same.
            direction = "holds" if d.mean > 0 else "the opposite holds"
            verdict = "not resolved" if d.p >= 0.05 else direction
            rows[f"{a} > {b}"] = {
                "difference [95 %]": _interval(d),
                "p": p_text(d.p),
                "verdict": verdict,
            }
    return _frame(rows, "claim")


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
