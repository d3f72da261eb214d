"""Dropout, and attention with dropout, as a CPU trains fastest: float32, eager, not under vmap.

torch draws one Bernoulli number at a time and passes over attention's score matrices a dozen times; together that was
more than half of a training step. GPUs, other dtypes, compiled code and vmap use torch's own (see layers.py).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.random.bit_generator import ISeedSequence
from torch import Tensor

BLOCK = 2**19
"""Scores of attention computed at a time: 2 MiB, so that all passes over them stay in the processor's cache."""


def vmapped(x: Tensor) -> bool:
    """Whether `x` is inside torch.vmap."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def applies(x: Tensor) -> bool:
    """Whether this file's functions take `x`."""
    return (not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32
            and not vmapped(x))


class _TorchSeed(ISeedSequence):
    """Seeds from torch's generator, without the hashing of numpy's (100 µs)."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return torch.randint(-(2**31), 2**31, (2 * n_words,), dtype=torch.int32).numpy().view(dtype)[:n_words]


def random_bytes(n: int) -> Tensor:
    """`n` uniform int8 numbers, seeded from torch's generator: 64 bits at a time from numpy's fastest generator, 4.5x
    faster than from torch's."""
    generator = np.random.SFC64(_TorchSeed())  # type: ignore[arg-type]  # numpy's stubs leave its interface out
    return torch.from_numpy(generator.random_raw(-(-n // 8)).view(np.int8)[:n])


def threshold(p: float) -> int:
    """Of int8 numbers, the share `p` is below this one: p · 256 is no integer, so the one below or above is drawn, with
    the probabilities that make p exact."""
    return math.floor(p * 256 + torch.rand(()).item()) - 128


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = torch.ge(random_bytes(x.numel()).view(x.shape), threshold(p), out=torch.empty(x.shape))
        ctx.save_for_backward(kept)
        ctx.scale = 1 / (1 - p)
        return torch.addcmul(torch.zeros(()), x, kept, value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.addcmul(torch.zeros(()), grads[0], kept, value=ctx.scale), None


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with 0 in place of each number with probability `p`, the others times 1/(1-p)."""
    return _Dropout.apply(x, p)  # type: ignore[no-any-return,no-untyped-call]


class _Attention(torch.autograd.Function):
    """A block of matrices goes through all steps before the next begins; what the backward pass needs of their size is
    the softmax and the random numbers, and masks are made from these again."""

    @staticmethod
    def forward(ctx: Any, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, mask_B11S: Tensor, p: float) -> Tensor:
        (b, t, h, d), s = q_BTHd.shape, k_BSHd.shape[1]
        n = b * h  # matrices, written N below
        q_NTd = torch.mul(q_BTHd.transpose(1, 2), 1 / math.sqrt(d)).reshape(n, t, d)
        k_NSd = k_BSHd.transpose(1, 2).reshape(n, s, d)
        v_NSd = torch.mul(v_BSHd.transpose(1, 2), 1 / (1 - p)).reshape(n, s, d)  # dropout's factor
        bias = torch.zeros(mask_B11S.shape).masked_fill_(~mask_B11S, -math.inf)
        bias_N1S = bias.expand(b, h, 1, s).reshape(n, 1, s)
        draws, limit = random_bytes(n * t * s).view(n, t, s), threshold(p)
        weight, out = torch.empty(n, t, s), torch.empty(n, t, d)
        block = max(1, min(n, BLOCK // (t * s)))
        scratch = torch.empty(block, t, s)
        for i in range(0, n, block):
            part = slice(i, min(i + block, n))
            w, dropped = weight[part], scratch[: part.stop - i]
            torch.baddbmm(bias_N1S[part], q_NTd[part], k_NSd[part].transpose(1, 2), out=w)
            torch.softmax(w, -1, out=w)
            torch.ge(draws[part], limit, out=dropped).mul_(w)
            torch.bmm(dropped, v_NSd[part], out=out[part])
        ctx.save_for_backward(q_NTd, k_NSd, v_NSd, weight, draws)
        ctx.p, ctx.limit, ctx.block = p, limit, block
        return out.view(b, h, t, d).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NTd, k_NSd, v_NSd, weight, draws = ctx.saved_tensors
        n, t, s = weight.shape
        block, limit, heads = ctx.block, ctx.limit, grads[0].shape[2]
        g_NTd = grads[0].transpose(1, 2).reshape(n, t, -1)
        dq, dk, dv = (torch.empty_like(x) for x in (q_NTd, k_NSd, v_NSd))
        kept_, d_scores_, d_weight_ = (torch.empty(block, t, s) for _ in range(3))
        for i in range(0, n, block):
            part = slice(i, min(i + block, n))
            w, g = weight[part], g_NTd[part]
            kept, d_scores, d_weight = (x[: part.stop - i] for x in (kept_, d_scores_, d_weight_))
            dropped = torch.mul(torch.ge(draws[part], limit, out=kept), w, out=d_scores)
            torch.bmm(dropped.transpose(1, 2), g, out=dv[part])
            torch.bmm(g, v_NSd[part].transpose(1, 2), out=d_weight).mul_(kept)
            torch._softmax_backward_data(d_weight, w, -1, torch.float32, grad_input=d_scores)
            torch.bmm(d_scores, k_NSd[part], out=dq[part])
            torch.bmm(d_scores.transpose(1, 2), q_NTd[part], out=dk[part])
        dq.mul_(1 / math.sqrt(dq.shape[-1]))
        dv.mul_(1 / (1 - ctx.p))
        return *(x.view(-1, heads, *x.shape[1:]).transpose(1, 2) for x in (dq, dk, dv)), None, None


def attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, mask_B11S: Tensor, p: float) -> Tensor:
    """Scaled dot-product attention [B, T, H, d] with dropout of `p` on its weights. `mask_B11S`: True where a key may
    be attended to, for at least one key per row."""
    return _Attention.apply(q_BTHd, k_BSHd, v_BSHd, mask_B11S, p)  # type: ignore[no-any-return,no-untyped-call]
