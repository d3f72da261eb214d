"""Metrics against scikit-learn, and against themselves in shards."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from lfmim.metrics import HeadMetrics, HeadSums
from lfmim.schema import EMOTIONS, HEADS, IGNORE_LABEL
from lfmim.training.losses import head_losses

C = len(EMOTIONS)


def sample(seed, n, classes=C, missing=0.2):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, len(HEADS)), generator=g)
    labels[torch.rand(labels.shape, generator=g) < missing] = IGNORE_LABEL
    return {h: torch.randn(n, C, generator=g) for h in HEADS}, labels


def summed(logits, labels):
    sums = HeadSums()
    sums.update(logits, labels, head_losses(logits, labels))
    return sums


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 60), classes=st.integers(1, C))
def test_agrees_with_scikit_learn(seed, n, classes):
    logits, labels = sample(seed, n, classes)
    metrics = summed(logits, labels).compute()
    for i, head in enumerate(HEADS):
        known = labels[:, i] != IGNORE_LABEL
        m, y, p = metrics[head], labels[known, i].numpy(), logits[head][known].argmax(1).numpy()
        assert m.count == len(y)
        if not len(y):
            assert all(math.isnan(v) for v in m.scalars().values())
            continue
        assert m.accuracy == pytest.approx(accuracy_score(y, p))
        assert m.accuracy == pytest.approx(f1_score(y, p, average="micro"))
        assert m.weighted_f1 == pytest.approx(f1_score(y, p, average="weighted", zero_division=0))
        assert m.macro_f1 == pytest.approx(f1_score(y, p, average="macro", zero_division=0))
        assert list(m.f1) == list(EMOTIONS)
        np.testing.assert_allclose(list(m.f1.values()),
                                   f1_score(y, p, average=None, labels=range(C), zero_division=0))
        np.testing.assert_array_equal(m.confusion, confusion_matrix(y, p, labels=range(C)))
        assert m.majority == pytest.approx(np.bincount(y).max() / len(y))
        loss = torch.nn.functional.cross_entropy(logits[head][known], labels[known, i])
        assert m.loss == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), n=st.integers(1, 50), cuts=st.lists(st.integers(0, 50), max_size=6))
def test_any_shards_add_up_to_the_whole(seed, n, cuts):
    logits, labels = sample(seed, n)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    whole, merged, one_by_one = summed(logits, labels), HeadSums(), HeadSums()
    for a, b in itertools.pairwise(edges):
        part = {h: v[a:b] for h, v in logits.items()}, labels[a:b]
        shard = summed(*part)
        merged.confusion += shard.confusion
        merged.loss += shard.loss
        one_by_one.update(*part, head_losses(*part))
    for other in (merged, one_by_one):
        assert torch.equal(other.confusion, whole.confusion)
        torch.testing.assert_close(other.loss, whole.loss)


def test_predictions_for_missing_labels_do_not_matter():
    logits, labels = sample(5, 40, missing=0.5)
    before = summed(logits, labels).compute()
    for i, head in enumerate(HEADS):
        logits[head][labels[:, i] == IGNORE_LABEL] *= -7
    assert summed(logits, labels).compute() == before


def test_a_head_without_labels_counts_nothing():
    logits, labels = sample(0, 5, missing=0.0)
    labels[:, 1] = IGNORE_LABEL
    metrics = summed(logits, labels).compute()
    assert metrics["audio"].count == 0
    assert math.isnan(metrics["audio"].accuracy)
    assert metrics["text"].count == 5


def test_from_confusion_by_hand():
    confusion = np.zeros((C, C))
    confusion[0, 0], confusion[0, 1], confusion[1, 1] = 3, 1, 4
    m = HeadMetrics.from_confusion(confusion, loss_sum=4.0)
    assert (m.count, m.loss, m.accuracy, m.majority) == (8, 0.5, 7 / 8, 0.5)
    assert (m.f1["anger"], m.f1["disgust"]) == pytest.approx((6 / 7, 8 / 9))
    assert m.macro_f1 == m.weighted_f1 == pytest.approx((6 / 7 + 8 / 9) / 2)
