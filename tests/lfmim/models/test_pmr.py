"""PMR by its equations, and the weights of the one before."""

from __future__ import annotations

import pytest
import torch

from lfmim.models.layers import attention_mask
from lfmim.schema import MODALITIES, MULTIMODAL, InputError
from tests.support.models import LENGTHS, build, inputs


def unit_by_hand(unit, target, target_mask, source, source_mask):
    """Pre-LN, the target's residual around both attentions, the gate on the two, pre-LN FFN."""
    t, s = unit.norm_target(target), unit.norm_source(source)
    own = target + unit.self_attention(t, target_mask)
    other = target + unit.cross_attention(t, s, source_mask)
    gate = torch.sigmoid(
        own @ unit.gate_self.weight.T + other @ unit.gate_cross.weight.T + unit.gate_cross.bias
    )
    h = gate * other + (1 - gate) * own
    return h + unit.ffn(unit.norm_ffn(h))


def test_heads_by_hand():
    model, (x, masks) = build(name="pmr", num_layers=2), inputs(LENGTHS)
    z = {m: model.inputs[m](x[m]) for m in MODALITIES}
    attend = {m: attention_mask(masks[m]) for m in MODALITIES}
    hub, valid = (
        torch.cat([z[m] for m in MODALITIES], dim=1),
        torch.cat([masks[m] for m in MODALITIES], dim=1),
    )
    for layer in model.layers:
        z = {
            m: unit_by_hand(layer.to_modality[m], z[m], attend[m], hub, attention_mask(valid))
            for m in MODALITIES
        }
        messages = [
            unit_by_hand(layer.to_hub[m], hub, attention_mask(valid), z[m], attend[m])
            for m in MODALITIES
        ]
        scores = torch.stack(
            [
                torch.stack([row[v].mean(dim=0) for row, v in zip(states, valid, strict=True)])
                @ layer.score.weight[0]
                for states in messages
            ]
        )
        hub = sum(
            w[:, None, None] * states for w, states in zip(scores.softmax(0), messages, strict=True)
        )
        hub = hub + layer.ffn(layer.norm_ffn(hub))
    joint = torch.cat([hub, *z.values()], dim=1)
    both = torch.cat([valid, valid], dim=1)
    pooled = torch.stack(
        [row[v].mean(dim=0) for row, v in zip(model.joint(joint, both), both, strict=True)]
    )
    out = model(x, masks)
    torch.testing.assert_close(out.logits[MULTIMODAL], model.heads[MULTIMODAL](pooled))
    text = model.norms["text"](z["text"])
    pooled = torch.stack([row[v].mean(dim=0) for row, v in zip(text, masks["text"], strict=True)])
    torch.testing.assert_close(out.logits["text"], model.heads["text"](pooled))


def test_weights_of_the_earlier_pmr_are_refused_with_the_reason():
    model = build(name="pmr")
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("joint")}
    weights |= {"layers.0.norm.weight": torch.ones(16)}
    with pytest.raises(InputError, match=r"earlier PMR.*no residual.*train it again"):
        model.load_state_dict(weights)
    model.load_state_dict(build(name="pmr", seed=1).state_dict())
