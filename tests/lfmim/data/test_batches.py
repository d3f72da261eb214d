"""Batches: one worker and many see the same samples and the same loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lfmim.config import ModelConfig
from lfmim.data.batches import UtteranceTensors, fit_length, pad_sequences
from lfmim.data.loading import load_split
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    IGNORE_LABEL,
    MODALITIES,
    FeatureSpec,
    InputError,
    Modality,
)
from lfmim.training.losses import head_losses, weighted_loss
from lfmim.training.regularization import drop_steps
from tests.support.toy import DIMS, EMOTIONS, SPEC, toy_rows

SIX = ModelConfig(max_text=6, max_audio=6, max_vision=6)
shapes = {
    "n": st.integers(1, 40),
    "batch": st.integers(1, 17),
    "world": st.integers(1, 6),
    "shuffle": st.one_of(st.none(), st.tuples(st.integers(0, 3), st.integers(0, 3))),
}


def numbered(n: int) -> UtteranceTensors:
    """Feature values are the sample's number (exact in float16); some labels are missing, and all
    modalities but text."""
    g = torch.Generator().manual_seed(n)
    number = torch.arange(n, dtype=torch.float16)[:, None, None]
    labels = torch.randint(0, len(EMOTIONS), (n, len(HEADS)), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.3] = IGNORE_LABEL
    return UtteranceTensors.from_padded(
        [str(i) for i in range(n)],
        {m: number.expand(n, 4, 7) for m in MODALITIES},
        {m: torch.randint(int(m is Modality.TEXT), 5, (n,), generator=g) for m in MODALITIES},
        labels,
    )


@settings(max_examples=80, deadline=None)
@given(**shapes)
def test_workers_share_every_global_batch(n, batch, world, shuffle):
    data = numbered(n)
    alone = list(data.batches(batch, shuffle_seed=shuffle))
    shares = [
        list(data.batches(batch, rank=r, world=world, shuffle_seed=shuffle)) for r in range(world)
    ]
    assert {len(s) for s in shares} == {len(alone)} == {-(-n // batch)}
    seen = []
    for step, whole in enumerate(alone):
        numbers = whole.features["text"][:, 0, 0].long()
        seen += numbers.tolist()
        assert whole.weight.tolist() == [1.0] * len(numbers)
        assert torch.equal(whole.labels, data.labels[numbers])
        assert torch.equal(whole.counts, (data.labels[numbers] != IGNORE_LABEL).sum(0).float())
        parts = [s[step] for s in shares]
        assert len({len(p.weight) for p in parts}) == 1  # every worker does equal work
        real = torch.cat([p.features["text"][p.weight > 0, 0, 0] for p in parts])
        assert sorted(real.tolist()) == sorted(numbers.tolist())
        total = float(whole.counts.max() > 0)
        for these in (parts, list(whole.split(3))):
            assert sum(float(p.share) for p in these) == pytest.approx(total, abs=1e-5)
        for p in parts:
            assert torch.equal(p.counts, whole.counts)
            assert (p.labels[p.weight == 0] == IGNORE_LABEL).all()
    assert sorted(seen) == list(range(n))
    if shuffle is None:
        assert seen == list(range(n))


@settings(max_examples=40, deadline=None)
@given(**shapes, beta=st.lists(st.floats(0, 3), min_size=4, max_size=4))
def test_the_loss_does_not_depend_on_the_shards(n, batch, world, shuffle, beta):
    data = numbered(n)
    table = torch.randn(
        n, len(HEADS), len(EMOTIONS), generator=torch.Generator().manual_seed(1)
    ).double()

    def loss(b):
        logits = table[b.features["text"][:, 0, 0].long()]
        losses = head_losses({h: logits[:, i] for i, h in enumerate(HEADS)}, b.labels)
        return weighted_loss(losses, b.counts, torch.tensor(beta))

    shares = zip(
        *(data.batches(batch, rank=r, world=world, shuffle_seed=shuffle) for r in range(world)),
        strict=True,
    )
    for whole, parts in zip(data.batches(batch, shuffle_seed=shuffle), shares, strict=True):
        torch.testing.assert_close(
            torch.stack([loss(p) for p in parts]).sum(), loss(whole), rtol=1e-5, atol=1e-5
        )


def test_the_loss_by_hand():
    losses = torch.tensor([[1.0, 0, 2, 3], [3.0, 0, 4, 0]])
    got = weighted_loss(losses, torch.tensor([2.0, 0, 2, 1]), torch.tensor([1.0, 5, 2, 0.5]))
    assert got.item() == pytest.approx(1 * 2 + 0 + 2 * 3 + 0.5 * 3)


def test_epochs_differ_and_repeat():
    def order(epoch, seed=0):
        batches = numbered(30).batches(7, shuffle_seed=(seed, epoch))
        return torch.cat([b.features["text"][:, 0, 0] for b in batches]).tolist()

    assert order(0) == order(0)
    assert len({tuple(o) for o in (order(0), order(1), order(0, seed=1), list(range(30)))}) == 4


@given(length=st.integers(1, 300), limit=st.integers(1, 120))
def test_fit_length(length, limit):
    x = np.arange(length)[:, None]
    text = fit_length(x, Modality.TEXT, limit)[:, 0]
    assert text.tolist() == list(range(min(length, limit)))
    assert fit_length(x, Modality.AUDIO, limit, cut=True)[:, 0].tolist() == list(
        range(min(length, limit))
    )
    for m in (Modality.AUDIO, Modality.VISION):
        got = fit_length(x, m, limit)[:, 0]
        assert len(got) == min(length, limit)
        assert got[0] == 0
        steps = np.diff(got)
        assert len(steps) == 0 or (
            got[-1] == length - 1 and steps.min() >= 1 and np.ptp(steps) <= 1
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(1, 9)), max_size=6))
def test_pad_sequences(lengths):
    rows = [
        None if n is None else np.full((n, 2), i + 1, np.float16) for i, n in enumerate(lengths)
    ]
    padded, got = pad_sequences(rows, Modality.AUDIO, 2, 6)
    assert got.tolist() == [min(n or 0, 6) for n in lengths]
    assert padded.shape == (len(rows), max([1, *got.tolist()]), 2)
    for i, n in enumerate(got.tolist()):
        assert (padded[i, :n] == i + 1).all()
        assert not padded[i, n:].any()


def test_a_batch_is_padded_to_its_own_longest_sequence():
    data = numbered(20)
    for b in data.batches(3):
        numbers = b.features["text"][:, 0, 0].long()
        for m in MODALITIES:
            assert torch.equal(b.masks[m].sum(1), data.lengths[m][numbers])
            assert (
                b.masks[m].shape[1]
                == b.features[m].shape[1]
                == max(int(data.lengths[m][numbers].max()), 1)
            )


def test_load_split(tmp_path):
    rows = toy_rows(30, absent=0.3)
    rows[0]["label_multimodal"] = None
    write_spec(tmp_path, SPEC)
    write_part(tmp_path, rows_to_table(rows[::-1], store_schema(DIMS), DIMS))
    data = load_split(tmp_path, "train", SIX)
    assert data.ids == [r["id"] for r in rows]
    for i, row in enumerate(rows):
        for h, head in enumerate(HEADS):
            x = row[FEATURE_COLUMNS[Modality(head)]] if head in SPEC.encoders else ()
            if head == "multimodal" and all(row[c] is None for c in FEATURE_COLUMNS.values()):
                x = None
            # an absent modality's label is not trained on
            name = None if x is None else row[f"label_{head}"]
            assert data.labels[i, h] == (IGNORE_LABEL if name is None else EMOTIONS.index(name))
            if head in SPEC.encoders:
                want = np.zeros((0, 1)) if x is None else fit_length(x, Modality(head), 6)
                assert data.lengths[Modality(head)][i] == len(want)
                if len(want):
                    np.testing.assert_array_equal(data.sequence(Modality(head), i), want)


def test_splits_that_cannot_be_used(toy_store, tmp_path):
    with pytest.raises(InputError, match="no rows of split 'dev'"):
        load_split(toy_store, "dev", SIX)
    bare = tmp_path / "bare"
    write_spec(bare, SPEC)
    rows = [{k: v for k, v in r.items() if not k.startswith("label_")} for r in toy_rows(3)]
    write_part(bare, rows_to_table(rows, store_schema(DIMS), DIMS))
    with pytest.raises(InputError, match="no emotion label of any head"):
        load_split(bare, "train", SIX)
    with pytest.raises(InputError, match="not a feature store"):
        load_split(tmp_path, "train", SIX)


def test_a_store_may_lack_a_modality(tmp_path):
    dims = {Modality.TEXT: DIMS[Modality.TEXT]}
    write_spec(tmp_path, FeatureSpec(encoders={"text": SPEC.encoders["text"]}))
    write_part(tmp_path, rows_to_table(toy_rows(3), store_schema(dims), dims))
    data = load_split(tmp_path, "train", SIX)
    assert list(data.features) == list(data.lengths) == [Modality.TEXT]
    assert (data.labels != IGNORE_LABEL).all(dim=0).tolist() == [True, False, False, True]
    assert data.with_multimodal_labels().labels[0].tolist() == [
        int(data.labels[0, 3]),
        *[IGNORE_LABEL] * 2,
        int(data.labels[0, 3]),
    ]


def test_sentiment_labels(tmp_path):
    scores = {
        "sentiment_text": 0.2,
        "sentiment_audio": -1.0,
        "sentiment_vision": 1.0,
        "sentiment_multimodal": 0.0,
    }
    rows = [{**r, **scores} for r in toy_rows(3)]
    rows[1] |= {"sentiment_text": None, "vision_features": None}
    rows[2] |= {"sentiment_audio": float("nan"), **dict.fromkeys(FEATURE_COLUMNS.values())}
    write_spec(tmp_path, SPEC)
    write_part(tmp_path, rows_to_table(rows, store_schema(DIMS, list(scores)), DIMS))
    config = dataclasses.replace(SIX, task="sentiment")
    labels = load_split(tmp_path, "train", config).labels
    no = IGNORE_LABEL
    torch.testing.assert_close(
        labels, torch.tensor([[0.2, -1, 1, 0], [no, -1, no, 0], [no, no, no, no]])
    )
    rows[1]["sentiment_multimodal"] = 1.2
    write_part(tmp_path, rows_to_table(rows, store_schema(DIMS, list(scores)), DIMS))
    with pytest.raises(
        InputError, match=r"train0001.*sentiment_multimodal: 1\.2 is not in \[-1, 1\]"
    ):
        load_split(tmp_path, "train", config)
    write_spec(tmp_path / "none", SPEC)
    write_part(tmp_path / "none", rows_to_table(toy_rows(3), store_schema(DIMS), DIMS))
    with pytest.raises(InputError, match="no sentiment label of any head; fill sentiment_text"):
        load_split(tmp_path / "none", "train", config)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 12),
    shuffle=st.sampled_from([None, (0, 0)]),
    holes=st.booleans(),
)
def test_splitting_a_batch_keeps_its_rows_and_its_loss(n, size, shuffle, holes):
    (whole,) = numbered(n).batches(n, shuffle_seed=shuffle)
    if holes:  # positions masked in the middle, as by train.step_dropout
        torch.manual_seed(n)
        whole = drop_steps(whole, 0.5)
    parts = list(whole.split(size))
    assert all(len(p.labels) <= size and torch.equal(p.counts, whole.counts) for p in parts)

    def row(b, i):
        return (
            int(b.features["text"][i, 0, 0]),
            b.labels[i].tolist(),
            [b.masks[m][i].nonzero()[:, 0].tolist() for m in MODALITIES],
        )

    assert sorted(row(p, i) for p in parts for i in range(len(p.labels))) == sorted(
        row(whole, i) for i in range(n)
    )
    if len(parts) > 1:  # padded to what is valid
        assert all(
            p.masks[m].shape[1] == 1 or p.masks[m][:, -1].any() for p in parts for m in MODALITIES
        )


def test_a_shuffled_batch_begins_with_its_shortest_rows():
    for b in numbered(40).batches(11, rank=1, world=2, shuffle_seed=(1, 2)):
        total = torch.stack([b.masks[m].sum(1) for m in MODALITIES]).sum(0)[b.weight > 0]
        assert (total.diff() >= 0).all()


def test_features_in_host_memory_give_the_same_batches():
    data = numbered(20)
    device = torch.device("cpu")
    for a, b in zip(
        data.to(device, "host").batches(6), data.to(device, "auto").batches(6), strict=True
    ):
        assert all(torch.equal(a.features[m], b.features[m]) for m in MODALITIES)
        assert torch.equal(a.labels, b.labels)


def test_some_samples_of_a_split_are_as_if_they_were_all_of_it(toy_store):
    whole = load_split(toy_store, "train", ModelConfig())
    rows = np.array([3, 7, 8, 40])
    part = whole.take(rows)
    assert part.ids == [whole.ids[i] for i in rows]
    assert torch.equal(part.labels, whole.labels[torch.from_numpy(rows)])
    for m in DIMS:
        for k, i in enumerate(rows):
            assert torch.equal(part.sequence(m, k), whole.sequence(m, i))
        vectors = torch.cat([whole.sequence(m, i) for i in rows]).double()
        mean, scale = part.feature_statistics()[m]
        assert torch.allclose(mean, vectors.mean(dim=0).float(), atol=1e-5)
        assert torch.allclose(scale, 1 / vectors.std(dim=0, correction=0).float(), rtol=1e-4)
    (batch,) = part.batches(8)
    longest = int(part.lengths["text"].max())
    assert batch.features["text"].shape[:2] == (4, longest)
    assert not batch.features["text"][~batch.masks["text"]].any()
