"""The objective: mean over samples of Σ_u β_u · loss_u (paper §4.4), cross-entropy for emotions, L1
for sentiment."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lfmim.schema import HEADS, IGNORE_LABEL


def head_losses(
    logits: Mapping[str, Tensor], labels_BH: Tensor, *, label_smoothing: float = 0.0
) -> Tensor:
    """Loss per sample and head [B, H] float32; 0 where the label or the model's head is missing.

    int64 labels are classes: cross-entropy. float32 labels are sentiment scores: absolute error of
    logits [B, 1], the loss of the field's CH-SIMS results (MMSA), which label smoothing does not
    touch.
    """
    # In float32 whatever autocast gave, and with a column for a head that the model lacks: losses,
    # labels and β have the same columns for every model.
    losses = [torch.zeros(len(labels_BH), device=labels_BH.device)] * len(HEADS)
    for i, h in enumerate(HEADS):
        if h in logits:
            losses[i] = _losses(logits[h].float(), labels_BH[:, i], label_smoothing)

    return torch.stack(losses, dim=1)


def _losses(logits: Tensor, label_B: Tensor, label_smoothing: float) -> Tensor:
    if label_B.is_floating_point():
        return torch.where(label_B == IGNORE_LABEL, 0.0, (logits[:, 0] - label_B).abs())
    # Labels of IGNORE_LABEL give 0: it is cross_entropy's own ignore_index.
    return F.cross_entropy(logits, label_B, reduction="none", label_smoothing=label_smoothing)


def weighted_loss(losses_BH: Tensor, counts_H: Tensor, beta_H: Tensor) -> Tensor:
    """Σ_u β_u · (sum of this worker's losses) / (labelled samples of the *global* batch).

    Summed over the workers this is the global batch's objective, whatever the shards' sizes.
    """
    # Divided by the samples that have this head's label, not by all: a head of few labels weighs as
    # much as another. A head without any in this batch has a sum of 0, over 1.
    return (beta_H * losses_BH.sum(dim=0) / counts_H.clamp(min=1)).sum()
