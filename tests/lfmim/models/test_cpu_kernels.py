"""The CPU's hand-written dropout, attention and feed-forward against torch's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from lfmim.models import cpu_kernels
from lfmim.models.layers import Dropout, FeedForward, attend, attention_mask


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_dropout_drops_the_right_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n, calls = 20_003, 200  # no multiple of eight; p · 256 is rounded anew in every call
    x = torch.ones(n, requires_grad=True)
    all_of = torch.stack([cpu_kernels.dropout(x, p) for _ in range(calls)])
    dropped = (all_of == 0).double()
    assert sorted(set(all_of.flatten().tolist())) == pytest.approx([0.0, 1 / (1 - p)])
    deviation = (p * (1 - p) / (n * calls) + 1 / (4 * 256**2 * calls)) ** 0.5
    assert dropped.mean().item() == pytest.approx(p, abs=5 * deviation)
    shifted = [(dropped[:, :-k] * dropped[:, k:]).mean().item() for k in (1, 2, 4, 8)]
    assert shifted == pytest.approx([p * p] * 4, abs=0.002)  # neighbours cut from one number are independent
    torch.manual_seed(0)
    again = cpu_kernels.dropout(x, p)
    assert torch.equal(again, all_of[0])
    again.sum().backward()
    assert torch.equal(x.grad, again)


def test_bytes_are_uniform_and_follow_torchs_seed():
    torch.manual_seed(3)
    drawn = cpu_kernels.random_bytes(2**20 + 3)
    counts = torch.bincount(drawn.long() + 128, minlength=256).double()
    expected = len(drawn) / 256
    assert len(counts) == 256
    assert ((counts - expected).square() / expected).sum() < 350  # chi-square, 255 degrees of freedom: p < 1e-4
    assert not torch.equal(cpu_kernels.random_bytes(len(drawn)), drawn)
    torch.manual_seed(3)
    assert torch.equal(cpu_kernels.random_bytes(len(drawn)), drawn)


def test_dropout_is_off_outside_training():
    x = torch.randn(50)
    layer = Dropout(0.5)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x


@pytest.mark.parametrize("block", [1, 80, 2**19])
def test_attention_with_dropout_equals_torchs_for_the_same_mask(monkeypatch, block):
    q, k, v = (torch.randn(3, t, 2, 4, requires_grad=True) for t in (5, 7, 7))
    valid = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()
    mask = attention_mask(valid)
    drawn = torch.randint(-128, 128, (6 * 5 * 7,), dtype=torch.int8)
    monkeypatch.setattr(cpu_kernels, "random_bytes", lambda n: drawn)
    monkeypatch.setattr(cpu_kernels, "BLOCK", block)  # one matrix at a time, two (and a rest), all
    got = attend(q, k, v, mask, 0.5)
    keep = (drawn >= 0).float().view(3, 2, 5, 7) * 2
    score = q.transpose(1, 2) @ k.transpose(1, 2).transpose(-2, -1) / 2
    weight = score.masked_fill(~mask, float("-inf")).softmax(-1) * keep
    want = (weight @ v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(got, want)
    direction = torch.randn(got.shape)
    for a, b in zip(torch.autograd.grad(got, (q, k, v), direction), torch.autograd.grad(want, (q, k, v), direction),
                    strict=True):
        torch.testing.assert_close(a, b)
    plain = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask, 0.0), plain.transpose(1, 2))


@pytest.mark.parametrize("block", [1, 80, 2**19])
def test_feed_forward_with_dropout_equals_torchs_for_the_same_mask(monkeypatch, block):
    torch.manual_seed(0)
    layer = FeedForward(6, 4, 0.5)
    torch.nn.init.normal_(layer[0].bias)
    x = torch.randn(3, 5, 6, requires_grad=True)
    drawn = torch.randint(-128, 128, (15 * 24,), dtype=torch.int8)
    left = drawn.clone()

    def draw(n: int) -> torch.Tensor:
        nonlocal left
        now, left = left[:n], left[n:]
        return now

    monkeypatch.setattr(cpu_kernels, "random_bytes", draw)
    monkeypatch.setattr(cpu_kernels, "BLOCK", block)  # one row at a time, three, all
    got = layer(x)
    assert not len(left)
    keep = (drawn >= 0).float().view(3, 5, 24) * 2
    want = layer[3](layer[0](x).relu() * keep)
    torch.testing.assert_close(got, want)
    direction, inputs = torch.randn(got.shape), (x, *layer.parameters())
    for a, b in zip(torch.autograd.grad(got, inputs, direction), torch.autograd.grad(want, inputs, direction),
                    strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_adds_the_residual():
    x, residual = torch.randn(2, 40, requires_grad=True), torch.randn(2, 40, requires_grad=True)
    torch.manual_seed(1)
    dropped = Dropout(0.5)(x)
    torch.manual_seed(1)
    out = Dropout(0.5)(x, residual)
    torch.testing.assert_close(out, dropped + residual)
    for a, b in zip(torch.autograd.grad(out.square().sum(), (x, residual)),
                    torch.autograd.grad((dropped + residual).square().sum(), (x, residual)), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(Dropout(0.5).eval()(x, residual), residual + x)


def test_a_seeded_thread_draws_its_own_numbers():
    def draw(seed: int) -> torch.Tensor:
        cpu_kernels.seed_thread(seed)
        return cpu_kernels.random_bytes(64)

    with ThreadPoolExecutor(1) as pool:
        first, other, again = (pool.submit(draw, seed).result() for seed in (1, 2, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    mine = cpu_kernels.random_bytes(64)  # this thread was not seeded
    torch.manual_seed(0)
    assert torch.equal(mine, cpu_kernels.random_bytes(64))
