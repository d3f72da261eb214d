"""6:2:2 splits of a manifest: shuffled (the paper's), stratified by label, or with no speaker in
two of them; folds of a manifest or a store, for cross-validation; subsets of a training split."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.compute as pc

from lfmim.data.manifest import cell
from lfmim.data.store import read_table, store_state
from lfmim.schema import ID, LABEL_COLUMNS, MULTIMODAL, SPEAKER, SPLITS, VIDEO, InputError

METHODS = ("shuffled", "stratified", "speaker")
FOLDS = 5
"""Three fifths to train on, one to choose on, one to test on."""
LEAST_FOLDS = 3
"""One part tests, one validates, one trains."""
FOLD = "fold"
"""Column of a manifest or a store: the part, 1 to K, that a row is tested in."""


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

        # Here: every job imports this module, and scikit-learn takes seconds.
        from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

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


@dataclasses.dataclass(frozen=True)
class Fold:
    """One of `count` folds: rows of the part `number` (from 1) test, those of the next part (after
    the last the first) validate, the others train."""

    number: int
    count: int

    def split_of(self, part: int) -> str:
        """train, valid or test for a row of `part` (from 1)."""
        train, valid, test = SPLITS
        if part == self.number:
            return test
        return valid if part == self.number % self.count + 1 else train


@dataclasses.dataclass(frozen=True)
class StoreFolds:
    """Which part each utterance of a store is in."""

    parts: dict[str, int]
    """Id -> part, from 1, in id order."""
    how: str
    """How the parts were made, for reports."""

    def ids(self, fold: Fold, split: str) -> list[str]:
        """Utterances of a split of the fold, in id order."""
        return [name for name, part in self.parts.items() if fold.split_of(part) == split]


@dataclasses.dataclass(frozen=True)
class Subset:
    """The first `size` training utterances in the order drawn by the seed `number`: a larger subset
    of the same number holds the smaller one.

    Single utterances, not whole speakers, so that sizes are exact and the smallest subset still
    has most speakers; those of the validation and test splits stay apart from them as they are.
    """

    size: int
    number: int

    def rows(self, count: int) -> npt.NDArray[np.int64]:
        """Which of a split's `count` rows, in the split's order. Raises InputError if there are
        fewer than `size`."""
        if self.size > count:
            raise InputError(
                f"sizes: {self.size} training utterances are asked for, and {count} are there"
            )
        drawn = np.random.default_rng(self.number).permutation(count)[: self.size]
        return np.sort(drawn).astype(np.int64)


LEAST_GROUPS = 5
"""Fewer speakers than so many tell nothing about others."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Which utterances of a split stand or fall together: by a speaker, a clip, or each alone."""

    names: list[str]
    """Per utterance, in id order."""
    unit: str
    """speaker, clip or utterance."""


def groups_of(store: Path, ids: Sequence[str]) -> Groups:
    """The groups of the utterances `ids`: their speakers where all are known and there are
    LEAST_GROUPS of them, else their clips where some share one, else themselves."""
    table = read_table(store, [SPEAKER, VIDEO], where=pc.field(ID).isin(list(ids)))
    frame = table.to_pandas().set_index(ID).reindex(list(ids))
    for column, unit in ((SPEAKER, "speaker"), (VIDEO, "clip")):
        names = frame[column].map(cell).tolist() if column in frame else [""]
        if "" not in names and LEAST_GROUPS <= len(set(names)) < len(names):
            return Groups(names, unit)
    return Groups(list(ids), "utterance")


def fold_parts(
    frame: pd.DataFrame, folds: int, *, group: str = SPEAKER, seed: int = 0
) -> npt.NDArray[np.int64]:
    """[N] the part, 1 to `folds`, of each row of a manifest, no group in two of them.

    The parts keep the shares of the multimodal label as well as whole groups allow; with as many
    folds as groups each group is a part, in name order. Raises InputError for fewer than 3 folds,
    or fewer groups than folds.
    """
    if folds < LEAST_FOLDS:
        raise InputError(
            f"--folds {folds}: {LEAST_FOLDS} are the least: one part tests, one validates"
        )
    groups = frame[group].map(cell) if group in frame else pd.Series([""] * len(frame))
    if (groups == "").any() or groups.nunique() < folds:
        raise InputError(
            f"--folds {folds}: {groups[groups != ''].nunique()} values of '{group}' are there; "
            "every row needs one, and every fold one of its own"
        )

    part: npt.NDArray[np.int64] = pd.factorize(groups, sort=True)[0].astype(np.int64)
    if groups.nunique() > folds:
        label = LABEL_COLUMNS[MULTIMODAL]
        labels = frame[label].map(cell) if label in frame else pd.Series([""] * len(frame))
        classes = pd.factorize(labels, sort=True)[0]
        # Of labels that are all rarer than the folds scikit-learn makes none: then by size alone.
        if np.bincount(classes).max() < folds:
            classes = np.zeros_like(classes)
        from sklearn.model_selection import StratifiedGroupKFold

        kind = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # Of a rare class, in each worker again; that some parts lack it is seen in the counts.
            warnings.simplefilter("ignore", UserWarning)
            for k, (_, members) in enumerate(kind.split(np.zeros(len(frame)), classes, groups)):
                part[members] = k

    if len(np.unique(part)) < folds:
        raise InputError(
            f"--folds {folds}: with whole values of '{group}' a fold stays empty; ask for fewer"
        )
    return part + 1


def store_folds(store: Path, count: int) -> StoreFolds:
    """The store's column `fold`; without one, `count` parts of whole speakers, the same each time.

    Raises InputError if the column does not hold exactly 1 to `count`, or if there is neither the
    column nor a speaker in every row.
    """
    return _store_folds(store, count, store_state(store))


# Each split that is loaded asks again; the parts' state is in the key, since a store may grow.
@functools.lru_cache(maxsize=1)
def _store_folds(store: Path, count: int, state: object) -> StoreFolds:
    columns = [FOLD, SPEAKER, LABEL_COLUMNS[MULTIMODAL]]
    frame = read_table(store, columns).to_pandas()
    speakers = frame[SPEAKER].map(cell) if SPEAKER in frame else pd.Series([""] * len(frame))

    if FOLD in frame:
        given = frame[FOLD].map(cell)
        if set(given) != {str(k) for k in range(1, count + 1)}:
            there = [f"{n} rows '{v}'" for v, n in given.value_counts().sort_index().items()]
            raise InputError(
                f"{store}, column '{FOLD}': {', '.join(there)}; --folds {count} needs each of 1 to "
                f"{count} there and nothing else: import the corpus with --folds {count} and "
                "extract it again, or ask for the folds that are there"
            )
        part = given.astype(int).to_numpy()
        how = f"The {count} folds are the store's column '{FOLD}'"
    else:
        try:
            part = fold_parts(frame.assign(**{SPEAKER: speakers}), count)
        except InputError as error:
            raise InputError(
                f"{store}, no column '{FOLD}' and so folds by speaker: {error}; or import the "
                f"corpus with --folds {count}, which writes the column, and extract it again"
            ) from error
        how = (
            f"The {count} folds were made of {speakers.nunique()} whole speakers, keeping the "
            "shares of the multimodal label (scikit-learn's StratifiedGroupKFold, seed 0)"
        )

    return StoreFolds(
        dict(zip(frame[ID], part.tolist(), strict=True)), f"{how}; {_apart(speakers, part)}."
    )


def _apart(speakers: pd.Series, part: npt.NDArray[np.int64]) -> str:
    """Whether the parts tell what a model does with new speakers."""
    known = speakers != ""
    if not known.all():
        return f"{(~known).sum()} utterances have no speaker, who may be in several folds"
    several = int((pd.Series(part).groupby(speakers.to_numpy()).nunique() > 1).sum())
    if several:
        return f"{several} of {speakers.nunique()} speakers are in several folds"
    return "no speaker is in two folds"
