"""Metrics against scikit-learn, and against themselves in shards."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from lfmim.metrics import (
    HeadMetrics,
    HeadSums,
    SentimentSums,
    labelled_f1,
    not_learned,
    sums_for,
)
from lfmim.schema import HEADS, IGNORE_LABEL
from lfmim.training.losses import head_losses
from tests.support.toy import EMOTIONS

C = len(EMOTIONS)


def sample(seed, n, classes=C, missing=0.2):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n, len(HEADS)), generator=g)
    labels[torch.rand(labels.shape, generator=g) < missing] = IGNORE_LABEL
    return {h: torch.randn(n, C, generator=g) for h in HEADS}, labels


def summed(logits, labels):
    sums = HeadSums(EMOTIONS)
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
        assert m.uar == pytest.approx(recall_score(y, p, labels=np.unique(y), average="macro"))
        assert list(m.f1) == list(EMOTIONS)
        np.testing.assert_allclose(
            list(m.f1.values()), f1_score(y, p, average=None, labels=range(C), zero_division=0)
        )
        np.testing.assert_array_equal(m.confusion, confusion_matrix(y, p, labels=range(C)))
        assert m.majority == pytest.approx(np.bincount(y).max() / len(y))
        loss = torch.nn.functional.cross_entropy(logits[head][known], labels[known, i])
        assert m.loss == pytest.approx(float(loss), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), n=st.integers(1, 50), cuts=st.lists(st.integers(0, 50), max_size=6)
)
def test_any_shards_add_up_to_the_whole(seed, n, cuts):
    logits, labels = sample(seed, n)
    edges = [0, *sorted(min(c, n) for c in cuts), n]
    whole, merged, one_by_one = summed(logits, labels), HeadSums(EMOTIONS), HeadSums(EMOTIONS)
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
    m = HeadMetrics.from_confusion(confusion, EMOTIONS, loss_sum=4.0)
    assert (m.count, m.loss, m.accuracy, m.majority) == (8, 0.5, 7 / 8, 0.5)
    assert (m.f1["anger"], m.f1["disgust"]) == pytest.approx((6 / 7, 8 / 9))
    assert m.macro_f1 == m.weighted_f1 == pytest.approx((6 / 7 + 8 / 9) / 2)


def sentiment(pairs):
    """Sums over (label, prediction) pairs of the text head; labels of the other heads are
    missing."""
    labels = torch.full((len(pairs), len(HEADS)), float(IGNORE_LABEL))
    labels[:, 0] = torch.tensor([y for y, _ in pairs])
    scores = {h: torch.tensor([[p] for _, p in pairs]) for h in HEADS}
    sums = sums_for(labels, EMOTIONS)
    assert isinstance(sums, SentimentSums)
    sums.update(scores, labels, head_losses(scores, labels))
    return sums


# label, prediction          Acc-2   Acc-3   Acc-5
BY_HAND = [
    (-1.0, -1.4),  # right   right   right   (clipped to -1)
    (-0.8, -0.7),  # right   right   right   (-0.7 belongs to the bin below it)
    (-0.6, -0.1),  # right   right   right   (so does -0.1)
    (0.0, 0.05),  # wrong   right   right
    (0.0, -0.2),  # right   wrong   wrong
    (0.2, 0.0),  # wrong   wrong   wrong
    (0.6, 0.7),  # right   right   right
    (1.0, 0.1),
]  # right   wrong   wrong


def test_sentiment_by_hand():
    m = sentiment(BY_HAND).compute()["text"]
    assert m.count == 8
    assert m.accuracy_2 == 6 / 8
    assert m.accuracy_3 == 5 / 8
    assert m.accuracy_5 == 5 / 8
    # Zero is negative: labels 5 negative, 3 positive; predictions: 4 + 1 wrong negative, 2 + 1
    # wrong positive.
    assert m.weighted_f1 == pytest.approx((5 * 2 * 4 / (5 + 5) + 3 * 2 * 2 / (3 + 3)) / 8)
    # Without the two zeros: 3 negative, 3 positive; only (0.2, 0.0) is wrong.
    assert m.accuracy_2_nonzero == 5 / 6
    assert m.weighted_f1_nonzero == pytest.approx((3 * 2 * 3 / (3 + 4) + 3 * 2 * 2 / (3 + 2)) / 6)
    assert m.mae == pytest.approx((0 + 0.1 + 0.5 + 0.05 + 0.2 + 0.2 + 0.1 + 0.9) / 8, abs=1e-7)
    assert m.loss == pytest.approx((0.4 + 0.1 + 0.5 + 0.05 + 0.2 + 0.2 + 0.1 + 0.9) / 8, abs=1e-7)
    y, p = [y for y, _ in BY_HAND], [max(-1, min(1, p)) for _, p in BY_HAND]
    assert m.pearson == pytest.approx(np.corrcoef(y, p)[0, 1], abs=1e-6)
    assert m.score == -m.mae
    assert m.confusion == [
        [2, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 0],
    ]
    assert sentiment(BY_HAND).compute()["audio"].count == 0
    assert math.isnan(sentiment([(0.0, 0.5), (0.0, 0.5)]).compute()["text"].pearson)
    assert math.isnan(sentiment([(0.0, 0.5)]).compute()["text"].weighted_f1_nonzero)


def fields_like_mmsa(y, p):
    """Binned one by one, the classes compared by scikit-learn."""
    y, p = (np.clip(np.float32(v), -1, 1) for v in (y, p))
    out = {}
    for k, edges in ((2, [0.0]), (3, [-0.1, 0.1]), (5, [-0.7, -0.1, 0.1, 0.7])):
        a, b = ([sum(v > np.float32(e) for e in edges) for v in x] for x in (y, p))
        out[f"accuracy_{k}"] = accuracy_score(a, b)
        if k == 2:
            out["weighted_f1"] = f1_score(a, b, average="weighted", zero_division=0)
    keep = y != 0
    if keep.any():
        out["accuracy_2_nonzero"] = accuracy_score(y[keep] > 0, p[keep] > 0)
        out["weighted_f1_nonzero"] = f1_score(
            y[keep] > 0, p[keep] > 0, average="weighted", zero_division=0
        )
    return {**out, "mae": np.abs(np.float64(y) - p).mean()}


grid, score = st.sampled_from([i / 10 for i in range(-10, 11)]), st.floats(-1.5, 1.5, width=32)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(grid, st.one_of(grid, score)), min_size=1, max_size=30), st.integers(0, 30)
)
def test_sentiment_agrees_with_the_field_and_adds_up(pairs, cut):
    whole = sentiment(pairs)
    m = whole.compute()["text"]
    for name, value in fields_like_mmsa(*zip(*pairs, strict=True)).items():
        assert getattr(m, name) == pytest.approx(value, abs=1e-6), name
    parts = [sentiment(part) for part in (pairs[:cut], pairs[cut:]) if part]
    merged = parts[0]
    for other in parts[1:]:
        merged.loss += other.loss
        merged.moments += other.moments
        merged.nonzero += other.nonzero
        for k in merged.confusion:
            merged.confusion[k] += other.confusion[k]
    assert merged.compute()["text"].confusion == m.confusion
    for name, value in m.scalars().items():
        assert merged.compute()["text"].scalars()[name] == pytest.approx(
            value, nan_ok=True, abs=1e-9
        )


def test_a_missing_score_adds_nothing_whatever_is_predicted():
    labels = torch.full((2, len(HEADS)), 0.5)
    labels[1] = IGNORE_LABEL
    scores = {h: torch.tensor([[0.5], [float("nan")]]) for h in HEADS}
    sums = sums_for(labels, EMOTIONS)
    sums.update(scores, labels, torch.zeros(2, len(HEADS)))
    m = sums.compute()["vision"]
    assert (m.count, m.mae, m.accuracy_5) == (1, 0.0, 1.0)


def test_a_class_without_labels_has_no_f1_and_a_missed_one_has_0():
    # a: right; b: missed, labels said to be c; c: has no labels
    confusion = np.array([[4.0, 0, 0], [0, 0, 2], [0, 0, 0]])
    metrics = HeadMetrics.from_confusion(confusion, "abc")
    found = labelled_f1(vars(metrics))
    assert (found["a"], found["b"], math.isnan(found["c"])) == (1, 0, True)
    assert metrics.f1["c"] == 0
    nobody = HeadMetrics.from_confusion(np.zeros((3, 3)), "abc")
    assert all(map(math.isnan, labelled_f1(vars(nobody)).values()))


def test_who_has_not_learned_is_named():
    """400 samples, 40 % of one class: within two standard errors, 4.9 points, nothing is shown."""
    labels = np.array([0] * 160 + [1] * 120 + [2] * 120)
    c = len(EMOTIONS)

    def history(right: int) -> dict:
        answers = np.zeros(400, dtype=int)
        answers[160 : 160 + right] = 1
        confusion = np.zeros((c, c))
        np.add.at(confusion, (labels, answers), 1)
        return vars(HeadMetrics.from_confusion(confusion, EMOTIONS))

    said = not_learned({"text": history(60), "multimodal": history(15)})
    assert "multimodal 0.4375 (commonest class 0.4000)" in said
    assert "text" not in said
    assert not_learned({"text": history(60)}) == ""
    nobody = vars(HeadMetrics.from_confusion(np.zeros((c, c)), EMOTIONS))
    assert not_learned({"text": nobody}) == ""
