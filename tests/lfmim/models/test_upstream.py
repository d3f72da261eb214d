"""The published code's architecture, against its stored logits and what they imply."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lfmim.convert.published import read_published
from lfmim.models import build_model
from lfmim.models.upstream import positions_from_one
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL
from tests.support.models import LENGTHS, build, inputs
from tests.support.toy import ROOT

UPSTREAM = ROOT.parent / "shared" / "upstream"


@pytest.mark.skipif(
    not UPSTREAM.is_dir(), reason="the published checkpoint (../shared/upstream) is not here"
)
def test_logits_of_the_published_code():
    imported = read_published(UPSTREAM / "upstream_tiny.pth", num_heads=4)
    model = build_model(imported.config, imported.spec.dims).eval()
    model.load_state_dict({**model.state_dict(), **imported.weights})
    with np.load(UPSTREAM / "upstream_tiny_io.npz") as io:
        x = {m.value: torch.from_numpy(io[m]).float() for m in MODALITIES}
        wanted = torch.from_numpy(io["logits"])
    with torch.inference_mode():
        logits = model(
            x, {m: torch.ones(v.shape[:2], dtype=torch.bool) for m, v in x.items()}
        ).logits
    torch.testing.assert_close(
        torch.stack([logits[h] for h in HEADS], dim=1), wanted, rtol=0, atol=1e-5
    )


def test_positions_by_hand():
    table = positions_from_one(3, 8)
    assert table[0].tolist() == [0.0] * 8
    for i in (1, 3):
        angles = [i * math.exp(-k * math.log(10000) / 3) for k in range(4)]
        want = [*(math.sin(a) for a in angles), *(math.cos(a) for a in angles)]
        assert table[i].tolist() == pytest.approx(want, abs=1e-6)


def test_a_zero_in_the_first_channel_gets_no_position():
    start = build(name="upstream").starts["text"].eval()
    start.norm_before = torch.nn.Identity()
    x = torch.randn(1, 12, 16)
    x[0, 4, 0] = 0
    summed = []
    start.norm.register_forward_pre_hook(lambda module, args: summed.append(args[0]))
    start(x)
    added = summed[0][0, 1:] - 4 * x[0]  # √16 = 4; the learned token stands first
    torch.testing.assert_close(added[4], torch.zeros(16))
    torch.testing.assert_close(added[5], start.positions[7])


def test_short_sequences_are_read_with_zeros_behind_and_long_ones_cut():
    model = build(name="upstream")
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits
    full, long = {}, {}
    for m in MODALITIES:
        zeros = torch.where(masks[m][..., None], x[m], 0)
        full[m.value] = torch.nn.functional.pad(zeros, (0, 0, 0, 12 - zeros.shape[1]))
        long[m.value] = torch.cat([full[m], torch.randn(4, 3, full[m].shape[2])], dim=1)
    for given in (full, long):
        logits = model(
            given, {m: torch.ones(v.shape[:2], dtype=torch.bool) for m, v in given.items()}
        ).logits
        for h in HEADS:
            torch.testing.assert_close(logits[h], before[h])


@pytest.mark.parametrize("changed", [m.value for m in MODALITIES])
def test_no_modality_reaches_another_ones_head(changed):
    model = build(name="upstream")
    x, masks = inputs(LENGTHS)
    before = model(x, masks).logits
    x[changed] = x[changed] + 1
    after = model(x, masks).logits
    for h in HEADS:
        assert torch.equal(before[h], after[h]) == (h not in (changed, MULTIMODAL))
