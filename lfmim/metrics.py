"""Metrics that add up: per-head confusion matrices and loss sums, merged over batches and workers, then read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lfmim.schema import EMOTIONS, HEADS, IGNORE_LABEL

C = len(EMOTIONS)


class HeadSums:
    """Sums over samples, on the device: `confusion` [heads, C, C] (label row, prediction column), `loss` [heads].

    float64 on CPU and float32 counts are both exact here (< 2^24 samples), so any split of the data over batches and
    workers gives the same counts.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.confusion = torch.zeros(len(HEADS), C, C, dtype=torch.float64, device=device)
        self.loss = torch.zeros(len(HEADS), dtype=torch.float64, device=device)

    def update(self, logits: Mapping[str, Tensor], labels_BH: Tensor, losses_BH: Tensor) -> None:
        """`labels_BH` int64 with IGNORE_LABEL where missing; `losses_BH` per sample and head, 0 where missing."""
        self.loss += losses_BH.sum(dim=0, dtype=torch.float64)
        for i, head in enumerate(HEADS):
            if head not in logits:
                continue
            label, prediction = labels_BH[:, i], logits[head].argmax(dim=1)
            known = label != IGNORE_LABEL
            # Unlabelled rows count 0 in cell 0: boolean indexing and bincount would force a device sync.
            cell = torch.where(known, label * C + prediction, 0)
            self.confusion[i].view(-1).index_add_(0, cell, known.double())

    def all_reduce(self) -> HeadSums:
        """Sum over torch.distributed workers, in place; nothing to do without a process group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for tensor in (self.confusion, self.loss):
                torch.distributed.all_reduce(tensor)
        return self

    def compute(self) -> dict[str, HeadMetrics]:
        """One transfer to the host; heads without a labelled sample have count 0 and NaN scores."""
        confusion, loss = self.confusion.cpu().numpy(), self.loss.cpu().numpy()
        return {head: HeadMetrics.from_confusion(confusion[i], float(loss[i])) for i, head in enumerate(HEADS)}


@dataclasses.dataclass(frozen=True)
class HeadMetrics:
    """One head against its own label. 'Overall F1' in the paper is `accuracy` (= micro F1)."""

    count: int
    loss: float
    accuracy: float
    majority: float
    """Share of the most frequent label: what always guessing it scores."""
    weighted_f1: float
    macro_f1: float
    f1: dict[str, float]
    confusion: list[list[int]]
    """Rows: labels, columns: predictions, in index order."""

    @classmethod
    def from_confusion(cls, confusion: npt.NDArray[np.float64], loss_sum: float = 0.0) -> HeadMetrics:
        """As scikit-learn's f1_score with zero_division=0; macro over emotions that occur as label or prediction."""
        count = confusion.sum()
        if count == 0:
            nan = float("nan")
            return cls(0, nan, nan, nan, nan, nan, dict.fromkeys(EMOTIONS, nan), confusion.astype(int).tolist())
        support, predicted, hit = confusion.sum(1), confusion.sum(0), np.diag(confusion)
        f1 = 2 * hit / np.maximum(support + predicted, 1)
        occurs = (support + predicted) > 0
        return cls(
            count=int(count), loss=float(loss_sum / count), accuracy=float(hit.sum() / count),
            majority=float(support.max() / count), weighted_f1=float((f1 * support).sum() / count),
            macro_f1=float(f1[occurs].mean()), f1=dict(zip(EMOTIONS, f1.tolist(), strict=True)),
            confusion=confusion.astype(int).tolist(),
        )

    def scalars(self) -> dict[str, float]:
        """Flat figures for a tracker."""
        return {"loss": self.loss, "accuracy": self.accuracy, "weighted_f1": self.weighted_f1,
                "macro_f1": self.macro_f1, **{f"f1_{e}": v for e, v in self.f1.items()}}
