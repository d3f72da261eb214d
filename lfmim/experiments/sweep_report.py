"""Figures and tables of a hyperparameter sweep (Optuna's plots)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from lfmim.evaluation.figures import new_figure
from lfmim.experiments.search import Space, TrialRecord, study_of


def sweep_table(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """One row per trial, best first: number, state, score, loss, epochs, seconds, the searched
    values, message."""
    rows = [
        {
            "trial": r.number,
            "state": r.state,
            "score": r.score,
            "loss": r.loss,
            "epochs": len(r.history),
            "seconds": round(r.seconds, 1),
            **r.params,
            "message": r.message,
        }
        for r in records
    ]
    # The order of `best_trial`, so that the winner stands first among the finished ones.
    return pd.DataFrame(rows).sort_values(
        ["score", "loss", "trial"], ascending=[False, True, True], ignore_index=True
    )


def importances(space: Space, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Share of the score's variance that each field explains (fANOVA, Hutter et al. 2014); {} where
    nothing varies.

    Trials run to their end alone are compared; few of them say little.
    """
    study = study_of(space, records)
    done = [t for t in study.trials if t.state is TrialState.COMPLETE]
    # Of equal scores there is no variance to divide up.
    if len(done) < 3 or len({t.value for t in done}) < 2:
        return {}

    # A random forest is fitted for it: unseeded, the figure would change from report to report.
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def sweep_figures(space: Space, records: Sequence[TrialRecord]) -> dict[str, Figure]:
    """`best_so_far`, `parallel_coordinates` and, where it can be told, `importance`."""
    figures = {"best_so_far": _best_so_far(records)}
    share = importances(space, records)
    if share:
        figures["importance"] = _importance(share)

    study = study_of(space, records)
    # Optuna's plot of no finished trial is an empty frame and a warning.
    if any(t.state is TrialState.COMPLETE for t in study.trials):
        figures["parallel_coordinates"] = _parallel_coordinates(study)
    return figures


def _best_so_far(records: Sequence[TrialRecord]) -> Figure:
    figure = new_figure(8, 4)
    axis = figure.subplots()
    scored = sorted((r for r in records if r.score is not None), key=lambda r: r.number)
    scores = np.array([r.score for r in scored], dtype=float)
    numbers = np.array([r.number for r in scored], dtype=int)
    for state, mark in (("finished", "o"), ("stopped", "x"), ("diverged", "v"), ("failed", "^")):
        some = np.array([r.state == state for r in scored])
        if some.any():
            axis.plot(numbers[some], scores[some], mark, label=state)

    # Finished trials alone can win, so the others must not lift the line; accuracies are never
    # below 0, so -1 marks where there is no best yet.
    best = np.maximum.accumulate(np.where([r.state == "finished" for r in scored], scores, -1.0))
    reached = best >= 0
    axis.step(numbers[reached], best[reached], where="post", label="best so far")

    axis.set(xlabel="trial (0: the config as given)", ylabel="best validation accuracy")
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def _parallel_coordinates(study: Study) -> Figure:
    import matplotlib.pyplot as plt
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    # Optuna draws with pyplot and sets a style of its own for good: in a notebook, or in the next
    # report of this process, every figure would be grey. Both are put back.
    backend = plt.get_backend()
    plt.switch_backend("agg")
    try:
        with plt.style.context("default"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            figure = plot_parallel_coordinate(study, target_name="validation accuracy").figure
            assert isinstance(figure, Figure)
            # An axis per field: at a fixed width many fields' names would overlap.
            figure.set_size_inches(1.8 * len(figure.axes) + 3, 5)
            figure.tight_layout()
            plt.close(figure)
            return figure
    finally:
        plt.switch_backend(backend)


def _importance(share: dict[str, float]) -> Figure:
    figure = new_figure(7, 0.5 * len(share) + 1.2)
    axis = figure.subplots()
    # barh draws from the bottom up; the most important field is to stand on top.
    names = list(reversed(share))
    bars = axis.barh(names, [share[n] for n in names])
    axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set(xlabel="share of the score's variance (fANOVA, trials run to the end)", xlim=(0, 1.1))
    return figure
