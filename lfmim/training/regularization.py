"""What a training batch is made to lack, so that a model does not lean on one modality or one
moment."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from lfmim.data.batches import Batch
from lfmim.schema import HEADS, IGNORE_LABEL
from lfmim.training.step import rank_and_world


def drop_modalities(batch: Batch, probability: float) -> Batch:
    """Each sample loses each modality with `probability`, but never its last one (Neverova et al.
    2016).

    A lost modality is masked throughout and its head's label ignored, also in `counts`. Draws from
    torch's global RNG; every worker has to call it.
    """
    # [B, modalities]; -1 where absent, so that an absent modality has never the largest draw.
    present = torch.stack([mask.any(dim=1) for mask in batch.masks.values()], dim=1)
    draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    # Whatever the draws, the largest one stays, so one modality always does.
    keep = present & ((draw >= probability) | (draw == draw.max(dim=1, keepdim=True).values))

    masks: dict[str, Tensor] = {}
    columns = list(batch.labels.unbind(dim=1))
    for i, (m, mask) in enumerate(batch.masks.items()):
        masks[m] = mask & keep[:, i, None]
        # where, not an index of rows: how many there are the device would have to say first
        head = HEADS.index(m)
        columns[head] = torch.where(keep[:, i], columns[head], IGNORE_LABEL)
    labels = torch.stack(columns, dim=1)

    # Of the global batch: what the other workers dropped counts as well.
    counts = (labels != IGNORE_LABEL).sum(dim=0).float()
    if rank_and_world()[1] > 1:
        dist.all_reduce(counts)
    return dataclasses.replace(batch, masks=masks, labels=labels, counts=counts)


def drop_steps(batch: Batch, probability: float) -> Batch:
    """Each position of each sequence is masked with `probability`; a sequence keeps at least one
    position."""
    masks: dict[str, Tensor] = {}
    for m, mask in batch.masks.items():
        draw = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1.0)
        masks[m] = mask & ((draw >= probability) | (draw == draw.max(dim=1, keepdim=True).values))
    return dataclasses.replace(batch, masks=masks)
