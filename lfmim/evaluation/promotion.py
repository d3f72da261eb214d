"""Is the challenger better than the champion? Both on the same utterances, with a paired test."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lfmim.data.loading import split_labels
from lfmim.data.store import read_table, sequences
from lfmim.predictor import Predictor
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    SENTIMENT_COLUMNS,
    InputError,
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One head of two models on the same labelled utterances."""

    task: str
    head: str
    count: int
    champion: float
    """Accuracy, for sentiment mean absolute error."""
    challenger: float
    champion_only: int
    """Utterances that the champion alone gets right; for sentiment, where it is closer."""
    challenger_only: int
    p_value: float
    """Two-sided exact McNemar test of equal accuracy; for sentiment the sign test of equal
    error."""

    def verdict(self, alpha: float) -> tuple[bool, str]:
        """Whether the challenger is significantly better at level `alpha`, and the sentence that
        says so."""
        sentiment = self.task == "sentiment"
        figure, what = ("mean absolute error", "closer") if sentiment else ("accuracy", "right")
        figures = (
            f"{figure} of the {self.head} head {self.challenger:.4f} against {self.champion:.4f} "
            f"on {self.count} utterances; {self.challenger_only} are {what} with the challenger "
            f"alone, {self.champion_only} with the champion alone, p = {self.p_value:.4f}"
        )

        gain = (self.challenger - self.champion) * (-1 if sentiment else 1)
        # Both, since of sentiment they may point apart: the mean error may fall by a few large
        # gains while most utterances are farther off, and the test counts utterances.
        if gain <= 0 or self.challenger_only <= self.champion_only:
            return False, f"it is not better: {figures}"
        if self.p_value >= alpha:
            return False, f"the gain may be chance (p is not below {alpha:g}): {figures}"
        return True, f"significant gain: {figures}"


def compare(
    champion: Predictor, challenger: Predictor, store: Path, *, split: str, head: str
) -> Comparison:
    """Both models' `head` against its own label. An utterance without an answer counts as wrong,
    for sentiment as wrong as can be.

    Raises InputError for models of different tasks or without such a head, and where the store's
    features and classes are not those of both models or such labels are missing.
    """
    models = {"champion": champion, "challenger": challenger}
    task, other = (p.meta.config.model.task for p in models.values())
    if task != other:
        raise InputError(
            f"the champion is of the {task} task, the challenger of the {other} task, so they "
            "cannot be compared; register models of different tasks under different names "
            "(--registered_model)"
        )

    # Both before either predicts: a refusal should not come after minutes of work.
    for name, predictor in models.items():
        predictor.check_store(store)
        if head not in predictor.model.answers:
            raise InputError(
                f"--head {head}: the {name} has no such head; it has "
                f"{', '.join(predictor.model.answers)}"
            )

    # Either model's will do: both specs equal the store's.
    dims = champion.meta.spec.dims
    label_columns = SENTIMENT_COLUMNS if task == "sentiment" else LABEL_COLUMNS
    table = read_table(store, [*(FEATURE_COLUMNS[m] for m in dims), *label_columns.values()], split)
    labels = split_labels(table, store, split, task).numpy()[:, HEADS.index(head)]
    known = np.asarray(labels != IGNORE_LABEL)
    if not known.any():
        raise InputError(
            f"{store}: split '{split}' has no {task} label of head '{head}' to compare by"
        )

    features = {m: sequences(table, m) for m in dims}
    wrong = [_wrong(p.predict(features)[head][known], labels[known]) for p in models.values()]
    only_a, only_b = int((wrong[0] < wrong[1]).sum()), int((wrong[1] < wrong[0]).sum())
    from scipy.stats import binomtest

    # McNemar's exact test is the sign test: of the utterances where they differ, each model has
    # half if they are equal. The exact one, as models of one corpus may differ in a dozen, where
    # the chi-squared approximation is no good.
    p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    mean_a, mean_b = (
        float(w.mean()) if task == "sentiment" else float(1 - w.mean()) for w in wrong
    )
    return Comparison(task, head, int(known.sum()), mean_a, mean_b, only_a, only_b, p_value)


def _wrong(predicted: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """[N]: 1 where the emotion is wrong, or the sentiment score's absolute error; [N, outputs] may
    hold NaN rows."""
    answered = np.asarray(~np.isnan(predicted).any(axis=1))
    filled = np.where(answered[:, None], predicted, 0.0)
    if predicted.shape[1] == 1:
        # 2 is the largest error there is between scores in [-1, 1].
        return np.where(answered, np.abs(filled[:, 0] - labels), 2.0)
    # The argmax of such a row is 0, which is a class: it must not be right by accident.
    return np.where(answered & (filled.argmax(axis=1) == labels), 0.0, 1.0)
