"""Checkpoints within an epoch: a run continued from one equals an undisturbed one, bit by bit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.distributed.driver import run_epochs
from lfmim.metrics import SentimentSums
from lfmim.schema import HEADS
from lfmim.training.checkpoint import (
    META,
    UNFINISHED,
    WEIGHTS,
    latest_checkpoint,
    load_meta,
    newest_checkpoint,
    write_meta,
)
from lfmim.training.loop import NonFiniteLossError, train
from lfmim.training.pause import PauseClock, part_of_epoch, take_up
from tests.support.toy import SPEC
from tests.support.two_workers import random_data, worker

SMALL = ModelConfig(d_model=16, num_heads=2, num_layers=1, max_text=12, max_audio=12, max_vision=12)
EVERY_STEP = RunConfig(checkpoint_minutes=1e-9)
FIGURES = ("epoch", "lr", "train", "valid", "score", "best")


def experiment(**fields) -> ExperimentConfig:
    recipe = {"optimizer": "adamw", "lr": 0.003, "epochs": 3, "batch_size": 8} | fields
    return ExperimentConfig(store="none", model=SMALL, run=EVERY_STEP, train=TrainConfig(**recipe))


def figures(history) -> list[dict]:
    return [{name: entry[name] for name in FIGURES} for entry in history]


def run(config, folder, **options):
    """Train on noise; the last weights go to `folder`/last, what pauses save to EPOCH-STEP."""
    data, finished = random_data(SPEC, 29, missing=0.3), []

    def on_epoch(report, save):
        finished.append(report.epoch)
        save(folder / "last")

    def on_pause(save):
        save(folder / "paused")
        part = torch.load(folder / "paused" / "state.pt", weights_only=True)["part"]
        epoch = load_meta(folder / "paused").epoch
        (folder / "paused").rename(folder / f"{epoch}-{part['step']}")

    meta = train(config, SPEC, data, data, on_epoch=on_epoch, on_pause=on_pause, **options)
    return figures(meta.history), load_file(folder / "last" / WEIGHTS)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.fixture
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "fields"),
    [
        (1, {"ema_decay": 0.8, "modality_dropout": 0.2, "step_dropout": 0.1, "warmup_epochs": 1.5}),
        (1, {"optimizer": "sgd", "momentum": 0.9, "precision": "bf16", "micro_batch": 3}),
        (2, {"micro_batch": 3}),
    ],
    indirect=["threads"],
)
def test_a_run_continued_within_an_epoch_equals_the_undisturbed_one(threads, fields, tmp_path):
    config = experiment(**fields)
    still = dataclasses.replace(config, run=RunConfig(checkpoint_minutes=0))
    history, weights = run(still, tmp_path / "still")
    assert [p.name for p in (tmp_path / "still").iterdir()] == ["last"]

    paused = run(config, tmp_path / "paused")
    assert paused[0] == history
    assert equal(paused[1], weights)
    # four steps an epoch, after the last of which the epoch itself is saved
    names = sorted(p.name for p in (tmp_path / "paused").iterdir())
    assert names == [f"{epoch}-{step}" for epoch in range(3) for step in (1, 2, 3)] + ["last"]

    for place in ("0-1", "1-3"):
        torch.manual_seed(999)
        again = run(config, tmp_path / place, resume=tmp_path / "paused" / place)
        assert again[0] == history
        assert equal(again[1], weights)


@pytest.mark.slow
@pytest.mark.integration
def test_two_workers_continue_within_an_epoch_and_so_does_one_of_them(tmp_path):
    config = experiment(epochs=2)

    mp.spawn(worker, (2, str(tmp_path), config, SPEC, 29, "1-2"), nprocs=2)
    assert {p.name for p in tmp_path.glob("?-?")} == {
        f"{epoch}-{step}" for epoch in (0, 1) for step in (1, 2, 3)
    }
    whole, rest = (
        [torch.load(tmp_path / f"{r}{name}.pt", weights_only=True) for r in (0, 1)]
        for name in ("", "-again")
    )
    for before, after in zip(whole, rest, strict=True):
        assert figures(after["history"]) == figures(before["history"])
        assert equal(after["weights"], before["weights"])

    # another number of workers takes over the sums: every sample of the epoch counts once
    history, _ = run(config, tmp_path / "alone", resume=tmp_path / "1-2")
    for head in HEADS:
        assert history[1]["train"][head]["count"] == whole[0]["history"][1]["train"][head]["count"]


def test_what_is_saved_within_an_epoch_is_gone_on_from_and_never_a_best_one(
    toy_store, tmp_path, monkeypatch
):
    config = dataclasses.replace(experiment(), store=str(toy_store))
    home, device = tmp_path / "run", torch.device("cpu")
    whole = run_epochs(config, toy_store, tmp_path / "whole", device=device, keep=1)
    assert not (tmp_path / "whole" / UNFINISHED).exists()

    due = PauseClock.due
    asked = []

    def killed(clock, done):
        # in the second step of the second epoch, of 8 steps
        asked.append(done)
        if len(asked) == 9:
            raise KeyboardInterrupt
        return due(clock, done)

    with monkeypatch.context() as patch:
        patch.setattr(PauseClock, "due", killed)
        with pytest.raises(KeyboardInterrupt):
            run_epochs(config, toy_store, home, device=device, keep=1)
    assert latest_checkpoint(home) == home / "epoch_0000"
    assert newest_checkpoint(home) == home / UNFINISHED
    assert load_meta(home / UNFINISHED) == load_meta(home / "epoch_0000")

    again = run_epochs(config, toy_store, home, device=device, keep=1)
    assert figures(again.history) == figures(whole.history)
    assert not (home / UNFINISHED).exists()

    # of an epoch that has ended since, as where a job is killed between the two: nothing to go on
    (home / UNFINISHED).mkdir()
    (home / UNFINISHED / META).write_bytes((home / "epoch_0002" / META).read_bytes())
    (home / "epoch_0003").mkdir()
    later = dataclasses.replace(load_meta(home / "epoch_0002"), epoch=4)
    write_meta(home / "epoch_0003", later)
    assert newest_checkpoint(home) == home / "epoch_0003"


def test_nothing_is_saved_within_an_epoch_whose_loss_is_not_finite(tmp_path):
    with pytest.raises(NonFiniteLossError, match="epoch 0"):
        run(experiment(optimizer="sgd", lr=1e30, lr_scheduler="constant"), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {"0-1"}


def test_workers_look_at_the_clock_ever_more_rarely(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lfmim.training.pause.time.monotonic", lambda: now[0])
    clock = PauseClock(100.0, torch.device("cpu"))
    looked, due = [], []
    for done in range(1, 400):
        now[0] += 1
        looked += [done] if done >= clock.look else []
        due += [done] if clock.due(done) else []
    assert due == [100, 200, 300]
    assert looked[:8] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert not any(PauseClock(0.0, torch.device("cpu")).due(n) for n in range(1, 9))


def test_sums_of_scores_are_taken_up_too():
    g = torch.Generator().manual_seed(0)
    labels, losses = torch.rand(6, len(HEADS), generator=g), torch.rand(6, len(HEADS), generator=g)
    logits = {head: torch.rand(6, 1, generator=g) for head in HEADS}
    sums, bad = SentimentSums(), torch.ones(())
    sums.update(logits, labels, losses)
    part = part_of_epoch(3, 1.5, sums, bad)
    again, bad_again = SentimentSums(), torch.zeros(())
    take_up(part, again, bad_again)
    assert again.compute() == sums.compute()
    assert bad_again == 1
