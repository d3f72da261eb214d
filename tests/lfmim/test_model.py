"""The consequences of the paper's architecture that a test can hold the model to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.config import ModelConfig
from lfmim.models import build_model
from lfmim.schema import EMOTIONS, HEADS, MODALITIES, MULTIMODAL

DIMS = {"text": 12, "audio": 10, "vision": 8}
SMALL = ModelConfig(width=16, heads=4, layers=3, max_text=16, max_audio=16, max_vision=16)


def make(config=SMALL, batch=4, length=6, seed=0):
    torch.manual_seed(seed)
    model = build_model(config, DIMS).eval()
    x = {m.value: torch.randn(batch, length, DIMS[m]) for m in MODALITIES}
    masks = {m.value: torch.ones(batch, length, dtype=torch.bool) for m in MODALITIES}
    masks["audio"][:, 4:] = False
    return model, x, masks


@pytest.mark.parametrize("pooling", ["mean", "fex", "attention"])
@pytest.mark.parametrize("other", MODALITIES)
def test_modality_independence(pooling, other):
    model, x, masks = make(ModelConfig(width=16, heads=4, layers=3, pooling=pooling))
    before = model(x, masks).logits
    x = {**x, other.value: (x[other] + torch.randn_like(x[other])).requires_grad_()}
    after = model(x, masks).logits
    for head in HEADS:
        same = head not in (other.value, MULTIMODAL)
        assert torch.equal(before[head], after[head]) == same, head
        (gradient,) = torch.autograd.grad(after[head].sum(), x[other], retain_graph=True, allow_unused=True)
        assert (gradient is None or bool((gradient == 0).all())) == same, head


def test_without_alpha_bar_the_multimodal_stack_sees_only_unimodal_states_and_fex():
    model, x, masks = make()
    torch.nn.init.zeros_(model.alpha_bar)
    seen = []
    for layer in model.stacks[MULTIMODAL]:
        layer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    states = {m: [] for m in MODALITIES}
    for m in MODALITIES:
        for layer in model.stacks[m]:
            layer.register_forward_pre_hook(lambda _m, args, m=m: states[m].append(args[0]))
    model(x, masks)
    for depth, got in enumerate(seen):
        expected = torch.cat([model.alpha[depth, i] * states[m][depth] for i, m in enumerate(MODALITIES)], dim=1)
        assert torch.equal(got[:, 1:], expected)


def test_multimodal_loss_reaches_the_unimodal_stacks_and_no_weight_is_dead():
    model, x, masks = make()
    model(x, masks).logits[MULTIMODAL].square().sum().backward()
    for m in MODALITIES:
        assert model.inputs[m].conv.weight.grad.abs().sum() > 0
    model.zero_grad()
    sum(v.square().sum() for v in model(x, masks).logits.values()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_permuting_a_batch_permutes_the_outputs():
    model, x, masks = make()
    order = torch.tensor([2, 0, 3, 1])
    a, b = model(x, masks).logits, model({k: v[order] for k, v in x.items()}, {k: v[order] for k, v in masks.items()})
    for head in HEADS:
        torch.testing.assert_close(a[head][order], b.logits[head])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), st.sampled_from([m.value for m in MODALITIES]),
       st.sampled_from(["mean", "fex", "attention"]))
def test_padding_changes_nothing(length, extra, modality, pooling):
    model, x, masks = make(ModelConfig(width=16, heads=4, layers=2, pooling=pooling, max_audio=16, max_vision=16))
    x[modality] = x[modality][:, :length]
    masks[modality] = torch.ones(4, length, dtype=torch.bool)
    before = model(x, masks).logits
    x[modality] = torch.cat([x[modality], 50 * torch.randn(4, extra, DIMS[modality])], dim=1)
    masks[modality] = torch.cat([masks[modality], torch.zeros(4, extra, dtype=torch.bool)], dim=1)
    after = model(x, masks).logits
    for head in HEADS:
        torch.testing.assert_close(before[head], after[head], atol=1e-5, rtol=1e-4)


def test_an_absent_modality_is_ignored_and_stays_finite():
    model, x, masks = make()
    masks["vision"][:2] = False
    before = model(x, masks).logits
    x["vision"] = x["vision"].clone()
    x["vision"][:2] = 100 * torch.randn(2, 6, DIMS["vision"])
    after = model(x, masks).logits
    torch.testing.assert_close(before[MULTIMODAL], after[MULTIMODAL])
    sum(v.sum() for v in after.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_parameter_count_of_the_paper_sizes():
    d, layers = 128, 4
    model = build_model(ModelConfig(), {"text": 768, "audio": 768, "vision": 512})
    layer = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 2 * 2 * d
    head = (d * d // 2 + d // 2) + (d // 2 * len(EMOTIONS) + len(EMOTIONS))
    projections = (768 + 768 + 512) * d + 3 * d
    expected = 4 * (layers * layer + 2 * d + head) + projections + d + layers * 3 + (layers - 1) * 3
    assert sum(p.numel() for p in model.parameters()) == expected == 3_470_897
