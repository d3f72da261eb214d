"""The CPU's own dropout, attention and feed-forward against torch's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
import torch

from lfmim.models.cpu import kernels, loops
from lfmim.models.functional import attention
from lfmim.models.layers import Dropout, FeedForward, attention_mask


@pytest.fixture
def one_seed(monkeypatch):
    """Every mask comes from the same seed."""
    monkeypatch.setattr(kernels, "draw_seed", lambda: np.uint64(7))


@pytest.fixture
def three_threads(monkeypatch):
    """Three threads, whatever the size."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(kernels, "WORTH_SHARING", 0)
    yield
    torch.set_num_threads(before)


def same_gradients(got, want, inputs):
    direction = torch.randn(got.shape)
    for a, b in zip(
        torch.autograd.grad(got, inputs, direction),
        torch.autograd.grad(want, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_drops_the_right_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n, calls = 20_003, 200  # five chunks, the last one short
    x = torch.ones(n, requires_grad=True)
    all_of = torch.stack([kernels.dropout(x, p) for _ in range(calls)])
    dropped = (all_of == 0).double()
    assert sorted(set(all_of.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - p)])
    assert dropped.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / (n * calls)) ** 0.5)
    shifted = [(dropped[:, :-k] * dropped[:, k:]).mean().item() for k in (1, 2, 16, loops.CHUNK)]
    # neighbours, lanes and chunks are independent
    assert shifted == pytest.approx([p * p] * 4, abs=0.002)
    # and so are calls
    assert (dropped[:-1] * dropped[1:]).mean().item() == pytest.approx(p * p, abs=0.002)
    torch.manual_seed(0)
    again = kernels.dropout(x, p)
    assert torch.equal(again, all_of[0])
    again.sum().backward()
    assert torch.equal(x.grad, again)


def test_random_numbers_are_uniform():
    @numba.njit
    def fill(out, key, row_key, random):
        for i in range(out.shape[0]):
            row = row_key(key, i)
            for j in range(out.shape[1]):
                out[i, j] = random(row, j)

    drawn = np.empty((1024, 1024), dtype=np.uint32)
    fill(drawn, np.uint64(3), loops._row_key, loops._random)
    for byte in (
        drawn & 255,
        drawn >> 24,
        (drawn[1:] ^ drawn[:-1]) >> 24,
        (drawn[:, 1:] ^ drawn[:, :-1]) >> 24,
    ):
        counts = np.bincount(byte.ravel(), minlength=256)
        expected = byte.size / 256
        # chi-square, 255 degrees of freedom: p < 1e-4
        assert ((counts - expected) ** 2 / expected).sum() < 350


def test_dropout_is_off_outside_training():
    x = torch.randn(50)
    layer = Dropout(0.5)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x


def kept(q, kv, mask, num_heads, channels):
    """Attention's dropout mask [B, H, T, S], read off its output for values that single a key
    out."""
    keys = (q if kv is None else kv).shape[1]
    masks = []
    for j in range(keys):
        values = torch.zeros(len(q), keys, num_heads, channels)
        values[:, j, :, 0] = 1
        single = torch.cat(
            [(q if kv is None else kv)[..., : -num_heads * channels], values.flatten(2)], dim=2
        )
        out = attention(*((single, None) if kv is None else (q, single)), mask, num_heads, 0.5)
        masks.append(out.unflatten(2, (num_heads, channels))[..., 0].transpose(1, 2) != 0)
    return torch.stack(masks, dim=3)


@pytest.mark.parametrize(
    ("t", "s", "num_heads", "channels"),
    [(7, None, 2, 4), (5, 9, 2, 4), (1, 33, 3, 16), (18, None, 1, 6), (4, 16, 2, 20)],
)
@pytest.mark.usefixtures("one_seed")
def test_attention_with_dropout_equals_torchs_for_the_same_mask(t, s, num_heads, channels):
    torch.manual_seed(0)
    d_model, keys = num_heads * channels, s or t
    q = torch.randn(4, t, d_model if s else 3 * d_model, requires_grad=True)
    kv = torch.randn(4, s, 2 * d_model, requires_grad=True) if s else None
    valid = torch.rand(4, keys) < 0.6  # also with gaps
    valid[0], valid[1] = True, False  # nothing valid: attends everywhere
    mask = attention_mask(valid)
    got = attention(q, kv, mask, num_heads, 0.5)
    inputs = [q] if kv is None else [q, kv]
    parts = q.chunk(3, dim=2) if kv is None else (q, *kv.chunk(2, dim=2))
    a, b, c = (x.unflatten(2, (num_heads, channels)).transpose(1, 2) for x in parts)
    weight = (a @ b.transpose(2, 3) / channels**0.5).masked_fill(~mask, float("-inf")).softmax(-1)
    keep = kept(q.detach(), None if kv is None else kv.detach(), mask, num_heads, channels)
    allowed = mask.expand(keep.shape)
    assert not keep[~allowed].any()
    assert keep[allowed].double().mean().item() == pytest.approx(
        0.5, abs=4 * 0.5 / allowed.sum().item() ** 0.5
    )
    want = ((weight * keep * 2) @ c).transpose(1, 2).flatten(2)
    torch.testing.assert_close(got, want)
    same_gradients(got, want, inputs)
    torch.testing.assert_close(
        attention(q, kv, mask, num_heads, 0.0), (weight @ c).transpose(1, 2).flatten(2)
    )


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_attention_stands_large_scores(scale):
    torch.manual_seed(0)
    q = (scale * torch.randn(2, 20, 24)).requires_grad_()
    mask = attention_mask(torch.ones(2, 20, dtype=torch.bool))
    got = attention(q, None, mask, 2, 1e-9)  # next to no dropout: none of 1,600 weights
    want = attention(q, None, mask, 2, 0.0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * scale)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), q))


@pytest.mark.parametrize("block", [1, 80, 2**19])
@pytest.mark.usefixtures("one_seed")
def test_feed_forward_with_dropout_equals_torchs_for_the_same_mask(monkeypatch, block):
    torch.manual_seed(0)
    layer = FeedForward(6, 24, 0.5)
    torch.nn.init.normal_(layer[0].bias)
    x = torch.randn(3, 5, 6, requires_grad=True)
    monkeypatch.setattr(kernels, "BLOCK", block)  # one row at a time, three, all
    got = layer(x)
    ones = torch.ones(24)  # through an identity the hidden layer shows itself
    keep = kernels.feed_forward(x.detach(), torch.zeros(24, 6), ones, torch.eye(24), 0 * ones, 0.5)
    assert set(keep.flatten().tolist()) == {0.0, 2.0}
    want = layer[3](layer[0](x).relu() * keep)
    torch.testing.assert_close(got, want)
    same_gradients(got, want, (x, *layer.parameters()))


def test_dropout_adds_the_residual():
    x, residual = torch.randn(2, 40, requires_grad=True), torch.randn(2, 40, requires_grad=True)
    torch.manual_seed(1)
    dropped = Dropout(0.5)(x)
    torch.manual_seed(1)
    out = Dropout(0.5)(x, residual)
    torch.testing.assert_close(out, dropped + residual)
    for a, b in zip(
        torch.autograd.grad(out.square().sum(), (x, residual)),
        torch.autograd.grad((dropped + residual).square().sum(), (x, residual)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert torch.equal(Dropout(0.5).eval()(x, residual), residual + x)


def everything(x):
    """Output and gradient of all three, one after the other."""
    torch.manual_seed(0)
    layer = FeedForward(24, 48, 0.3)
    mask = attention_mask(torch.ones(x.shape[:2], dtype=torch.bool))
    y = Dropout(0.3)(layer(attention(x.repeat(1, 1, 3), None, mask, 2, 0.3)), x)
    return y, *torch.autograd.grad(y.square().sum(), x)


def test_threads_change_nothing(request):
    x = torch.randn(5, 50, 24, requires_grad=True)
    alone = everything(x)
    request.getfixturevalue("three_threads")
    for a, b in zip(alone, everything(x), strict=True):
        # torch's own products may differ in the last bits
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_nan_comes_through():
    x = torch.randn(2, 20, 24)
    x[0, 3, 5] = float("nan")
    mask = attention_mask(torch.ones(2, 20, dtype=torch.bool))
    for y in (
        attention(x.repeat(1, 1, 3), None, mask, 2, 0.1),
        FeedForward(24, 48, 0.1)(x),
        Dropout(0.1)(x * x[0, 3, 5]),
    ):
        assert y[0].isnan().any()


def test_a_seeded_thread_draws_its_own_numbers():
    def draw(seed: int) -> np.uint64:
        kernels.seed_thread(seed)
        return kernels.draw_seed()

    with ThreadPoolExecutor(1) as pool:
        first, other, again = (pool.submit(draw, seed).result() for seed in (1, 2, 1))
    assert first == again != other
    torch.manual_seed(0)
    mine = kernels.draw_seed()  # this thread was not seeded
    torch.manual_seed(0)
    assert mine == kernels.draw_seed()


def test_loops_are_compiled_where_nothing_can_be_written(monkeypatch):
    real = numba.njit

    def njit(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert loops.compiled(lambda x: x + 1)(1) == 2
