"""Is one system better than another? The difference of their test scores, how sure it is, and what
data would decide it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lfmim.experiments.results import Results, is_sentiment, runs_of
from lfmim.experiments.systems import BASELINES
from lfmim.metrics import EDGES
from lfmim.schema import HEADS, IGNORE_LABEL, MULTIMODAL

RESAMPLES = 1999
"""Of them a standard error is known to 2 %; no p-value is counted from them."""
ALPHA, POWER = 0.05, 0.8
Numbers = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean test score, or the difference of two, its 95 % interval and the two-sided p-value of a
    true value of 0."""

    mean: float
    low: float
    high: float
    p: float
    error: float
    """Standard error of `mean`."""
    freedom: float
    """Degrees of freedom of `error`."""
    from_test: float
    """Share of the squared error that more test utterances would lessen; more runs the rest."""
    utterances: int
    """Labelled test utterances."""
    runs: int
    """Seeds of each system, or subsets of the training split."""

    def __neg__(self) -> Estimate:
        # Not -x: of 0.0 that is -0.0, and printed so.
        return dataclasses.replace(
            self, mean=0.0 - self.mean, low=0.0 - self.high, high=0.0 - self.low
        )

    def power(self, gap: float) -> float:
        """Probability that data like these tell a true difference of `gap` from none, in its
        direction; NaN with a single run, whose luck is not known."""
        from statsmodels.stats.power import TTestPower

        if self.runs < 2:
            return math.nan
        if not self.error:
            return 1.0
        # Of a mean of `n` values; the error here is the mean's own. Beyond 30 of them the power is
        # 1 to every digit, and scipy's non-central t gives NaN somewhere.
        n, errors = self.freedom + 1, min(gap / self.error, 30.0)
        effect = errors / math.sqrt(n)
        return float(TTestPower().power(effect, n, ALPHA / 2, alternative="larger"))

    def needed(self, gap: float) -> tuple[int, int | None]:
        """Test utterances (of as many a speaker or clip as now), and runs, with which a power of
        0.8 for `gap` is reached, half of the squared error left to each; None for the runs where
        a single one does not tell how they differ."""
        from statsmodels.stats.power import TTestPower

        times = 0.0
        if self.error:
            n = self.freedom + 1
            # By how many errors a true difference must differ from 0.
            effect = float(
                TTestPower().solve_power(nobs=n, alpha=ALPHA / 2, power=POWER, alternative="larger")
            )
            times = 2 * (effect * math.sqrt(n) * self.error / gap) ** 2
        runs = math.ceil(self.runs * (1 - self.from_test) * times)
        utterances = math.ceil(self.utterances * self.from_test * times)
        return max(1, utterances), None if self.runs < 2 else max(2, runs)


def difference(results: Results, a: str, b: str, head: str = MULTIMODAL) -> Estimate:
    """Score of system `a` minus that of `b` (accuracy; for sentiment minus the absolute error).

    The figure depends on which utterances happened to be in the test split and which seeds, or
    subsets of the training split, happened to be drawn, so both are resampled: test utterances in
    pairs and by whole speakers or clips where those are known, subsets in pairs, seeds of each
    system on its own. Of n groups (or runs) n - 1 are drawn, or so few of them would seem to vary
    too little (Rao and Wu 1988). Interval and p-value are of Student's t with the degrees of
    freedom of Satterthwaite (1946): five runs know little of their own spread.
    """
    # One pair, one answer, whichever is named first.
    if a > b:
        return -difference(results, b, a, head)

    sides, sizes = _sides(results, a, b, head), _group_sizes(results, head)
    runs = _runs(a, b, sides)
    # The same answers: seeds are drawn for each side, which would give even those some width.
    if not _differ(sides):
        n = int(sizes.sum())
        return Estimate(0.0, 0.0, 0.0, 1.0, 0.0, math.inf, 1.0, n, runs)
    return _estimate(sides, sizes, runs)


def score(results: Results, system: str, head: str, classes: int = 0) -> Estimate:
    """Test accuracy of a system's head, of sentiment over 2, 3 or 5 `classes`, by the method of
    `difference`."""
    sides = [_stack(_gains(results, system, head, classes))]
    return _estimate(sides, _group_sizes(results, head), len(sides[0]))


def _estimate(sides: list[Numbers], sizes: Numbers, runs: int) -> Estimate:
    """Of the sum of the `sides`' means, each [runs, groups] of sums over a group's utterances, per
    utterance; `sizes` [groups]."""
    from scipy.stats import t

    groups, n = len(sizes), int(sizes.sum())
    totals = np.sum([side.mean(axis=0) for side in sides], axis=0)
    mean = float(totals.sum() / n)

    error = _error(sides, sizes)
    # The same two parts by formula, whose shares and degrees of freedom the sample does not tell.
    of_test = float(((totals - mean * sizes) ** 2).sum()) * groups / max(groups - 1, 1) / n**2
    spread = [side.sum(axis=1) / n for side in sides if len(side) > 1]
    of_runs = [float(x.var(ddof=1)) / len(x) for x in spread]
    both = of_test + sum(of_runs)
    spent = of_test**2 / max(groups - 1, 1)
    spent += sum(v**2 / (len(x) - 1) for v, x in zip(of_runs, spread, strict=True))
    freedom = both**2 / spent if spent else math.inf

    wide = float(t.ppf(1 - ALPHA / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    share = of_test / both if both else 1.0
    return Estimate(mean, mean - wide, mean + wide, p, error, freedom, share, n, runs)


def _error(sides: list[Numbers], sizes: Numbers) -> float:
    """Standard error of the sum of the `sides`' means, by the bootstrap."""
    # Of a fixed seed: a report made again from the same runs says the same.
    rng, drawn = np.random.default_rng(0), []
    # 500 at a time: for CHERMA's 5,743 test utterances all of them would be 230 MB an array.
    for start in range(0, RESAMPLES, 500):
        count = min(500, RESAMPLES - start)
        # Drawing with replacement is drawing how often each is taken.
        weight = _times_taken(rng, len(sizes), count)
        drawn_runs = [_times_taken(rng, len(side), count) @ side for side in sides]
        over_runs = np.sum(drawn_runs, axis=0)
        drawn.append((over_runs * weight).sum(axis=1) / (weight @ sizes))
    return float(np.concatenate(drawn).std(ddof=1))


def _times_taken(rng: np.random.Generator, n: int, count: int) -> Numbers:
    """[count, n] weights of mean 1 / n: how often each of n is among n - 1 that are drawn."""
    if n == 1:
        return np.ones((count, 1))
    taken: Numbers = rng.multinomial(n - 1, np.full(n, 1 / n), size=count) / (n - 1)
    return taken


def _sides(results: Results, a: str, b: str, head: str) -> list[Numbers]:
    """What is resampled apart, [runs, groups] each: their means add up to the difference."""
    gains = [_gains(results, system, head) for system in (a, b)]
    if results[0].get("subset") is None:
        # Nothing pairs seed k of one model with seed k of another.
        return [_stack(gains[0]), -_stack(gains[1])]

    # Both systems were trained on the same subsets, the easy and the hard.
    by_subset = [
        {k: np.mean([x for other, x in side if other == k], axis=0) for k, _ in side}
        for side in gains
    ]
    both = sorted(set(by_subset[0]) & set(by_subset[1]))
    return [np.stack([by_subset[0][k] - by_subset[1][k] for k in both])]


def _stack(gains: list[tuple[int, Numbers]]) -> Numbers:
    return np.stack([x for _, x in gains])


def _differ(sides: list[Numbers]) -> bool:
    """Whether the systems give different answers at all."""
    if len(sides) == 1:
        return bool(sides[0].any())
    a, b = sides
    return a.shape != b.shape or bool((a != -b).any())


def _runs(a: str, b: str, sides: list[Numbers]) -> int:
    if len(sides) == 1:
        return len(sides[0])
    # A fitted model has one run, and no luck in it.
    drawn = [len(s) for s, name in zip(sides, (a, b), strict=True) if name not in BASELINES]
    return min(drawn, default=len(sides[0]))


def _gains(results: Results, system: str, head: str, classes: int = 0) -> list[tuple[int, Numbers]]:
    """Per run its subset (-1: none) and, for each group [groups], the sum over its labelled test
    utterances of 1 where right; for sentiment of minus the absolute error, or of 1 where the score
    is in the right one of so many `classes`."""
    label, group = _labels(results, head)
    known = label != IGNORE_LABEL
    out = []
    for run in runs_of(results, system):
        predicted = np.asarray(run["predictions"][head])
        if not is_sentiment(results):
            gain = predicted == label
        # CH-SIMS' figures are of scores clipped to [-1, 1]; so are these, or they would test
        # others. Its bins are open on the left.
        elif not classes:
            gain = -np.abs(np.clip(predicted, -1, 1) - label)
        else:
            bins = [np.digitize(x, EDGES[classes], right=True) for x in (predicted, label)]
            gain = bins[0] == bins[1]
        sums: Numbers = np.bincount(group, weights=gain[known].astype(float)).astype(float)
        subset = run.get("subset")
        out.append((-1 if subset is None else int(subset), sums))
    return out


def _labels(results: Results, head: str) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Labels of all test utterances, and the group of each labelled one."""
    # The first run's will do: every run reads the same test split in the order of its ids.
    first = results[0]
    label = np.asarray(first["labels"][HEADS.index(head)])
    names = np.asarray(first.get("groups") or range(len(label)))
    group = np.unique(names[label != IGNORE_LABEL], return_inverse=True)[1]
    return label, group.astype(np.int64)


def _group_sizes(results: Results, head: str) -> Numbers:
    return np.bincount(_labels(results, head)[1]).astype(np.float64)
