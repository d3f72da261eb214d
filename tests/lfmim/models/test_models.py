"""What every model must keep, whatever its architecture."""

from __future__ import annotations

import pytest
import torch
from conftest import DIMS, SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lfmim import LENGTHS, build, inputs

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.models import MODELS
from lfmim.models.tfn import RANK
from lfmim.schema import EMOTIONS, HEADS, MODALITIES, MULTIMODAL, InputError
from lfmim.training.loop import train

NAMES = sorted(MODELS)
lengths = st.lists(st.integers(1, 6), min_size=2, max_size=2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pooling", ["mean", "fex", "attention"])
def test_heads_shapes_and_no_dead_weight(name, pooling):
    model = build(name=name, pooling=pooling)
    out = model(*inputs(LENGTHS))
    assert tuple(h for h in HEADS if h in out.logits) == tuple(h for h in HEADS if h in model.answers)
    assert all(x.shape == (4, len(EMOTIONS)) for x in out.logits.values())
    sum(x.square().sum() for x in out.logits.values()).backward()
    dead = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not dead


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changed", [m.value for m in MODALITIES])
def test_the_multimodal_head_depends_on_every_modality(name, changed):
    model = build(name=name)
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits[MULTIMODAL]
    x[changed] = x[changed] + 1
    assert (model(x, masks).logits[MULTIMODAL] - before).abs().max() > 1e-5


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(text=lengths, audio=lengths, vision=lengths, extra=st.integers(1, 4), scale=st.sampled_from([1.0, 100.0]))
def test_padding_never_changes_a_logit(name, text, audio, vision, extra, scale):
    model = build(name=name)
    x, masks = inputs({"text": text, "audio": audio, "vision": vision})
    before = model(x, masks).logits
    for m in MODALITIES:
        b, _, d = x[m].shape
        x[m] = torch.cat([x[m] * masks[m][..., None], scale * torch.randn(b, extra, d)], dim=1)
        masks[m] = torch.cat([masks[m], torch.zeros(b, extra, dtype=torch.bool)], dim=1)
    after = model(x, masks).logits
    for h, logits in before.items():
        torch.testing.assert_close(after[h], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_a_batch_permutes_the_outputs(name):
    model = build(name=name)
    x, masks = inputs(LENGTHS)
    order = torch.tensor([2, 0, 3, 1])
    before = model(x, masks).logits
    after = model({m: v[order] for m, v in x.items()}, {m: v[order] for m, v in masks.items()}).logits
    for h, logits in before.items():
        torch.testing.assert_close(after[h], logits[order])


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_modality_keeps_everything_finite(name):
    out = build(name=name)(*inputs({**LENGTHS, "audio": [4, 0, 2, 0]}))
    assert all(x.isfinite().all() for x in out.logits.values())


def test_tfn_and_lmf_by_hand():
    x, masks = inputs(LENGTHS)
    tfn, lmf = build(name="tfn"), build(name="lmf")
    for row in range(4):
        z = {}
        for m in MODALITIES:
            n = int(masks[m][row].sum())
            z[m] = tfn.inputs[m](x[m][row : row + 1, :n])[0].mean(dim=0)
        one = [torch.cat([torch.ones(1), tfn.reduce[m](z[m])]) for m in MODALITIES]
        cube = torch.stack([a * b * c for a in one[0] for b in one[1] for c in one[2]])
        assert cube.numel() == (RANK + 1) ** 3
        torch.testing.assert_close(tfn(x, masks).logits[MULTIMODAL][row], tfn.head(tfn.fusion(cube)), rtol=1e-4,
                                   atol=1e-5)
        h = lmf.bias.clone()
        for r in range(4):
            product = torch.ones(16)
            for m in MODALITIES:
                n = int(masks[m][row].sum())
                pooled = lmf.inputs[m](x[m][row : row + 1, :n])[0].mean(dim=0)
                product = product * (torch.cat([torch.ones(1), pooled]) @ lmf.factors[m][r])
            h = h + lmf.rank_weight[0, r] * product
        torch.testing.assert_close(lmf(x, masks).logits[MULTIMODAL][row], lmf.head(h), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_learns(name):
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, len(EMOTIONS), (32, len(HEADS)), generator=g)
    data = UtteranceTensors(
        [str(i) for i in range(32)], {m: torch.randn(32, 4, DIMS[m], generator=g).half() for m in MODALITIES},
        {m: torch.randint(2, 5, (32,), generator=g) for m in MODALITIES}, labels)
    model = ModelConfig(name=name, width=32, heads=4, layers=2, max_text=8, max_audio=8, max_vision=8,
                        dropout_attention=0, dropout_ffn=0, dropout_embedding=0)
    recipe = TrainConfig(optimizer="adamw", lr=0.003, schedule="constant", epochs=80, batch_size=16)
    meta = train(ExperimentConfig(store="-", model=model, train=recipe), SPEC, data, data)
    assert meta.best_score > 0.9
    assert meta.history[-1]["valid"][MULTIMODAL]["loss"] < 0.5 * meta.history[0]["valid"][MULTIMODAL]["loss"]


def test_a_head_that_is_not_there_cannot_select():
    data = UtteranceTensors(["a"], {m: torch.zeros(1, 1, DIMS[m]).half() for m in MODALITIES},
                            {m: torch.ones(1, dtype=torch.long) for m in MODALITIES}, torch.zeros(1, 4).long())
    config = ExperimentConfig(store="-", model=ModelConfig(name="eft"), train=TrainConfig(selection="text"))
    with pytest.raises(InputError, match="eft has no head 'text'"):
        train(config, SPEC, data, data)


def test_multimodal_labels_replace_the_others_where_the_modality_is_there():
    labels = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    lengths = {m: torch.tensor([1, 1]) for m in MODALITIES}
    lengths[MODALITIES[1]] = torch.tensor([1, 0])
    data = UtteranceTensors(["a", "b"], {m: torch.zeros(2, 1, 2) for m in MODALITIES}, lengths, labels)
    assert data.with_multimodal_labels().labels.tolist() == [[3, 3, 3, 3], [0, -100, 0, 0]]
    assert data.labels[0, 0] == 0
