"""What a model costs: parameters and arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def parameter_count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@torch.no_grad()
def flops_per_sample(
    model: nn.Module, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> int:
    """Forward FLOPs per sample (a multiply-add is 2) of matrix products, at the padded lengths of
    this batch. `model` stays as and where it is."""
    model = copy.deepcopy(model).cpu().eval()

    # torch's counter does not see the fused attention and LSTM kernels, so both run as the matrix
    # products they consist of: attention by the MATH backend, the LSTM without oneDNN.
    with (
        FlopCounterMode(display=False) as counter,
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.mkldnn.flags(enabled=False),
    ):
        model({m: x.cpu() for m, x in features.items()}, {m: x.cpu() for m, x in masks.items()})
    return int(counter.get_total_flops() // len(next(iter(features.values()))))
