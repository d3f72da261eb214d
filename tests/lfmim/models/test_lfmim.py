"""LFMIM against what the paper's architecture implies."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.models import build_model
from lfmim.models.layers import attention_mask
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, EncoderSpec, FeatureSpec, InputError
from lfmim.training.loop import train
from tests.support.models import DIMS, LENGTHS, SIZES, build, inputs
from tests.support.toy import EMOTIONS

POOLINGS = ["mean", "fex", "attention"]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("changed", [m.value for m in MODALITIES])
def test_a_modality_reaches_its_own_head_and_the_multimodal_one_only(pooling, changed):
    model = build(pooling=pooling)
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits
    x[changed] = (x[changed] + 1).requires_grad_()
    after = model(x, masks).logits
    for head in HEADS:
        (gradient,) = torch.autograd.grad(
            after[head].sum(), x[changed], retain_graph=True, allow_unused=True
        )
        if head in (changed, MULTIMODAL):
            assert (before[head] - after[head]).abs().max() > 1e-3
            assert gradient.abs().sum() > 0
        else:
            assert torch.equal(before[head], after[head])
            assert gradient is None or not gradient.any()


@pytest.mark.parametrize("with_alpha_bar", [False, True])
def test_multimodal_stack_by_hand(with_alpha_bar):
    """Ż_u^l = α_u^l Z_u^l + ᾱ_u^l Z̄_u^l; with ᾱ = 0 the stack sees only the uni-modal states and
    FEX."""
    model = build(fex_tokens=2)
    torch.nn.init.normal_(model.alpha)
    torch.nn.init.normal_(model.alpha_bar) if with_alpha_bar else torch.nn.init.zeros_(
        model.alpha_bar
    )
    x, masks = inputs(LENGTHS)

    states = {m: [model.inputs[m](x[m])] for m in MODALITIES}
    for m in MODALITIES:
        for layer in model.stacks[m]:
            states[m].append(layer(states[m][-1], attention_mask(masks[m])))
    valid = torch.cat([torch.ones(4, 2, dtype=torch.bool), *(masks[m] for m in MODALITIES)], dim=1)
    widths = [2, *(x[m].shape[1] for m in MODALITIES)]
    fex, z_bar = model.fex.expand(4, 2, -1), None
    for depth, layer in enumerate(model.stacks[MULTIMODAL]):
        fused = [model.alpha[depth, i] * states[m][depth] for i, m in enumerate(MODALITIES)]
        if with_alpha_bar and z_bar is not None:
            fused = [
                f + model.alpha_bar[depth - 1, i] * z
                for i, (f, z) in enumerate(zip(fused, z_bar, strict=True))
            ]
        fex, *z_bar = layer(torch.cat([fex, *fused], dim=1), valid[:, None, None]).split(
            widths, dim=1
        )
    last = model.norms[MULTIMODAL](torch.cat([fex, *z_bar], dim=1))
    pooled = torch.stack([row[keep].mean(dim=0) for row, keep in zip(last, valid, strict=True)])

    output = model(x, masks)
    torch.testing.assert_close(output.pooled[MULTIMODAL], pooled)
    torch.testing.assert_close(output.logits[MULTIMODAL], model.heads[MULTIMODAL](pooled))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_permuting_a_batch_permutes_the_outputs(pooling):
    model, (x, masks), order = build(pooling=pooling), inputs(LENGTHS), torch.tensor([2, 0, 3, 1])
    straight = model(x, masks).logits
    permuted = model(
        {m: v[order] for m, v in x.items()}, {m: v[order] for m, v in masks.items()}
    ).logits
    for head in HEADS:
        torch.testing.assert_close(straight[head][order], permuted[head])


per_sample = st.lists(st.integers(0, 5), min_size=3, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    text=per_sample,
    audio=per_sample,
    vision=per_sample,
    extra=st.tuples(*[st.integers(0, 6)] * 3),
    pooling=st.sampled_from(POOLINGS),
    scale=st.sampled_from([0.0, 1.0, 1000.0]),
)
def test_padding_changes_nothing(text, audio, vision, extra, pooling, scale):
    model = build(pooling=pooling)
    x, masks = inputs({"text": text, "audio": audio, "vision": vision})
    before = model(x, masks).logits
    for more, m in zip(extra, DIMS, strict=True):
        noise = scale * torch.randn(
            3, x[m].shape[1] + more, DIMS[m], generator=torch.Generator().manual_seed(9)
        )
        mask = torch.cat([masks[m], torch.zeros(3, more, dtype=torch.bool)], dim=1)
        noise[:, : x[m].shape[1]][masks[m]] = x[m][masks[m]]
        x[m], masks[m] = noise, mask
    after = model(x, masks).logits
    for head in HEADS:
        torch.testing.assert_close(before[head], after[head], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_absent_modality_is_ignored_and_everything_stays_finite(pooling):
    model = build(pooling=pooling)
    x, masks = inputs(LENGTHS)
    masks["vision"][:2] = False
    for m in MODALITIES:  # and one sample without anything
        masks[m][3] = False
    before = model(x, masks).logits[MULTIMODAL]
    x["vision"][:2] = 100
    x["audio"][3] = -100
    after = model(x, masks).logits
    torch.testing.assert_close(before, after[MULTIMODAL], atol=1e-6, rtol=1e-5)
    sum(v.square().sum() for v in after.values()).backward()
    assert all(v.isfinite().all() for v in after.values())
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_multimodal_loss_trains_the_unimodal_stacks():
    model = build()
    model(*inputs(LENGTHS)).logits[MULTIMODAL].square().sum().backward()
    for m in MODALITIES:
        assert model.inputs[m].conv.weight.grad.abs().sum() > 0
        # The last layer's output goes to the uni-modal head only: the m stack reads the l-th input
        # at its layer l.
        for depth, layer in enumerate(model.stacks[m]):
            gradient = layer.attention.qkv.weight.grad
            assert (gradient is None) == (depth == len(model.stacks[m]) - 1)
        assert model.heads[m][0].weight.grad is None


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_weight_is_dead(pooling):
    model = build(pooling=pooling).double()
    x, masks = inputs(LENGTHS)
    logits = model({m: v.double() for m, v in x.items()}, masks).logits
    sum(v.square().sum() for v in logits.values()).backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() < 1e-12]
    assert dead == []


def test_parameter_count_at_the_papers_sizes():
    d, layers, classes, widths = 128, 4, len(EMOTIONS), (768, 768, 512)
    projection = sum(w * d + d for w in widths)
    attention = 4 * (d * d + d)
    ffn = (d * 4 * d + 4 * d) + (4 * d * d + d)
    norm = 2 * d
    head = (d * d // 2 + d // 2) + (d // 2 * classes + classes)
    stack = layers * (attention + ffn + 2 * norm) + norm + head
    fusion = 3 * layers + 3 * (layers - 1)  # α, and ᾱ, which the first layer has no use for
    expected = projection + 4 * stack + d + fusion
    model = build_model(ModelConfig(), dict(zip(DIMS, widths, strict=True)))
    assert sum(p.numel() for p in model.parameters()) == expected
    assert 3.4e6 < expected < 3.7e6


def test_a_missing_width_is_named():
    with pytest.raises(InputError, match=r"'lft' needs every modality.*vision.*lfmim"):
        build_model(ModelConfig(**SIZES, name="lft"), {"text": 12, "audio": 10})
    with pytest.raises(InputError, match="text, audio, vision"):
        build_model(ModelConfig(**SIZES), {})


@pytest.mark.integration
def test_overfits_32_random_samples():
    g = torch.Generator().manual_seed(3)
    data = UtteranceTensors.from_padded(
        [str(i) for i in range(32)],
        {m: torch.randn(32, 4, DIMS[m], generator=g).half() for m in MODALITIES},
        {m: torch.randint(1, 5, (32,), generator=g) for m in MODALITIES},
        torch.randint(0, len(EMOTIONS), (32, len(HEADS)), generator=g),
    )
    config = ExperimentConfig(
        store="none",
        model=ModelConfig(
            **{**SIZES, "d_model": 32, "num_layers": 2},
            dropout_attention=0,
            dropout_ffn=0,
            dropout_embedding=0,
        ),
        train=TrainConfig(
            optimizer="adamw", lr=0.004, lr_scheduler="constant", epochs=50, batch_size=32
        ),
    )
    encoders = {
        m: EncoderSpec(name=m, revision="", weights_sha256=m, dim=d, max_length=0)
        for m, d in DIMS.items()
    }
    meta = train(config, FeatureSpec(encoders=encoders), data, data)
    assert {h: meta.history[-1]["valid"][h]["accuracy"] for h in HEADS} == dict.fromkeys(HEADS, 1.0)
