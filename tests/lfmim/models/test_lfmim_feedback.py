"""LFMIM with feedback: LFMIM at 0, dependence above."""

from __future__ import annotations

import pytest
import torch

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL, InputError
from lfmim.training.loop import train
from tests.support.models import LENGTHS, build, inputs
from tests.support.toy import SPEC
from tests.support.two_workers import random_data


def trained(name, **fields):
    """History of a training with dropout, and the weights."""
    config = ModelConfig(
        name=name,
        d_model=16,
        num_heads=2,
        num_layers=3,
        max_text=8,
        max_audio=8,
        max_vision=8,
        **fields,
    )
    built = []
    meta = train(
        ExperimentConfig(store="-", model=config, train=TrainConfig(epochs=2, batch_size=8)),
        SPEC,
        random_data(SPEC, 24),
        random_data(SPEC, 12, seed=1),
        wrap=lambda m: built.append(m) or m,
    )
    return [e["valid"] for e in meta.history], built[0].state_dict()


def test_strength_0_is_lfmim_bit_by_bit():
    plain, weights = trained("lfmim")
    none, same = trained("lfmim-feedback", feedback=0.0)
    assert plain == none
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[k], same[k]) for k in weights)


@pytest.mark.parametrize("feedback", [0.25, 1, "learned"])
def test_uni_modal_heads_see_the_others_with_feedback(feedback):
    model = build(name="lfmim-feedback", feedback=feedback)
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits
    x["audio"] = x["audio"] + 1
    after = model(x, masks).logits
    assert all((before[h] - after[h]).abs().max() > 1e-6 for h in HEADS)


def test_learned_begins_at_1_and_is_learned():
    learned, fixed = (build(name="lfmim-feedback", feedback=f) for f in ("learned", 1.0))
    x, masks = inputs(LENGTHS)
    out = learned(x, masks).logits
    torch.testing.assert_close(out[MULTIMODAL], fixed(x, masks).logits[MULTIMODAL])
    sum(v.square().sum() for v in out.values()).backward()
    assert learned.gamma.shape == learned.gamma_bar.shape == (2, len(MODALITIES))
    assert learned.gamma.grad.all()
    assert learned.gamma_bar.grad.all()


@pytest.mark.parametrize("feedback", [-0.1, 1.5, float("nan"), "some"])
def test_a_strength_that_is_none_is_refused(feedback):
    with pytest.raises(InputError, match=r"model\.feedback"):
        ModelConfig(name="lfmim-feedback", feedback=feedback)
