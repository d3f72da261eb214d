"""Dropout, attention and feed-forward with dropout, as a CPU trains fastest: float32, eager, not under vmap.

torch draws one Bernoulli number at a time and passes over attention's score matrices a dozen times; together that was
more than half of a training step. GPUs, other dtypes, compiled code and vmap use torch's own (see layers.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from torch import Tensor

BLOCK = 2**19
"""Scores of attention, and hidden numbers of a feed-forward, computed at a time: 2 MiB, so that all passes over them
stay in the processor's cache."""

ZEROS = bytes(2**20)

_of_thread = threading.local()


def seed_thread(seed: int) -> None:
    """From here on this thread draws from a generator of its own, not from torch's, which all threads share."""
    _of_thread.generator = torch.Generator().manual_seed(seed)


def _generator() -> torch.Generator | None:
    return getattr(_of_thread, "generator", None)


def vmapped(x: Tensor) -> bool:
    """Whether `x` is inside torch.vmap."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def applies(x: Tensor) -> bool:
    """Whether this file's functions take `x`."""
    return (not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32
            and not vmapped(x))


def random_bytes(n: int) -> Tensor:
    """`n` uniform int8 numbers, seeded from the thread's or torch's generator: the key stream of AES, for which
    processors have instructions, 14x faster than torch's own."""
    seed = torch.randint(-(2**31), 2**31, (8,), dtype=torch.int32, generator=_generator()).numpy().tobytes()
    encryptor = Cipher(AES(seed[:16]), CTR(seed[16:])).encryptor()
    slack = 15  # what update_into demands behind the last byte
    out = torch.empty(n + slack, dtype=torch.uint8)
    view = memoryview(out.numpy())  # type: ignore[arg-type]  # numpy's stubs promise no buffer
    for i in range(0, n, len(ZEROS)):
        size = min(len(ZEROS), n - i)
        encryptor.update_into(ZEROS[:size], view[i : i + size + slack])
    return out[:n].view(torch.int8)


def threshold(p: float) -> int:
    """Of int8 numbers, the share `p` is below this one: p · 256 is no integer, so the one below or above is drawn, with
    the probabilities that make p exact."""
    return math.floor(p * 256 + torch.rand((), generator=_generator()).item()) - 128


def _blocks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of `size` rows of each."""
    return zip(*(x.split(size) for x in tensors), strict=True)  # type: ignore[no-untyped-call]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, residual: Tensor | None) -> Tensor:
        kept = torch.ge(random_bytes(x.numel()).view(x.shape), threshold(p), out=torch.empty(x.shape))
        ctx.save_for_backward(kept)
        ctx.scale, ctx.added = 1 / (1 - p), residual is not None
        return torch.addcmul(torch.zeros(()) if residual is None else residual, x, kept, value=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        return (torch.addcmul(torch.zeros(()), grads[0], kept, value=ctx.scale), None,
                grads[0] if ctx.added else None)


def dropout(x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    """`x` with 0 in place of each number with probability `p`, the others times 1/(1-p); plus `residual` of its
    shape."""
    return _Dropout.apply(x, p, residual)  # type: ignore[no-any-return,no-untyped-call]


class _FeedForward(torch.autograd.Function):
    """Blocks of rows go through all steps before the next begins. What dropout or ReLU made 0 is 0 in the hidden layer,
    so the backward pass needs no mask beside it. Dropout's factor is applied to the products, which are smaller."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        n, hidden = len(x_ND), len(w1)
        hidden_NH, out_ND = x.new_empty(n, hidden), x.new_empty(n, len(w2))
        limit, scale, block = threshold(p), 1 / (1 - p), max(1, BLOCK // hidden)
        scratch = x.new_empty(min(block, n), hidden)
        for h, rows, out in _blocks(block, hidden_NH, x_ND, out_ND):
            torch.addmm(b1, rows, w1.t(), out=h)
            kept = torch.ge(random_bytes(h.numel()).view(h.shape), limit, out=scratch[: len(h)])
            h.relu_().mul_(kept)
            torch.addmm(b2, h, w2.t(), alpha=scale, out=out)
        ctx.save_for_backward(x_ND, w1, w2, hidden_NH)
        ctx.scale, ctx.block, ctx.shape = scale, block, x.shape
        return out_ND.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, w1, w2, hidden_NH = ctx.saved_tensors
        n, scale, block = len(x_ND), ctx.scale, ctx.block
        g_ND = grads[0].reshape(n, -1)
        dx_ND, scratch = torch.empty_like(x_ND), w1.new_empty(min(block, n), len(w1))
        dw1, db1, dw2 = torch.zeros_like(w1), w1.new_zeros(len(w1)), torch.zeros_like(w2)
        for h, g, x, dx in _blocks(block, hidden_NH, g_ND, x_ND, dx_ND):
            dw2.addmm_(g.t(), h, alpha=scale)
            d_hidden = torch.mm(g, w2, out=scratch[: len(h)])
            torch.ops.aten.threshold_backward.grad_input(d_hidden, h, 0, grad_input=d_hidden)
            dw1.addmm_(d_hidden.t(), x, alpha=scale)
            db1 += d_hidden.sum(dim=0)
            torch.addmm(dx, d_hidden, w1, beta=0, alpha=scale, out=dx)
        return dx_ND.view(ctx.shape), dw1, db1.mul_(scale), dw2, g_ND.sum(dim=0), None


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
    """Linear (`w1` [H, D], `b1`), ReLU, dropout of `p`, linear (`w2` [D, H], `b2`) of `x` [..., D]."""
    return _FeedForward.apply(x, w1, b1, w2, b2, p)  # type: ignore[no-any-return,no-untyped-call]


def _bmm(a: Tensor, b: Tensor, factor: float, out: Tensor) -> Tensor:
    """`factor` · `a` @ `b` into `out`."""
    return torch.baddbmm(out, a, b, beta=0, alpha=factor, out=out)


class _Attention(torch.autograd.Function):
    """A block of matrices goes through all steps before the next begins; what the backward pass needs of their size is
    the softmax and the random numbers, and masks are made from these again."""

    @staticmethod
    def forward(ctx: Any, q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, mask_B11S: Tensor, p: float) -> Tensor:
        (b, t, h, d), s = q_BTHd.shape, k_BSHd.shape[1]
        n = b * h  # matrices, written N below
        q_NTd = q_BTHd.transpose(1, 2).reshape(n, t, d)
        k_NSd = k_BSHd.transpose(1, 2).reshape(n, s, d)
        v_NSd = v_BSHd.transpose(1, 2).reshape(n, s, d)
        bias = torch.zeros(mask_B11S.shape).masked_fill_(~mask_B11S, -math.inf)
        bias_N1S = bias.expand(b, h, 1, s).reshape(n, 1, s)
        draws, limit = random_bytes(n * t * s).view(n, t, s), threshold(p)
        temperature, scale = 1 / math.sqrt(d), 1 / (1 - p)
        weight, out = torch.empty(n, t, s), torch.empty(n, t, d)
        block = max(1, min(n, BLOCK // (t * s)))
        scratch = torch.empty(block, t, s)
        for bias, q, k, v, w, draw, o in _blocks(block, bias_N1S, q_NTd, k_NSd, v_NSd, weight, draws, out):
            torch.baddbmm(bias, q, k.transpose(1, 2), alpha=temperature, out=w)
            torch.softmax(w, -1, out=w)
            dropped = torch.ge(draw, limit, out=scratch[: len(w)]).mul_(w)
            _bmm(dropped, v, scale, o)
        ctx.save_for_backward(q_NTd, k_NSd, v_NSd, weight, draws)
        ctx.temperature, ctx.scale, ctx.limit, ctx.block = temperature, scale, limit, block
        return out.view(b, h, t, d).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_NTd, k_NSd, v_NSd, weight, draws = ctx.saved_tensors
        n, t, s = weight.shape
        block, limit, scale, temperature, heads = ctx.block, ctx.limit, ctx.scale, ctx.temperature, grads[0].shape[2]
        g_NTd = grads[0].transpose(1, 2).reshape(n, t, -1)
        dq, dk, dv = (torch.empty_like(x) for x in (q_NTd, k_NSd, v_NSd))
        scratch = torch.empty(3, block, t, s)
        for q, k, v, w, draw, g, q_grad, k_grad, v_grad in _blocks(
                block, q_NTd, k_NSd, v_NSd, weight, draws, g_NTd, dq, dk, dv):
            kept, d_scores, d_weight = (x[: len(w)] for x in scratch)
            dropped = torch.mul(torch.ge(draw, limit, out=kept), w, out=d_scores)
            _bmm(dropped.transpose(1, 2), g, scale, v_grad)
            _bmm(g, v.transpose(1, 2), scale, d_weight).mul_(kept)
            torch._softmax_backward_data(d_weight, w, -1, torch.float32, grad_input=d_scores)
            _bmm(d_scores, k, temperature, q_grad)
            _bmm(d_scores.transpose(1, 2), q, temperature, k_grad)
        return *(x.view(-1, heads, *x.shape[1:]).transpose(1, 2) for x in (dq, dk, dv)), None, None


def attention(q_BTHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, mask_B11S: Tensor, p: float) -> Tensor:
    """Scaled dot-product attention [B, T, H, d] with dropout of `p` on its weights. `mask_B11S`: True where a key may
    be attended to, for at least one key per row."""
    return _Attention.apply(q_BTHd, k_BSHd, v_BSHd, mask_B11S, p)  # type: ignore[no-any-return,no-untyped-call]
