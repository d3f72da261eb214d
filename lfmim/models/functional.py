"""Dropout, attention and feed-forward: on each device by what computes them fastest there.

Training in float32 on a CPU takes the kernels of `cpu/`; everything else is torch's own. Shape
suffixes as in layers.py.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lfmim.models import cpu


def dropout(x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    """`x` with each number 0 with probability `p`, the others times 1/(1-p); plus `residual`."""
    # `p` is 0 outside training (see layers.Dropout), so what only predicts never loads numba.
    if p and cpu.applies(x):
        return cpu.dropout(x, p, residual)

    x = F.dropout(x, p) if p else x
    return x if residual is None else residual + x


def attention(
    q_BTE: Tensor, kv_BSE: Tensor | None, mask_B11S: Tensor, num_heads: int, p: float
) -> Tensor:
    """Scaled dot-product attention [B, T, D] with dropout of `p` on its weights.

    Queries [B, T, D] over keys and values [B, S, 2D], or `q_BTE` [B, T, 3D] holds all three.
    `mask_B11S`: True where a key may be attended to, for at least one key per row.
    """
    # torch's own on a CPU: without dropout a fused kernel, with it a dozen passes over the scores.
    if p and cpu.applies(q_BTE):
        return cpu.attention(q_BTE, kv_BSE, mask_B11S, num_heads, p)

    parts = q_BTE.chunk(3, dim=-1) if kv_BSE is None else (q_BTE, *kv_BSE.chunk(2, dim=-1))
    q, k, v = (x.view(*x.shape[:2], num_heads, -1).transpose(1, 2) for x in parts)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11S, dropout_p=p)
    return out.transpose(1, 2).flatten(2)


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
    """Linear (`w1` [H, D], `b1`), ReLU, dropout of `p`, linear (`w2` [D, H], `b2`) of `x`
    [..., D]."""
    if p and cpu.applies(x):
        return cpu.feed_forward(x, w1, b1, w2, b2, p)
    return F.linear(F.dropout(F.relu(F.linear(x, w1, b1)), p), w2, b2)
