"""The objective: mean over samples of Σ_u β_u · CE(y_u, ŷ_u) (paper §4.4)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lfmim.schema import HEADS


def head_losses(logits: Mapping[str, Tensor], labels_BH: Tensor) -> Tensor:
    """Cross-entropy per sample and head [B, H] float32; 0 where the label or the model's head is missing."""
    return torch.stack([
        F.cross_entropy(logits[h].float(), labels_BH[:, i], reduction="none") if h in logits
        else torch.zeros(len(labels_BH), device=labels_BH.device)
        for i, h in enumerate(HEADS)
    ], dim=1)


def weighted_loss(losses_BH: Tensor, counts_H: Tensor, beta_H: Tensor) -> Tensor:
    """Σ_u β_u · (sum of this worker's losses) / (labelled samples of the *global* batch).

    Summed over the workers this is the global batch's objective, whatever the shards' sizes.
    """
    return (beta_H * losses_BH.sum(dim=0) / counts_H.clamp(min=1)).sum()
