"""The objective: mean over samples of Σ_u β_u · loss_u (paper §4.4), cross-entropy or what
`train.loss` names for emotions, L1 for sentiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from lfmim.config import TrainConfig
from lfmim.schema import HEADS, IGNORE_LABEL

GAMMA = 2.0
"""Of the focal loss: the paper's choice (Lin et al. 2017)."""
EFFECTIVE = 0.999
"""β of the effective number of samples (Cui et al. 2019)."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an emotion's loss is besides cross-entropy; the default is cross-entropy alone."""

    label_smoothing: float = 0.0
    gamma: float = 0.0
    """Of the focal loss; 0: none."""
    weight_HC: Tensor | None = None
    """[heads, classes] float32 on the labels' device: a sample's weight by its class."""
    log_prior_HC: Tensor | None = None
    """[heads, classes] float32 on the labels' device: what is added to logits."""

    @classmethod
    def of(cls, config: TrainConfig, labels: Tensor, classes: int) -> Objective:
        """The objective of `config` on training labels [N, heads] of all workers; sentiment scores
        have neither classes nor priors."""
        plain = config.loss == "cross_entropy" and config.class_weights == "none"
        if plain or labels.is_floating_point():
            return cls(config.label_smoothing)

        # [heads, classes] in float64: counts are exact, and every worker has the same.
        counts = F.one_hot(labels.clamp(min=0), classes).double()
        counts = (counts * (labels != IGNORE_LABEL)[:, :, None]).sum(dim=0)
        weight = prior = None
        if config.class_weights != "none":
            weight = class_weights(counts, config.class_weights)
        if config.loss == "logit_adjusted":
            # A class without labels counts as one: the log of 0 makes smoothed losses infinite.
            seen = counts.clamp(min=1)
            prior = (seen / seen.sum(dim=1, keepdim=True)).log().float()
        return cls(config.label_smoothing, GAMMA if config.loss == "focal" else 0.0, weight, prior)


def class_weights(counts_HC: Tensor, kind: str) -> Tensor:
    """[heads, classes] float32 weights of labels that occur `counts_HC` times: `inverse` of the
    counts, or of their `effective` numbers (1 - β^n) / (1 - β) (Cui et al. 2019). Averaged over a
    head's labels they are 1, so the learning rate keeps its meaning; 0 for a class without labels.
    """
    n = counts_HC.double()
    size = n if kind == "inverse" else (1 - EFFECTIVE**n) / (1 - EFFECTIVE)
    weight = torch.where(n > 0, 1 / size.clamp(min=1e-12), 0.0)
    total = (weight * n).sum(dim=1, keepdim=True).clamp(min=1e-12)
    return (weight * n.sum(dim=1, keepdim=True) / total).float()


PLAIN = Objective()


def head_losses(
    logits: Mapping[str, Tensor], labels_BH: Tensor, objective: Objective = PLAIN
) -> Tensor:
    """Loss per sample and head [B, H] float32; 0 where the label or the model's head is missing.

    int64 labels are classes: cross-entropy, as the `objective` changes it. float32 labels are
    sentiment scores: absolute error of logits [B, 1], the loss of the field's CH-SIMS results
    (MMSA), which the objective does not touch.
    """
    # In float32 whatever autocast gave, and with a column for a head that the model lacks: losses,
    # labels and β have the same columns for every model.
    losses = [torch.zeros(len(labels_BH), device=labels_BH.device)] * len(HEADS)
    for i, h in enumerate(HEADS):
        if h in logits:
            losses[i] = _losses(logits[h].float(), labels_BH[:, i], objective, i)

    return torch.stack(losses, dim=1)


def _losses(logits: Tensor, label_B: Tensor, objective: Objective, head: int) -> Tensor:
    if label_B.is_floating_point():
        return torch.where(label_B == IGNORE_LABEL, 0.0, (logits[:, 0] - label_B).abs())
    # Menon et al. 2021, eq. 10, with τ = 1: in training alone, so that answers favour no class.
    if objective.log_prior_HC is not None:
        logits = logits + objective.log_prior_HC[head]
    # Labels of IGNORE_LABEL give 0: it is cross_entropy's own ignore_index.
    loss = F.cross_entropy(
        logits, label_B, reduction="none", label_smoothing=objective.label_smoothing
    )

    # By a sample's own class, not by cross_entropy's `weight`, which divides by the batch's sum of
    # weights: that sum would be each worker's own.
    known = label_B.clamp(min=0)
    if objective.gamma:
        right = logits.softmax(dim=1).gather(1, known[:, None])[:, 0]
        loss = loss * (1 - right).pow(objective.gamma)
    if objective.weight_HC is not None:
        loss = loss * objective.weight_HC[head, known]
    return loss


def weighted_loss(losses_BH: Tensor, counts_H: Tensor, beta_H: Tensor) -> Tensor:
    """Σ_u β_u · (sum of this worker's losses) / (labelled samples of the *global* batch).

    Summed over the workers this is the global batch's objective, whatever the shards' sizes.
    """
    # Divided by the samples that have this head's label, not by all: a head of few labels weighs as
    # much as another. A head without any in this batch has a sum of 0, over 1.
    return (beta_H * losses_BH.sum(dim=0) / counts_H.clamp(min=1)).sum()
