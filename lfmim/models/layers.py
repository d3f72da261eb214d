"""Layers shared by the models.

Shape suffixes: B batch, T time, D d_model, H attention heads, C classes. Masks are True
where a position is valid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lfmim.config import ModelConfig
from lfmim.models import functional
from lfmim.schema import MODALITIES, Modality


def init_weights(module: nn.Module) -> None:
    """Xavier-uniform matrices, zero biases; embeddings and norms keep torch's defaults."""
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sinusoidal_positions(length: int, d_model: int) -> Tensor:
    """Fixed sinusoidal table [length, d_model] float32 (Vaswani et al. 2017)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    channel = torch.arange(0, d_model, 2, dtype=torch.float32)
    frequency = torch.exp(channel * (-math.log(10000.0) / d_model))

    # sin and cos of one frequency side by side; models/upstream.py has them in two halves.
    table = torch.zeros(length, d_model)
    table[:, 0::2] = torch.sin(position * frequency)
    table[:, 1::2] = torch.cos(position * frequency)
    return table


class Dropout(nn.Dropout):
    """nn.Dropout; adds `residual` if given."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        return functional.dropout(input, self.p if self.training else 0.0, residual)


class InputProjection(nn.Module):
    """Conv1d of kernel 1 to the common width, sinusoidal positions, dropout (paper §4.2: input of
    the stacks). Takes features of any float type."""

    positions: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self, in_dim: int, d_model: int, max_length: int, dropout: float, standardize: bool
    ) -> None:
        super().__init__()
        self.standardize = standardize
        self.conv = nn.Conv1d(in_dim, d_model, kernel_size=1)
        self.dropout = Dropout(dropout)

        # The training split's, set by training.loop.new_model and saved with the weights, so that a
        # model standardises what it predicts from as it did in training.
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("scale", torch.ones(in_dim))
        # Not saved: a function of the sizes, which the config holds.
        self.register_buffer(
            "positions", sinusoidal_positions(max_length, d_model), persistent=False
        )

    def scaled(self, x: Tensor) -> Tensor:
        """Features [..., in_dim] as the projection reads them: standardised, or as they are."""
        return (x - self.mean) * self.scale if self.standardize else x

    def forward(self, x_BTF: Tensor) -> Tensor:
        x_BTF = self.scaled(x_BTF)
        # Features come as float16, as stored. Under autocast F.linear casts them to its own type:
        # to cast them here first would be one copy more.
        if not torch.is_autocast_enabled(x_BTF.device.type):
            x_BTF = x_BTF.to(self.conv.weight.dtype)

        # A kernel-1 convolution is a matrix product over channels: F.linear spares two transposes.
        z_BTD = F.linear(x_BTF, self.conv.weight[:, :, 0], self.conv.bias)
        positions_TD = self.positions[: z_BTD.shape[1]].to(z_BTD.dtype)
        return self.dropout(z_BTD + positions_TD)  # type: ignore[no-any-return]


def input_projections(config: ModelConfig, dims: Mapping[Modality, int]) -> nn.ModuleDict:
    """An InputProjection per modality of `dims`, the front end all models share."""
    c = config
    projections = nn.ModuleDict()

    # In the order of MODALITIES, whatever the order of `dims`: initial weights are drawn one after
    # the other, and one seed is to give one model.
    for m in MODALITIES:
        if m in dims:
            projections[m] = InputProjection(
                int(dims[m]), c.d_model, c.max_lengths[m], c.dropout_embedding, c.standardize
            )
    return projections


class SelfAttention(nn.Module):
    """Multi-head self-attention through scaled_dot_product_attention."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        # Softmax ignores the keys' third of the bias. It stays, because published checkpoints have
        # it (attn.in_proj_bias).
        self.qkv = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor, attend_B11T: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        y_BTD = functional.attention(self.qkv(x_BTD), None, attend_B11T, self.num_heads, dropout)
        return self.out(y_BTD)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Multi-head attention of a target sequence [B, T, D] over a source sequence [B, S, D]."""

    def __init__(self, d_model: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)

    def forward(self, target_BTD: Tensor, source_BSD: Tensor, attend_B11S: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        query_BTD, key_value_BSE = self.query(target_BTD), self.key_value(source_BSD)
        y_BTD = functional.attention(query_BTD, key_value_BSE, attend_B11S, self.num_heads, dropout)
        return self.out(y_BTD)  # type: ignore[no-any-return]


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, Linear: d_model -> dim_feedforward -> d_model."""

    def __init__(self, d_model: int, dim_feedforward: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(d_model, dim_feedforward),
            nn.ReLU(),
            Dropout(dropout),
            nn.Linear(dim_feedforward, d_model),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        # The children hold the weights under names that checkpoints have (ffn.0, ffn.3), but do not
        # compute one by one, so that a CPU keeps a block of the hidden layer in its cache.
        p: float = self[2].p if self.training else 0.0  # type: ignore[assignment]
        w1, b1, w2, b2 = (*self[0].parameters(), *self[3].parameters())
        return functional.feed_forward(x_BTD, w1, b1, w2, b2, p)


class TransformerLayer(nn.Module):
    """Pre-LN transformer layer with a ReLU feed-forward."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dim_feedforward: int,
        dropout_attention: float,
        dropout_ffn: float,
    ) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, num_heads, dropout_attention)
        self.norm_ffn = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, dim_feedforward, dropout_ffn)
        self.dropout = Dropout(dropout_ffn)

    def forward(self, x_BTD: Tensor, attend_B11T: Tensor) -> Tensor:
        # Dropout adds the residual, as on a CPU it passes over the numbers anyway.
        x_BTD = self.dropout(self.attention(self.norm_attention(x_BTD), attend_B11T), x_BTD)
        return self.dropout(self.ffn(self.norm_ffn(x_BTD)), x_BTD)  # type: ignore[no-any-return]


class TransformerStack(nn.Module):
    """`config.num_layers` pre-LN layers `d_model` wide, and a final LayerNorm. Where that is not
    the config's d_model, the feed-forward is in proportion."""

    def __init__(self, config: ModelConfig, d_model: int) -> None:
        super().__init__()
        c = config
        dim_feedforward = c.feedforward * d_model // c.d_model
        self.layers = nn.ModuleList(
            TransformerLayer(
                d_model, c.num_heads, dim_feedforward, c.dropout_attention, c.dropout_ffn
            )
            for _ in range(c.num_layers)
        )
        # A pre-LN layer adds to its input without normalising the sum.
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        mask = attention_mask(valid_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        return self.norm(x_BTD)  # type: ignore[no-any-return]


def attention_mask(valid_BT: Tensor) -> Tensor:
    """Key mask [B, 1, 1, T] for scaled_dot_product_attention.

    A row without any valid position attends everywhere instead: softmax over nothing is NaN, and
    such a row's output is dropped by every consumer (pooling gives zeros, the multimodal stack
    masks it).
    """
    empty_B1 = ~valid_BT.any(dim=1, keepdim=True)
    return (valid_BT | empty_B1)[:, None, None, :]


def mean_over_time(x_BTF: Tensor, valid_BT: Tensor) -> Tensor:
    """[B, F] float32: the mean of the valid positions, zeros where there is none.

    For features as they come, which 16 bits may not hold the sum of, and which may be infinite
    beyond a mask; states of a model are for `Pooling`.
    """
    total_BF = x_BTF.float().masked_fill(~valid_BT[..., None], 0).sum(dim=1)
    return total_BF / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)


class Pooling(nn.Module):
    """Sequence -> vector over the valid positions; a row without any gives zeros.

    `mean` averages, `attention` weighs by a learned query, `first` takes the leading token (FEX).
    """

    def __init__(self, kind: str, d_model: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            # Without a bias, which softmax would ignore.
            self.score = nn.Linear(d_model, 1, bias=False)

    def forward(self, x_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        if self.kind == "first":
            return x_BTD[:, 0]

        if self.kind == "attention":
            # The lowest finite number, not -inf: a row without any valid position gets even weights
            # instead of NaN, and the product with the mask makes them 0.
            logit_BT = self.score(x_BTD)[..., 0].masked_fill(
                ~valid_BT, torch.finfo(x_BTD.dtype).min
            )
            weight_BT = logit_BT.softmax(dim=1) * valid_BT
        else:
            # 0 / 1 where there is no valid position
            weight_BT = valid_BT / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)

        # Under autocast the weights are float32 and the states are not; einsum takes one type.
        return torch.einsum("bt,btd->bd", weight_BT.to(x_BTD.dtype), x_BTD)


class ClassifierHead(nn.Sequential):
    """MLP d -> d/2 -> classes with ReLU; returns logits (the softmax lives in the loss)."""

    def __init__(self, d_model: int, classes: int) -> None:
        super().__init__(
            nn.Linear(d_model, d_model // 2), nn.ReLU(), nn.Linear(d_model // 2, classes)
        )
