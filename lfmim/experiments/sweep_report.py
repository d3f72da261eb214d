"""Figures, tables and page of a hyperparameter sweep (Optuna's plots)."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from lfmim.evaluation.figures import learning_curves, new_figure
from lfmim.evaluation.page import frame_table, page, paragraph, section, table, wide_image
from lfmim.experiments.search import Space, TrialRecord, study_of
from lfmim.training.checkpoint import CheckpointMeta

TITLES = {
    "best_so_far": "Best validation score so far",
    "importance": "What the score depends on",
    "parallel_coordinates": "Searched values and scores",
}
"""Of the figures."""


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


def sweep_page(
    title: str,
    figures: Mapping[str, Figure],
    records: Sequence[TrialRecord],
    winner: TrialRecord,
    retrained: CheckpointMeta,
    seed_scores: Sequence[float],
) -> str:
    """The sweep as a self-contained page: the winner and its training (`retrained`), `figures` of
    `sweep_figures`, every trial."""
    given = records[0]
    rows = [
        ("validation score", _text(given.score), _text(winner.score)),
        ("epochs", len(given.history), len(winner.history)),
        *((field, _text(given.params[field]), _text(v)) for field, v in winner.params.items()),
    ]
    spread = f" ± {statistics.stdev(seed_scores):.4f}" if len(seed_scores) > 1 else ""
    lead = (
        f"{len(records)} trials. The winner is trial {winner.number}; retrained with "
        f"{len(seed_scores)} seeds it scores {statistics.fmean(seed_scores):.4f}{spread} on "
        "validation, by which it was chosen: the score on new data will be lower."
    )
    chosen = f"the epoch {retrained.best_epoch + 1} of {len(retrained.history)}"
    curves = learning_curves(retrained.history, retrained.best_epoch)
    header = ("", "as given (trial 0)", f"winner (trial {winner.number})")
    sections = [
        section("Winner", table("Winner", header, rows)),
        section(
            "Training of the winner",
            paragraph(f"Every epoch; the vertical line marks the chosen one, {chosen}."),
            wide_image(curves, f"Training curves of every head; chosen is {chosen}"),
        ),
        *(section(TITLES[name], wide_image(f, TITLES[name])) for name, f in figures.items()),
        section("Trials", frame_table("Trials", _trials(records))),
    ]
    return page(title, sections, lead=[lead])


def _trials(records: Sequence[TrialRecord]) -> pd.DataFrame:
    """`sweep_table` by trial number, figures as text."""
    frame = sweep_table(records).set_index("trial")
    for column in frame.columns.difference(["state", "epochs", "message"]):
        frame[column] = [_text(v) for v in frame[column]]
    return frame


def _text(value: object) -> str:
    """A searched value or a figure; a dash where there is none."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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

    axis.set(xlabel="trial (0: the config as given)", ylabel="validation score")
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
            figure = plot_parallel_coordinate(study, target_name="validation score").figure
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
