"""What is hidden from a training batch, and what never is."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.data.batches import Batch
from lfmim.schema import HEADS, IGNORE_LABEL
from lfmim.training.regularization import drop_modalities, drop_steps
from tests.support.toy import SPEC
from tests.support.two_workers import random_data


def batch_of(count: int) -> Batch:
    return next(random_data(SPEC, count).batches(count))


@settings(max_examples=25, deadline=None)
@given(probability=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_a_sample_keeps_a_modality_and_loses_the_label_of_what_it_lost(probability, seed):
    batch = batch_of(20)
    torch.manual_seed(seed)
    out = drop_modalities(batch, probability)
    there = torch.stack([mask.any(dim=1) for mask in batch.masks.values()], dim=1)
    kept = torch.stack([mask.any(dim=1) for mask in out.masks.values()], dim=1)
    assert kept.any(dim=1).equal(there.any(dim=1))
    assert bool((kept <= there).all())
    for i, m in enumerate(out.masks):
        assert out.masks[m][kept[:, i]].equal(batch.masks[m][kept[:, i]])
        label = out.labels[:, HEADS.index(m)]
        assert label.equal(torch.where(kept[:, i], batch.labels[:, HEADS.index(m)], IGNORE_LABEL))
    assert out.labels[:, -1].equal(batch.labels[:, -1])
    # What is divided by is what is left.
    assert out.counts.equal((out.labels != IGNORE_LABEL).sum(dim=0).float())


@settings(max_examples=25, deadline=None)
@given(probability=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_a_sequence_keeps_a_position(probability, seed):
    batch = batch_of(20)
    torch.manual_seed(seed)
    out = drop_steps(batch, probability)
    for m, mask in out.masks.items():
        assert bool((mask <= batch.masks[m]).all())
        assert mask.any(dim=1).equal(batch.masks[m].any(dim=1))


def test_as_many_are_dropped_as_was_asked_for():
    batch = batch_of(4000)
    torch.manual_seed(0)
    whole = sum(int(mask.any(dim=1).sum()) for mask in batch.masks.values())
    dropped = whole - sum(
        int(mask.any(dim=1).sum()) for mask in drop_modalities(batch, 0.2).masks.values()
    )
    assert abs(dropped / whole - 0.2) < 0.02
