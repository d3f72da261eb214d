"""Metrics that add up: per-head confusion matrices and sums, merged over batches and workers, then
read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfmim.schema import HEADS, IGNORE_LABEL


def _count(label: Tensor, prediction: Tensor, known: Tensor, classes: int) -> Tensor:
    """Confusion counts [heads, classes, classes] of the known ones of [heads, B] each."""
    heads = len(label)
    first = torch.arange(heads, device=label.device)[:, None] * classes**2
    # Unlabelled rows count 0 in cell 0: boolean indexing and bincount would force a device sync.
    cell = torch.where(known, first + label * classes + prediction, 0).flatten()
    counts = torch.zeros(heads * classes**2, dtype=torch.float64, device=cell.device)
    return counts.index_add_(0, cell, known.flatten().double()).view(heads, classes, classes)


def class_f1(confusion: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """F1 per class of a confusion matrix (rows: labels), by scikit-learn; 0 for a class that does
    not occur."""
    # Only who computes metrics waits for its import.
    from sklearn.metrics import precision_recall_fscore_support

    # A weighted sample for each cell rather than one for each utterance: the same sums.
    label, prediction = np.nonzero(confusion)
    return np.asarray(
        precision_recall_fscore_support(
            label,
            prediction,
            labels=range(len(confusion)),
            sample_weight=confusion[label, prediction],
            zero_division=0,
        )[2]
    )


def _accuracy(confusion: npt.NDArray[np.float64]) -> float:
    return float(np.trace(confusion) / confusion.sum())


def _reduce(tensors: Iterable[Tensor]) -> None:
    """Sum over torch.distributed workers, in place; nothing to do without a process group."""
    # torch is also built without distributed, and then lacks is_initialized.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def sums_for(labels: Tensor, classes: Sequence[str]) -> HeadSums | SentimentSums:
    """Empty sums on the labels' device: float labels are sentiment scores, int64 ones indices of
    `classes`."""
    if labels.is_floating_point():
        return SentimentSums(labels.device)
    return HeadSums(classes, labels.device)


class HeadSums:
    """Sums over samples, on the device: `confusion` [heads, C, C] (label row, prediction column),
    `loss` [heads].

    C is the number of `classes`, names in index order. Counts are whole numbers in float64, so any
    split of the data over batches and workers gives the same ones.
    """

    def __init__(self, classes: Sequence[str], device: torch.device | str = "cpu") -> None:
        self.classes, c = tuple(classes), len(classes)
        self.confusion = torch.zeros(len(HEADS), c, c, dtype=torch.float64, device=device)
        self.loss = torch.zeros(len(HEADS), dtype=torch.float64, device=device)

    def update(self, logits: Mapping[str, Tensor], labels_BH: Tensor, losses_BH: Tensor) -> None:
        """`labels_BH` int64 with IGNORE_LABEL where missing; `losses_BH` per sample and head, 0
        where missing."""
        self.loss += losses_BH.sum(dim=0, dtype=torch.float64)

        answered = [i for i, head in enumerate(HEADS) if head in logits]
        # All heads in one pass: head by head took 40 more calls into torch a step, which is what
        # small models spend their time on.
        label = torch.stack([labels_BH[:, i] for i in answered])
        prediction = torch.stack([logits[HEADS[i]] for i in answered]).argmax(dim=2)
        counts = _count(label, prediction, label != IGNORE_LABEL, len(self.classes))
        for i, of_head in zip(answered, counts, strict=True):
            self.confusion[i] += of_head

    @property
    def tensors(self) -> list[Tensor]:
        """What the sums are, always in the same order."""
        return [self.confusion, self.loss]

    def all_reduce(self) -> HeadSums:
        """Sum over torch.distributed workers, in place; nothing to do without a process group."""
        _reduce(self.tensors)
        return self

    def compute(self) -> dict[str, HeadMetrics]:
        """One transfer to the host; heads without a labelled sample have count 0 and NaN scores."""
        confusion, loss = self.confusion.cpu().numpy(), self.loss.cpu().numpy()
        return {
            head: HeadMetrics.from_confusion(confusion[i], self.classes, float(loss[i]))
            for i, head in enumerate(HEADS)
        }


@dataclasses.dataclass(frozen=True)
class HeadMetrics:
    """One head against its own emotion label. 'Overall F1' in the paper is `accuracy` (= micro
    F1)."""

    count: int
    loss: float
    accuracy: float
    majority: float
    """Share of the most frequent label: what always guessing it scores."""
    weighted_f1: float
    macro_f1: float
    f1: dict[str, float]
    """Per class, in index order."""
    confusion: list[list[int]]
    """Rows: labels, columns: predictions, in index order."""

    @classmethod
    def from_confusion(
        cls,
        confusion: npt.NDArray[np.float64],
        classes: Sequence[str],
        loss_sum: float = 0.0,
    ) -> HeadMetrics:
        """As scikit-learn's f1_score with zero_division=0; macro over classes that occur as label
        or prediction. `classes` names those of `confusion`, in index order."""
        count = confusion.sum()
        if count == 0:
            nan = float("nan")
            return cls(
                0,
                nan,
                nan,
                nan,
                nan,
                nan,
                dict.fromkeys(classes, nan),
                confusion.astype(int).tolist(),
            )

        support, f1 = confusion.sum(axis=1), class_f1(confusion)
        # Macro F1 as scikit-learn's, over the classes that were labelled or predicted: one that a
        # small split lacks is not a class that was missed.
        occurs = (support + confusion.sum(axis=0)) > 0
        return cls(
            count=int(count),
            loss=float(loss_sum / count),
            accuracy=_accuracy(confusion),
            majority=float(support.max() / count),
            weighted_f1=float(np.average(f1, weights=support)),
            macro_f1=float(f1[occurs].mean()),
            f1=dict(zip(classes, f1.tolist(), strict=True)),
            confusion=confusion.astype(int).tolist(),
        )

    @property
    def score(self) -> float:
        """What a checkpoint is chosen by; higher is better."""
        return self.accuracy

    @property
    def beats_majority(self) -> bool:
        """Whether the accuracy is above that of always guessing the commonest class by more than
        two of its standard errors."""
        error = (self.majority * (1 - self.majority) / self.count) ** 0.5 if self.count else 0.0
        return self.accuracy > self.majority + 2 * error

    @property
    def uar(self) -> float:
        """Unweighted average recall: the mean recall of the classes that have labels. What always
        guessing one class scores is one over their number."""
        counts = np.array(self.confusion, dtype=float)
        support = counts.sum(axis=1)
        recall = counts.diagonal()[support > 0] / support[support > 0]
        return float(recall.mean()) if len(recall) else float("nan")

    def scalars(self) -> dict[str, float]:
        """Flat figures for a tracker."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "uar": self.uar,
            "weighted_f1": self.weighted_f1,
            "macro_f1": self.macro_f1,
            **{f"f1_{e}": v for e, v in self.f1.items()},
        }


EDGES: dict[int, tuple[float, ...]] = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""Inner bin edges of CH-SIMS' Acc-2, Acc-3 and Acc-5; bins are open on the left and closed on the
right."""


class SentimentSums:
    """Sums over samples, on the device, of scores clipped to [-1, 1]; the interface of HeadSums.

    `confusion[k]` [heads, k, k] for k in EDGES, `nonzero` [heads, 2, 2] over labels other than 0,
    `moments` [heads, 6]: Σ|y - p|, Σy, Σp, Σy², Σp², Σyp. All float64.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        heads, kind = len(HEADS), {"dtype": torch.float64, "device": device}
        self.confusion = {}
        for k in EDGES:
            self.confusion[k] = torch.zeros(heads, k, k, **kind)  # type: ignore[call-overload]
        self.nonzero = torch.zeros(heads, 2, 2, **kind)  # type: ignore[call-overload]
        self.moments = torch.zeros(heads, 6, **kind)  # type: ignore[call-overload]
        self.loss = torch.zeros(heads, **kind)  # type: ignore[call-overload]
        # Made here: a copy from the host at each batch is none that a CUDA graph could replay.
        self.bounds = {k: torch.tensor(edges, device=device) for k, edges in EDGES.items()}

    def update(self, logits: Mapping[str, Tensor], labels_BH: Tensor, losses_BH: Tensor) -> None:
        """Scores [B, 1] per head; `labels_BH` float32, IGNORE_LABEL where missing; `losses_BH` as
        HeadSums.update."""
        self.loss += losses_BH.sum(dim=0, dtype=torch.float64)
        for i, head in enumerate(HEADS):
            if head not in logits:
                continue

            label, known = labels_BH[:, i].float(), labels_BH[:, i] != IGNORE_LABEL
            # Unlabelled rows add nothing, not even what is not finite in them.
            y = torch.where(known, label, 0.0).clamp(-1, 1)
            p = torch.where(known, logits[head][:, 0].detach().float(), 0.0).clamp(-1, 1)
            for k, bounds in self.bounds.items():
                # bucketize's default puts a score equal to an edge below it: closed on the right.
                bins = torch.bucketize(y, bounds)[None], torch.bucketize(p, bounds)[None]
                (cells,) = _count(*bins, known[None], k)
                self.confusion[k][i] += cells

            negative_or_positive = (y > 0).long()[None], (p > 0).long()[None]
            (cells,) = _count(*negative_or_positive, (known & (y != 0))[None], 2)
            self.nonzero[i] += cells

            # Pearson's r is made of differences of these sums, which cancel: float32 would not do.
            y, p = y.double(), p.double()
            self.moments[i] += torch.stack([(y - p).abs(), y, p, y * y, p * p, y * p]).sum(dim=1)

    @property
    def tensors(self) -> list[Tensor]:
        """As HeadSums.tensors."""
        return [*self.confusion.values(), self.nonzero, self.moments, self.loss]

    def all_reduce(self) -> SentimentSums:
        """As HeadSums.all_reduce."""
        _reduce(self.tensors)
        return self

    def compute(self) -> dict[str, SentimentMetrics]:
        """Heads without a labelled sample have count 0 and NaN scores."""
        confusion = {k: x.cpu().numpy() for k, x in self.confusion.items()}
        nonzero, moments, loss = (x.cpu().numpy() for x in (self.nonzero, self.moments, self.loss))
        return {
            head: SentimentMetrics.from_sums(
                {k: x[i] for k, x in confusion.items()}, nonzero[i], moments[i], float(loss[i])
            )
            for i, head in enumerate(HEADS)
        }


@dataclasses.dataclass(frozen=True)
class SentimentMetrics:
    """One head against its own sentiment score, in the field's CH-SIMS conventions (all on scores
    clipped to [-1, 1]).

    Acc-2 and F1 come in two conventions: zero counts as negative ([-1, 0], (0, 1]; the CH-SIMS one,
    in the paper's Table 3), or utterances labelled 0 are left out (`_nonzero`). F1 is weighted F1
    over the two classes.
    """

    count: int
    loss: float
    """Mean absolute error before clipping."""
    accuracy_2: float
    accuracy_3: float
    accuracy_5: float
    weighted_f1: float
    accuracy_2_nonzero: float
    weighted_f1_nonzero: float
    mae: float
    pearson: float
    """NaN where labels or predictions do not vary."""
    confusion: list[list[int]]
    """The five classes (schema.SENTIMENTS); rows: labels, columns: predictions."""

    @classmethod
    def from_sums(
        cls,
        confusion: Mapping[int, npt.NDArray[np.float64]],
        nonzero: npt.NDArray[np.float64],
        moments: npt.NDArray[np.float64],
        loss_sum: float,
    ) -> SentimentMetrics:
        """From one head's share of SentimentSums."""
        n, nan = confusion[5].sum(), float("nan")
        counts = confusion[5].astype(int).tolist()
        if n == 0:
            return cls(0, nan, nan, nan, nan, nan, nan, nan, nan, nan, counts)

        error, y, p, yy, pp, yp = moments
        # n² times each variance. Of equal scores the difference rounds to something near 0, on
        # either side of it; r of those is no number.
        spread = max(n * yy - y * y, 0.0) * max(n * pp - p * p, 0.0)
        return cls(
            count=int(n),
            loss=loss_sum / n,
            **{f"accuracy_{k}": _accuracy(x) for k, x in confusion.items()},
            weighted_f1=_weighted_f1(confusion[2]),
            accuracy_2_nonzero=_accuracy(nonzero) if nonzero.any() else nan,
            weighted_f1_nonzero=_weighted_f1(nonzero) if nonzero.any() else nan,
            mae=float(error / n),
            pearson=float((n * yp - y * p) / spread**0.5) if spread > 1e-12 else nan,
            confusion=counts,
        )

    @property
    def score(self) -> float:
        """What a checkpoint is chosen by; higher is better."""
        # Not the loss, which is of unclipped scores: it is the figure that the report prints.
        return -self.mae

    def scalars(self) -> dict[str, float]:
        """Flat figures for a tracker."""
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("count", "confusion")
        }


def _weighted_f1(confusion: npt.NDArray[np.float64]) -> float:
    return float(np.average(class_f1(confusion), weights=confusion.sum(axis=1)))


Metrics = HeadMetrics | SentimentMetrics


def metrics_from_dict(raw: Mapping[str, Any]) -> Metrics:
    """Inverse of dataclasses.asdict for either kind, as checkpoints' histories hold them."""
    return (SentimentMetrics if "mae" in raw else HeadMetrics)(**raw)


def labelled_f1(metrics: Mapping[str, Any]) -> dict[str, float]:
    """F1 per class of one head's HeadMetrics as a dict; NaN for a class without labels: an F1 of 0
    would say that it was missed."""
    classes = zip(metrics["f1"].items(), metrics["confusion"], strict=True)
    return {name: f1 if any(row) else float("nan") for (name, f1), row in classes}


def not_learned(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Which heads of one epoch's validation, as a checkpoint's history holds them, do no better
    than always guessing the commonest class; "" if none, or for sentiment scores."""
    heads = [
        f"{head} {m['accuracy']:.4f} (commonest class {m['majority']:.4f})"
        for head, m in metrics.items()
        if m["count"] and "majority" in m and not HeadMetrics(**m).beats_majority
    ]
    return f"no better than always guessing the commonest class: {', '.join(heads)}" * bool(heads)
