"""Is the challenger better than the champion? Both on the same utterances, with a paired test."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from lfmim.data.batches import encode_labels
from lfmim.data.store import read_table, sequences
from lfmim.predictor import Predictor
from lfmim.schema import FEATURE_COLUMNS, HEADS, IGNORE_LABEL, LABEL_COLUMNS, MODALITIES, FeatureSpec, InputError


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One head of two models on the same labelled utterances."""

    head: str
    count: int
    champion: float
    """Accuracy."""
    challenger: float
    champion_only: int
    """Utterances that the champion alone gets right."""
    challenger_only: int
    p_value: float
    """Two-sided exact McNemar test of equal accuracy."""

    def verdict(self, alpha: float) -> tuple[bool, str]:
        """Whether the challenger is significantly better at level `alpha`, and the sentence that says so."""
        figures = (f"accuracy of the {self.head} head {self.challenger:.4f} against {self.champion:.4f} on "
                   f"{self.count} utterances; {self.challenger_only} are right with the challenger alone, "
                   f"{self.champion_only} with the champion alone, p = {self.p_value:.4f}")
        if self.challenger_only <= self.champion_only:
            return False, f"it is not better: {figures}"
        if self.p_value >= alpha:
            return False, f"the gain may be chance (p is not below {alpha:g}): {figures}"
        return True, f"significant gain: {figures}"


def compare(champion: Predictor, challenger: Predictor, store: Path, *, split: str, head: str) -> Comparison:
    """Both models' `head` against its own label. An utterance without an answer counts as wrong.

    Raises InputError where the store's features are not those of both models, or without such labels.
    """
    for predictor in (champion, challenger):
        predictor.check_spec(FeatureSpec.load(store), have=f"the store {store}")
    table = read_table(store, [*FEATURE_COLUMNS.values(), *LABEL_COLUMNS.values()], split)
    labels = encode_labels(table).numpy()[:, HEADS.index(head)]
    known = labels != IGNORE_LABEL
    if not known.any():
        raise InputError(f"{store}: split '{split}' has no label of head '{head}' to compare by")
    features = {m: sequences(table, m) for m in MODALITIES}
    right = []
    for predictor in (champion, challenger):
        p = predictor.predict(features)[head][known]
        answered = ~np.isnan(p).any(axis=1)
        right.append(answered & (np.where(answered[:, None], p, 0.0).argmax(axis=1) == labels[known]))
    a, b = right
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    # McNemar's exact test: of the utterances where they differ, each model has half under equal accuracy.
    p_value = float(binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Comparison(head, int(known.sum()), float(a.mean()), float(b.mean()), only_a, only_b, p_value)
