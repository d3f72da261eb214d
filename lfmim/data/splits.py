"""6:2:2 splits of a manifest: shuffled (the paper's), stratified by label, or with no speaker in
two of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lfmim.data.manifest import cell
from lfmim.schema import LABEL_COLUMNS, MULTIMODAL, SPEAKER, SPLITS, InputError

METHODS = ("shuffled", "stratified", "speaker")
FOLDS = 5
"""Three fifths to train on, one to choose on, one to test on."""


def split_rows(
    frame: pd.DataFrame, method: str, *, seed: int = 0, group: str = SPEAKER
) -> list[str]:
    """train, valid or test per row of a manifest, in its order; the same rows and seed give the
    same splits.

    `stratified` keeps the shares of the multimodal label; `speaker` keeps all rows of a value of
    column `group` together and the shares as well as that allows, so its sizes only come near to
    6:2:2. Raises InputError if a split would be empty or a row has no group.
    """
    if method not in METHODS:
        raise InputError(f"split method {method!r} is not one of {', '.join(METHODS)}")
    n = len(frame)
    if n < FOLDS:
        raise InputError(f"{n} rows are too few to split 6:2:2; {FOLDS} are the least")

    if method == "shuffled":
        fold = np.empty(n, dtype=np.int64)
        fold[np.random.default_rng(seed).permutation(n)] = np.arange(n) * FOLDS // n
    else:
        label = LABEL_COLUMNS[MULTIMODAL]
        # An unlabelled row is a class of its own. Integers, because scikit-learn refuses to sort
        # mixed objects.
        labels = frame[label].map(cell) if label in frame else pd.Series([""] * n)
        classes = pd.factorize(labels, sort=True)[0]

        groups = _groups(frame, group) if method == "speaker" else None
        # scikit-learn warns of one rare label, and raises with words of its own when all are rare.
        if method == "stratified" and np.bincount(classes).max() < FOLDS:
            raise InputError(
                f"every multimodal label is rarer than {FOLDS}: too few rows to stratify; use "
                "'shuffled'"
            )

        kind = StratifiedKFold if groups is None else StratifiedGroupKFold
        folds = kind(FOLDS, shuffle=True, random_state=seed).split(np.zeros(n), classes, groups)
        fold = np.empty(n, dtype=np.int64)
        for k, (_, members) in enumerate(folds):
            fold[members] = k

    split = np.where(fold == 0, SPLITS[2], np.where(fold == 1, SPLITS[1], SPLITS[0]))
    for name in SPLITS:
        if not (split == name).any():
            raise InputError(f"split '{name}' would be empty; try another seed")
    return [str(s) for s in split]


def _groups(frame: pd.DataFrame, column: str) -> np.ndarray:
    if column not in frame:
        raise InputError(f"column '{column}' is missing, so rows cannot be kept apart by it")

    # Rows without a value are not one group: they may well be of speakers in other splits.
    values = frame[column].map(cell)
    if (values == "").any():
        raise InputError(
            f"row {int((values == '').to_numpy().argmax()) + 1}, field '{column}': empty; a split "
            f"by {column} needs it in every row"
        )

    if values.nunique() < FOLDS:
        raise InputError(
            f"column '{column}' has {values.nunique()} values; {FOLDS} are the least to split "
            "6:2:2 by it"
        )
    return values.to_numpy()
