"""The moving average of a model's weights (`train.ema_decay`)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """`module`: a copy of a model that follows its weights, the share `decay` of it staying at each
    step.

    Not torch's AveragedModel, which looks at its count on the device: a GPU would be waited for at
    every step, and a CUDA graph cannot be captured.
    """

    begun: bool
    """Whether `module` is an average already."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self.begun = copy.deepcopy(model), False
        self._follow = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def follow(self, model: nn.Module) -> None:
        """Move towards the model's weights; on its device alone."""
        averages = [p.detach() for p in self.module.parameters()]
        self._follow(averages, [p.detach() for p in model.parameters()], 0)
        for kept, now in zip(self.module.buffers(), model.buffers(), strict=True):
            kept.copy_(now)

    @torch.no_grad()
    def begin(self, model: nn.Module) -> None:
        """After a run's first step take the weights as they are; later nothing."""
        # Not within `follow`, which is to be the same work at every step.
        if not self.begun:
            for kept, now in zip(self.module.parameters(), model.parameters(), strict=True):
                kept.copy_(now)
            self.begun = True
