"""The loop: learning, resuming, stopping, and the same losses from one worker and two."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from conftest import DIMS, SPEC
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors, load_split
from lfmim.metrics import HeadMetrics, HeadSums
from lfmim.models import build_model
from lfmim.schema import EMOTIONS, HEADS, IGNORE_LABEL, Modality
from lfmim.training.checkpoint import load_model, load_state
from lfmim.training.loop import NonFiniteLossError, learning_rate, train

SMALL = ModelConfig(width=16, heads=2, layers=2, max_text=16, max_audio=16, max_vision=16)


def config(store="x", model=SMALL, **train_fields) -> ExperimentConfig:
    fields = {"optimizer": "adamw", "lr": 0.003, "schedule": "constant", "epochs": 4, "batch_size": 16}
    return ExperimentConfig(store=str(store), model=model, train=TrainConfig(**{**fields, **train_fields}))


def splits(store: Path) -> tuple[UtteranceTensors, UtteranceTensors]:
    return load_split(store, "train", SMALL.max_lengths), load_split(store, "valid", SMALL.max_lengths)


def random_data(n: int, seed: int = 0) -> UtteranceTensors:
    g = torch.Generator().manual_seed(seed)
    x = {m: torch.randn(n, 5, d, generator=g).half() for m, d in DIMS.items()}
    lengths = {m: torch.full((n,), 5) for m in DIMS}
    return UtteranceTensors([str(i) for i in range(n)], x, lengths, torch.randint(0, 7, (n, 4), generator=g))


def test_overfits_32_samples():
    data = random_data(32)
    model = dataclasses.replace(SMALL, width=32, dropout_attention=0, dropout_ffn=0, dropout_embedding=0)
    meta = train(config(model=model, epochs=60, batch_size=32), SPEC, data, data)
    assert {h: m["accuracy"] for h, m in meta.history[-1]["valid"].items()} == dict.fromkeys(HEADS, 1.0)


def test_resume_equals_an_undisturbed_run(toy_store, tmp_path):
    data = splits(toy_store)

    def saver(folder):
        return lambda report, save: save(tmp_path / folder / str(report.epoch))

    c = config(toy_store)
    train(c, SPEC, *data, on_epoch=saver("whole"))
    train(c, SPEC, *data, on_epoch=saver("rest"), resume=tmp_path / "whole" / "1")
    assert not (tmp_path / "rest" / "1").exists()
    whole, rest = load_model(tmp_path / "whole" / "3")[0], load_model(tmp_path / "rest" / "3")[0]
    for (name, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_non_finite_loss_stops_before_anything_is_saved(tmp_path):
    data = random_data(8)
    data.features[Modality.AUDIO][3, 0, 0] = float("inf")
    with pytest.raises(NonFiniteLossError, match="epoch 0"):
        train(config(), SPEC, data, random_data(8), on_epoch=lambda r, save: save(tmp_path / "saved"))
    assert not (tmp_path / "saved").exists()


def test_early_stopping_counts_epochs_without_improvement(toy_store):
    meta = train(config(toy_store, epochs=50, patience=2, lr=1e-9), SPEC, *splits(toy_store))
    assert meta.epoch == meta.best_epoch + 3 < 50


def test_schedules():
    assert [learning_rate(TrainConfig(lr=0.6, schedule="inverse_epoch"), e) for e in (0, 1, 2)] == [0.6, 0.3, 0.6 / 3]
    assert learning_rate(TrainConfig(lr=1.0, schedule="cosine", epochs=4), 2) == pytest.approx(0.5)


def test_checkpoints_load_strictly_and_run_no_code(toy_store, tmp_path):
    train(config(toy_store, epochs=1), SPEC, *splits(toy_store), on_epoch=lambda r, save: save(tmp_path / "c"))
    model = build_model(dataclasses.replace(SMALL, layers=3), SPEC.dims)
    from lfmim.training.checkpoint import load_weights

    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(tmp_path / "c", model)

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"optimizer": Bomb()}, tmp_path / "c" / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path / "c")
    assert not (tmp_path / "boom").exists()


def _ddp_worker(rank: int, folder: str, c: ExperimentConfig, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    meta = train(c, SPEC, *splits(Path(store)), wrap=torch.nn.parallel.DistributedDataParallel)
    if rank == 0:
        torch.save([losses(e) for e in meta.history], f"{folder}/losses.pt")
    torch.distributed.destroy_process_group()


def losses(entry) -> list[float]:
    return [entry[part][h]["loss"] for part in ("train", "valid") for h in HEADS]


def test_two_workers_reach_the_losses_of_one(toy_store, tmp_path):
    still = dataclasses.replace(SMALL, dropout_attention=0, dropout_ffn=0, dropout_embedding=0)
    c = config(toy_store, model=still, batch_size=15)  # 61 rows: uneven batches and an odd last one
    mp.spawn(_ddp_worker, (str(tmp_path), c, str(toy_store)), nprocs=2)
    alone = [losses(e) for e in train(c, SPEC, *splits(toy_store)).history]
    np.testing.assert_allclose(torch.load(tmp_path / "losses.pt"), alone, rtol=2e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 16), st.integers(1, 5), st.integers(0, 3))
def test_workers_share_every_sample_once(n, batch, world, epoch):
    data = random_data(n)
    data.labels[:, 0] = torch.arange(n)
    shares = [list(data.batches(batch, rank=r, world=world, shuffle_seed=(0, epoch))) for r in range(world)]
    assert len({len(s) for s in shares}) == 1
    alone = list(data.batches(batch, shuffle_seed=(0, epoch)))
    for step, whole in enumerate(alone):
        parts = torch.cat([s[step].labels[s[step].weight > 0, 0] for s in shares])
        assert sorted(parts.tolist()) == sorted(whole.labels[:, 0].tolist())
        assert all(torch.equal(s[step].counts, whole.counts) for s in shares)
    assert sorted(torch.cat([b.labels[:, 0] for b in alone]).tolist()) == list(range(n))


def test_metrics_agree_with_scikit_learn_in_any_shards():
    rng = np.random.default_rng(0)
    labels, logits = torch.from_numpy(rng.integers(0, 6, (90, 4))), torch.from_numpy(rng.normal(size=(90, 7)))
    labels[:10, 2] = IGNORE_LABEL
    sums = HeadSums()
    for part in (slice(0, 1), slice(1, 50), slice(50, 90)):
        sums.update(dict.fromkeys(HEADS, logits[part]), labels[part], torch.ones(len(labels[part]), 4))
    got = sums.compute()
    for i, head in enumerate(HEADS):
        known = labels[:, i] != IGNORE_LABEL
        y, p = labels[known, i].numpy(), logits[known].argmax(1).numpy()
        m = got[head]
        assert m.count == known.sum()
        assert m.accuracy == pytest.approx(accuracy_score(y, p))
        assert m.weighted_f1 == pytest.approx(f1_score(y, p, average="weighted", zero_division=0))
        assert m.macro_f1 == pytest.approx(f1_score(y, p, average="macro", zero_division=0))
        np.testing.assert_array_equal(m.confusion, confusion_matrix(y, p, labels=range(7)))
        assert m.majority == pytest.approx(np.bincount(y).max() / len(y))


def test_a_head_without_labels_has_no_score():
    m = HeadMetrics.from_confusion(np.zeros((len(EMOTIONS), len(EMOTIONS))))
    assert m.count == 0
    assert np.isnan(m.accuracy)
