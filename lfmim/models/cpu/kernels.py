"""Dropout, attention and feed-forward with dropout, as a CPU trains fastest: float32, eager.

torch draws one Bernoulli number at a time and passes over attention's score matrices a dozen times;
together that was more than half of a training step. Here the loops of loops.py go through a row
while it is in the cache, and masks are computed from a seed, in the backward pass again. GPUs,
other dtypes and compiled code use torch's own (see functional.py).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**19
"""Hidden numbers of a feed-forward computed at a time: 2 MiB, so that all passes over them stay in
the cache."""
WORTH_SHARING = 2**17
"""Numbers below which a loop is one thread's: to wake another takes as long."""

_of_thread = threading.local()


def seed_thread(seed: int) -> None:
    """From here on this thread draws from a generator of its own, not from torch's, which all
    threads share."""
    _of_thread.generator = torch.Generator().manual_seed(seed)


def draw_seed() -> np.uint64:
    """Seed of one layer's mask, from the thread's or torch's generator."""
    return np.uint64(
        torch.randint(2**62, (), generator=getattr(_of_thread, "generator", None)).item()
    )


def applies(x: Tensor) -> bool:
    """Whether this file's functions take `x`."""
    # torch.compile cannot look into numba's loops, and those load float32 alone.
    return not torch.compiler.is_compiling() and x.device.type == "cpu" and x.dtype == torch.float32


def _mask(p: float) -> tuple[np.uint64, np.uint32, np.float32]:
    """What a mask is made from: seed, the uint32 below which a random number drops, the factor of
    what is kept."""
    # numpy's types, as numba compiles a loop anew for each type of argument. A p next to 1 would
    # round to 2^32, which uint32 does not hold.
    return draw_seed(), np.uint32(min(round(p * 2**32), 2**32 - 1)), np.float32(1 / (1 - p))


@functools.cache
def _loops() -> Any:
    """loops.py, when a CPU begins to train: a registered model predicts where numba is not
    installed."""
    from lfmim.models.cpu import loops

    return loops


@functools.cache
def pool(threads: int) -> ThreadPoolExecutor:
    """Threads that compute alone. torch's default for new threads, which their number changes, is
    put back."""

    def alone() -> None:
        # a thread's first use of torch sets the default, which would undo the next line
        torch.get_num_threads()
        torch.set_num_threads(1)

    executor = ThreadPoolExecutor(threads, initializer=alone)
    before = torch.get_num_threads()

    # An executor starts no thread while one is idle; held at a barrier they are all started, and
    # have all changed torch's default, before it is put back.
    barrier = threading.Barrier(threads)
    for started in [executor.submit(barrier.wait) for _ in range(threads)]:
        started.result()

    torch.set_num_threads(before)
    return executor


def _share_out(loop: Callable[..., None], *arguments: Any, rows: int, size: int) -> None:
    """`loop(*arguments, start, stop)` over `rows` rows, `size` numbers in all, by as many threads
    as torch has."""
    # A thread of the pool has one thread by torch's count, so a micro-batch that is computed in the
    # pool never waits for the pool.
    threads = min(torch.get_num_threads(), rows) if size >= WORTH_SHARING else 1
    if threads == 1:
        loop(*arguments, 0, rows)
        return

    bounds = [rows * i // threads for i in range(threads + 1)]
    # The loops run without Python's lock; list waits for them and raises what they raised.
    list(pool(threads).map(lambda start, stop: loop(*arguments, start, stop), bounds, bounds[1:]))


def _blocks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of `size` rows of each."""
    return zip(*(x.split(size) for x in tensors), strict=True)  # type: ignore[no-untyped-call]


def _flat(x: Tensor) -> Any:
    # A view where `x` lies in one piece, as the tensors made here do: outputs are written through
    # it. A copy elsewhere.
    return x.detach().numpy().ravel()


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float, residual: Tensor | None) -> Tensor:
        out = torch.empty(x.shape)
        ctx.mask, ctx.added = _mask(p), residual is not None
        # Threads take whole chunks, as each chunk has random numbers of its own: how many threads
        # there are does not change the mask.
        ctx.sharing = {"rows": -(-x.numel() // _loops().CHUNK), "size": x.numel()}

        loop = _loops().dropout if residual is None else _loops().dropout_add
        inputs = [_flat(x)] if residual is None else [_flat(x), _flat(residual)]
        _share_out(loop, *inputs, *ctx.mask, _flat(out), **ctx.sharing)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The same loop from the same seed: the mask is computed again, not kept.
        dx = torch.empty(grads[0].shape)
        _share_out(_loops().dropout, _flat(grads[0]), *ctx.mask, _flat(dx), **ctx.sharing)
        return dx, None, grads[0] if ctx.added else None


def dropout(x: Tensor, p: float, residual: Tensor | None = None) -> Tensor:
    """`x` with 0 in place of each number with probability `p`, the others times 1/(1-p); plus
    `residual` of its shape."""
    return _Dropout.apply(x, p, residual)  # type: ignore[no-any-return,no-untyped-call]


class _FeedForward(torch.autograd.Function):
    """Blocks of rows go through all steps before the next begins."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float
    ) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        n, hidden = len(x_ND), len(w1)
        hidden_NH, out_ND = x.new_empty(n, hidden), x.new_empty(n, len(w2))
        seed, limit, factor = _mask(p)
        block, bias = max(1, BLOCK // hidden), _flat(b1)

        for i, (h, rows, out) in enumerate(_blocks(block, hidden_NH, x_ND, out_ND)):
            # Without the bias, which the loop adds on its way over the block.
            torch.mm(rows, w1.t(), out=h)
            # Rows are numbered over all blocks, so the mask does not depend on the blocks' size.
            arguments = h.numpy(), bias, seed, limit, i * block
            _share_out(_loops().relu_dropout, *arguments, rows=len(h), size=h.numel())
            # Dropout's 1/(1-p) goes to the product, which has fewer numbers than the hidden layer.
            torch.addmm(b2, h, w2.t(), alpha=float(factor), out=out)

        # What dropout or ReLU made 0 is 0 in the hidden layer: no mask is kept beside it.
        ctx.save_for_backward(x_ND, w1, w2, hidden_NH)
        ctx.scale, ctx.block, ctx.shape = float(factor), block, x.shape
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
            # In place: 0 where the hidden layer is 0, be it by ReLU or by dropout.
            torch.ops.aten.threshold_backward.grad_input(d_hidden, h, 0, grad_input=d_hidden)
            dw1.addmm_(d_hidden.t(), x, alpha=scale)
            db1 += d_hidden.sum(dim=0)
            # With beta=0 addmm does not read dx, which is memory as it was found.
            torch.addmm(dx, d_hidden, w1, beta=0, alpha=scale, out=dx)
        return dx_ND.view(ctx.shape), dw1, db1.mul_(scale), dw2, g_ND.sum(dim=0), None


def feed_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, p: float) -> Tensor:
    """Linear (`w1` [H, D], `b1`), ReLU, dropout of `p`, linear (`w2` [D, H], `b2`) of `x` [...,
    D]."""
    return _FeedForward.apply(x, w1, b1, w2, b2, p)  # type: ignore[no-any-return,no-untyped-call]


def _heads(x_BTE: Tensor, channels: int) -> Any:
    x = x_BTE.detach().numpy()
    # The vector code takes the channels of a row to lie side by side. Outputs do already, so they
    # are views; a gradient that autograd expanded from one number does not.
    return np.ascontiguousarray(x).reshape(*x.shape[:2], -1, channels)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, kv: Tensor | None, mask_B11S: Tensor, num_heads: int, p: float
    ) -> Tensor:
        source = q if kv is None else kv
        d_model = source.shape[2] // (3 if kv is None else 2)
        b, t, s, ctx.channels = *q.shape[:2], source.shape[1], d_model // num_heads

        # Softmax's normaliser, one number a query, is all that is kept of the scores.
        out_BTD, log_sum_BHT = torch.empty(b, t, d_model), torch.empty(b, num_heads, t)
        valid_BS = mask_B11S.reshape(-1, s).contiguous().numpy()
        # Vaswani et al. 2017, eq. 1: scores are divided by the root of a head's width.
        ctx.settings = (valid_BS, *_mask(p), np.float32(1 / math.sqrt(ctx.channels)))
        # Threads take whole samples: every query adds to the gradients of its sample's keys.
        ctx.sharing = {"rows": b, "size": b * num_heads * t * s}

        q_BTHd, kv_BSHd, out_BTHd = (_heads(x, ctx.channels) for x in (q, source, out_BTD))
        _share_out(
            _loops().attention,
            q_BTHd,
            kv_BSHd,
            *ctx.settings,
            out_BTHd,
            log_sum_BHT.numpy(),
            **ctx.sharing,
        )
        ctx.save_for_backward(q, kv, out_BTD, log_sum_BHT)
        return out_BTD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, out_BTD, log_sum_BHT = ctx.saved_tensors
        # Zeros, as the loop writes no gradient for a masked key.
        dq = torch.zeros(q.shape)
        dkv = None if kv is None else torch.zeros(kv.shape)

        # In self-attention queries, keys and values are heads of one tensor, their gradients too.
        source = q if kv is None else kv
        dsource = dq if dkv is None else dkv
        q_BTHd, kv_BSHd, out_BTHd, grad_BTHd, dq_BTHd, dkv_BSHd = (
            _heads(x, ctx.channels) for x in (q, source, out_BTD, grads[0], dq, dsource)
        )
        _share_out(
            _loops().attention_backward,
            q_BTHd,
            kv_BSHd,
            *ctx.settings,
            out_BTHd,
            log_sum_BHT.numpy(),
            grad_BTHd,
            dq_BTHd,
            dkv_BSHd,
            **ctx.sharing,
        )
        return dq, dkv, None, None, None


def attention(q: Tensor, kv: Tensor | None, mask_B11S: Tensor, num_heads: int, p: float) -> Tensor:
    """Scaled dot-product attention [B, T, D] with dropout of `p` on its weights: queries `q` [B, T,
    D] over keys and values `kv` [B, S, 2D], or `q` [B, T, 3D] holds all three. `mask_B11S`: True
    where a key may be attended to, for at least one key per row."""
    out: Tensor = _Attention.apply(q, kv, mask_B11S, num_heads, p)  # type: ignore[no-untyped-call]
    return out
