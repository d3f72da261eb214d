"""LFMIM with linear paths beside it."""

from __future__ import annotations

import pytest
import torch

from lfmim.models.lfmim_wide import TRUST
from lfmim.schema import MODALITIES, MULTIMODAL
from tests.support.models import LENGTHS, build, inputs

UNI = [m.value for m in MODALITIES]


def test_begins_as_lfmim_and_half_of_what_its_uni_modal_heads_say():
    # The paths draw nothing, or one seed would give two networks.
    wide, plain = build(name="lfmim-wide"), build(name="lfmim")
    out, expected = wide(*inputs(LENGTHS)), plain(*inputs(LENGTHS))
    for head in UNI:
        torch.testing.assert_close(out.logits[head], expected.logits[head])
    said = sum(expected.logits[u].log_softmax(dim=1) for u in UNI)
    torch.testing.assert_close(out.logits[MULTIMODAL], expected.logits[MULTIMODAL] + TRUST * said)


def test_uni_modal_heads_stay_independent():
    model = build(name="lfmim-wide")
    with torch.no_grad():
        for weight in model.linear.parameters():
            weight.normal_()
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits
    x["audio"] = x["audio"] + 1
    after = model(x, masks).logits
    same = {h: torch.equal(before[h], after[h]) for h in before}
    assert same == {"text": True, "audio": False, "vision": True, MULTIMODAL: False}


@pytest.mark.parametrize("standardize", [False, True])
def test_the_linear_path_reads_the_mean_of_what_the_front_end_reads(standardize):
    model = build(name="lfmim-wide", standardize=standardize)
    x, masks = inputs(LENGTHS)
    front, path = model.inputs["audio"], model.linear["audio"]
    front.mean.normal_()
    front.scale.uniform_(0.5, 2)
    before = model(x, masks).logits["audio"]
    with torch.no_grad():
        path.weight.normal_()
    added = model(x, masks).logits["audio"] - before

    read = (x["audio"] - front.mean) * front.scale if standardize else x["audio"]
    means = torch.stack(
        [row[valid].mean(dim=0) for row, valid in zip(read, masks["audio"], strict=True)]
    )
    torch.testing.assert_close(added, means @ path.weight.T, rtol=1e-4, atol=1e-5)


def test_an_absent_modality_adds_nothing_to_the_multimodal_head():
    model = build(name="lfmim-wide", standardize=True)
    with torch.no_grad():
        for weight in model.linear.parameters():
            weight.normal_()
    x, masks = inputs(LENGTHS)
    masks["vision"] = torch.zeros_like(masks["vision"])
    before = model(x, masks).logits[MULTIMODAL]
    with torch.no_grad():
        model.linear["vision"].weight.normal_()
        model.inputs["vision"].mean.normal_()
    assert torch.equal(before, model(x, masks).logits[MULTIMODAL])
