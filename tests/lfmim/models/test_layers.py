"""The CPU's hand-written dropout and attention against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lfmim.models.layers import Dropout, attend, attention_mask, keep_mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_keep_mask_drops_the_right_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    n = 200_003  # no multiple of four
    mask = keep_mask(torch.empty(n), p)
    assert sorted(set(mask.tolist())) == pytest.approx([0.0, 1 / (1 - p)])
    deviation = (p * (1 - p) / n) ** 0.5
    assert (mask == 0).double().mean().item() == pytest.approx(p, abs=5 * deviation + 2**-16)
    shifted = [((mask[:-k] == 0) & (mask[k:] == 0)).double().mean().item() for k in (1, 2, 4)]
    assert shifted == pytest.approx([p * p] * 3, abs=0.01)  # neighbours cut from one number are independent
    torch.manual_seed(0)
    assert torch.equal(keep_mask(torch.empty(n), p), mask)


def test_dropout_is_off_outside_training():
    x = torch.randn(50)
    layer = Dropout(0.5)
    assert (layer(x) == 0).any()
    assert layer.eval()(x) is x


def test_attention_with_dropout_equals_torchs_for_the_same_mask(monkeypatch):
    q, k, v = (torch.randn(3, 2, t, 4, requires_grad=True) for t in (5, 7, 7))
    valid = torch.tensor([[1] * 7, [1, 1, 1, 0, 0, 0, 0], [0] * 7]).bool()
    mask = attention_mask(valid)
    keep = torch.rand(6, 5, 7).round() * 2
    monkeypatch.setattr("lfmim.models.layers.keep_mask", lambda like, p: keep)
    got = attend(q, k, v, mask, 0.5)
    weight = (q @ k.transpose(-2, -1) / 2).masked_fill(~mask, float("-inf")).softmax(-1) * keep.view(3, 2, 5, 7)
    torch.testing.assert_close(got, weight @ v)
    for a, b in zip(torch.autograd.grad(got.sum(), (q, k, v)), torch.autograd.grad((weight @ v).sum(), (q, k, v)),
                    strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(attend(q, k, v, mask, 0.0), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
