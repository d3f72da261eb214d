"""Padding that leaves no trace in a speech network: what reads along time sees true samples alone.

Attention has a mask. The convolutions over the waveform are not padded themselves, so a true frame
reads true samples. Two kinds of layer are left: the group norm after the first convolution of some
checkpoints (wav2vec2-base, HuBERT-base), whose statistics run over time, and the convolutions that
tell positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TrueLengths:
    """Of the rows of the pass at hand; set before each."""

    samples_B: torch.Tensor
    frames_B: torch.Tensor


class TrueGroupNorm(nn.Module):
    """A group norm of one channel a group, with the statistics of each row's true positions.

    It holds the parameters of the norm that it stands for, under their names.
    """

    def __init__(self, norm: nn.GroupNorm, conv: nn.Conv1d, lengths: TrueLengths) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.kernel, self.stride, self.lengths = conv.kernel_size[0], conv.stride[0], lengths

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        count_B = (self.lengths.samples_B - self.kernel) // self.stride + 1
        true_B1T = _true(count_B, x_BCT)
        count_B11 = count_B[:, None, None]
        x_BCT = x_BCT.float()
        mean_BC1 = (x_BCT * true_B1T).sum(-1, keepdim=True) / count_B11
        x_BCT = (x_BCT - mean_BC1) * true_B1T
        var_BC1 = x_BCT.square().sum(-1, keepdim=True) / count_B11
        scale_BC1 = torch.rsqrt(var_BC1 + self.eps) * self.weight[:, None]
        return x_BCT * scale_BC1 + self.bias[:, None]


def hide_padding(model: Any) -> TrueLengths:
    """Let a wav2vec2, or one of its relatives, take padded rows together with their attention mask;
    the lengths returned are to be set before each pass. Weights and their names stay."""
    lengths = TrueLengths()
    first = model.feature_extractor.conv_layers[0]
    if isinstance(first.layer_norm, nn.GroupNorm):
        first.layer_norm = TrueGroupNorm(first.layer_norm, first.conv, lengths)

    # Each of several: what the first gives in the padding, the second would read. The models zero
    # the padding before all of them, but what HuBERT's batch norm then makes of it is not zero.
    def zeroed(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        return (inputs[0] * _true(lengths.frames_B, inputs[0]),)

    for module in model.encoder.pos_conv_embed.modules():
        if isinstance(module, nn.Conv1d):
            module.register_forward_pre_hook(zeroed)
    return lengths


def _true(count_B: torch.Tensor, x_BCT: torch.Tensor) -> torch.Tensor:
    """bool [B, 1, T]"""
    return (torch.arange(x_BCT.shape[-1], device=x_BCT.device) < count_B[:, None])[:, None]
