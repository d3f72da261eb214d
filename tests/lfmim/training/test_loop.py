"""The loop: it learns, resumes exactly, stops when it must, and two workers equal one."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import threading

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from lfmim.config import BetaConfig, ExperimentConfig, ModelConfig, TrainConfig, hash_parts
from lfmim.data.loading import load_split
from lfmim.models import cpu
from lfmim.predictor import Predictor
from lfmim.schema import HEADS, IGNORE_LABEL, InputError, Modality
from lfmim.training.calibration import calibrate
from lfmim.training.checkpoint import (
    META,
    STATE,
    WEIGHTS,
    keep_later,
    load_meta,
    load_model,
    load_state,
)
from lfmim.training.loop import NonFiniteLossError, learning_rate, train
from lfmim.training.losses import Objective, class_weights, head_losses, weighted_loss
from lfmim.training.passes import evaluate
from tests.support.toy import SPEC
from tests.support.two_workers import random_data, worker

SMALL = ModelConfig(d_model=16, num_heads=2, num_layers=2, max_text=12, max_audio=12, max_vision=12)
STILL = dataclasses.replace(SMALL, dropout_attention=0, dropout_ffn=0, dropout_embedding=0)


def experiment(model=SMALL, **fields) -> ExperimentConfig:
    defaults = {
        "optimizer": "adamw",
        "lr": 0.003,
        "lr_scheduler": "constant",
        "epochs": 4,
        "batch_size": 16,
    }
    return ExperimentConfig(store="none", model=model, train=TrainConfig(**{**defaults, **fields}))


def saver(folder):
    return lambda report, save: save(folder / str(report.epoch))


@pytest.fixture
def data(toy_store):
    return [load_split(toy_store, split, SMALL) for split in ("train", "valid")]


@pytest.mark.integration
def test_it_learns_and_reports_what_it_did(data, tmp_path):
    config = experiment(epochs=12, lr=0.005, selection="text")
    meta = train(config, SPEC, *data, on_epoch=saver(tmp_path))
    first, last = meta.history[0], meta.history[-1]
    for head in ("text", "audio", "vision"):
        assert last["train"][head]["loss"] < 0.7 * first["train"][head]["loss"]
        assert last["valid"][head]["accuracy"] > 0.6
    scores = [e["score"] for e in meta.history]
    assert scores == [e["valid"]["text"]["accuracy"] for e in meta.history]
    assert meta.best_epoch == int(np.argmax(scores))
    assert meta.best_score == max(scores)
    assert [e["best"] for e in meta.history] == [
        s > max([-1, *scores[:i]]) for i, s in enumerate(scores)
    ]
    model, saved = load_model(tmp_path / "11")
    assert saved == meta
    again = evaluate(model, data[1], batch_size=5)
    assert {h: m.confusion for h, m in again.items()} == {
        h: last["valid"][h]["confusion"] for h in HEADS
    }


def test_beta_zero_leaves_a_head_untrained(data, tmp_path):
    train(experiment(epochs=2, beta=BetaConfig(audio=0)), SPEC, *data, on_epoch=saver(tmp_path))
    a, b = (load_file(tmp_path / e / WEIGHTS) for e in ("0", "1"))
    assert {
        name.split(".")[1]
        for name in a
        if name.startswith("heads") and torch.equal(a[name], b[name])
    } == {"audio"}


@pytest.mark.parametrize(
    "fields",
    [
        {
            "lr_scheduler": "cosine",
            "warmup_epochs": 2.5,
            "ema_decay": 0.8,
            "label_smoothing": 0.1,
            "modality_dropout": 0.2,
            "step_dropout": 0.1,
        },
        {"optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "lr_scheduler": "inverse_epoch"},
    ],
)
def test_resuming_equals_the_undisturbed_run_bit_by_bit(data, tmp_path, fields):
    config = experiment(**fields)
    whole = train(config, SPEC, *data, on_epoch=saver(tmp_path / "whole"))
    torch.manual_seed(999)
    rest = train(
        config, SPEC, *data, on_epoch=saver(tmp_path / "rest"), resume=tmp_path / "whole" / "1"
    )
    assert sorted(p.name for p in (tmp_path / "rest").iterdir()) == ["2", "3"]
    a, b = (load_file(tmp_path / run / "3" / WEIGHTS) for run in ("whole", "rest"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for x, y in zip(whole.history, rest.history, strict=True):
        assert {k: x[k] for k in ("epoch", "lr", "train", "valid", "best")} == {
            k: y[k] for k in ("epoch", "lr", "train", "valid", "best")
        }


def test_a_run_that_goes_on_from_its_end_forgets_that_it_was_over(data, tmp_path):
    meta = train(experiment(epochs=2), SPEC, *data, on_epoch=saver(tmp_path))
    keep_later(tmp_path / "0", meta.history)
    keep_later(tmp_path / "1", meta.history)
    assert load_meta(tmp_path / "0").later == meta.history[1:]
    assert load_meta(tmp_path / "1").later == []
    more = train(experiment(epochs=3), SPEC, *data, resume=tmp_path / "1", on_epoch=saver(tmp_path))
    assert (more.epoch, more.later, load_meta(tmp_path / "2").later) == (3, None, None)


def test_a_finished_run_resumes_to_itself(data, tmp_path):
    config = experiment(epochs=2)
    meta = train(config, SPEC, *data, on_epoch=saver(tmp_path))
    assert (
        train(config, SPEC, *data, resume=tmp_path / "1", on_epoch=saver(tmp_path / "more")) == meta
    )
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize("bad_epoch", [0, 1])
def test_a_non_finite_loss_stops_and_saves_nothing_of_it(tmp_path, bad_epoch):
    data = random_data(SPEC, 8)

    def on_epoch(report, save):
        save(tmp_path / str(report.epoch))
        data.sequence(Modality.AUDIO, 3)[0, 0] = math.inf

    if bad_epoch == 0:
        data.sequence(Modality.AUDIO, 3)[0, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match=f"epoch {bad_epoch}.*lr"):
        train(experiment(), SPEC, data, random_data(SPEC, 8), on_epoch=on_epoch)
    assert [p.name for p in tmp_path.iterdir()] == [str(e) for e in range(bad_epoch)]


def test_patience(data, tmp_path):
    config = experiment(epochs=30, patience=3, lr=1e-9)
    meta = train(config, SPEC, *data, on_epoch=saver(tmp_path))
    assert meta.epoch == len(meta.history) == meta.best_epoch + 1 + 3 < 30
    assert train(config, SPEC, *data, resume=tmp_path / str(meta.epoch - 1)).epoch == meta.epoch
    assert (
        train(
            dataclasses.replace(
                config, train=dataclasses.replace(config.train, patience=0, epochs=6)
            ),
            SPEC,
            *data,
        ).epoch
        == 6
    )


def test_schedules(data):
    def rates(schedule):
        return [
            learning_rate(TrainConfig(lr=0.6, lr_scheduler=schedule, epochs=4), e) for e in range(4)
        ]

    assert rates("constant") == [0.6] * 4
    assert rates("inverse_epoch") == pytest.approx([0.6, 0.3, 0.2, 0.15])
    assert rates("cosine") == pytest.approx(
        [0.6 * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]
    )
    meta = train(experiment(epochs=3, lr=0.6e-3, lr_scheduler="inverse_epoch"), SPEC, *data)
    assert [e["lr"] for e in meta.history] == pytest.approx([6e-4, 3e-4, 2e-4])


def test_gradient_clipping_bounds_the_step(tmp_path):
    data = random_data(SPEC, 16)
    config = experiment(optimizer="sgd", lr=0.5, epochs=2, grad_clip=0.01)  # one step per epoch
    train(config, SPEC, data, data, on_epoch=saver(tmp_path))
    a, b = (load_file(tmp_path / e / WEIGHTS) for e in ("0", "1"))
    step = torch.stack([(a[k] - b[k]).square().sum() for k in a]).sum().sqrt().item()
    assert step == pytest.approx(0.5 * 0.01, rel=0.01)


def test_seeds_matter_and_repeat():
    data = random_data(SPEC, 20)

    def losses(seed):
        return [
            e["train"][h]["loss"]
            for e in train(experiment(seed=seed, epochs=2), SPEC, data, data).history
            for h in HEADS
        ]

    assert losses(0) == losses(0) != losses(1)


def test_micro_batches_change_nothing(tmp_path):
    data = random_data(SPEC, 20, missing=0.3)
    for size in (1000, 3):
        config = experiment(
            model=STILL, optimizer="sgd", lr=0.05, epochs=2, grad_clip=1.0, micro_batch=size
        )
        train(config, SPEC, data, data, on_epoch=saver(tmp_path / str(size)))
    a, b = (load_file(tmp_path / size / "1" / WEIGHTS) for size in ("1000", "3"))
    for name, weight in a.items():
        torch.testing.assert_close(weight, b[name], rtol=1e-4, atol=1e-6)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_micro_batches_side_by_side_equal_those_in_turn(two_threads, tmp_path):
    data = random_data(SPEC, 26, missing=0.3)
    config = experiment(
        model=STILL, optimizer="sgd", lr=0.05, epochs=2, grad_clip=1.0, micro_batch=5
    )
    ran_on = set()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: ran_on.add(threading.current_thread())
    )
    side_by_side = train(config, SPEC, data, data, on_epoch=saver(tmp_path / "2"))
    hook.remove()
    assert len(ran_on) >= 2  # this thread evaluates
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    in_turn = train(config, SPEC, data, data, on_epoch=saver(tmp_path / "1"))
    for a, b in zip(in_turn.history, side_by_side.history, strict=True):
        assert a["train"]["multimodal"]["loss"] == pytest.approx(
            b["train"]["multimodal"]["loss"], rel=1e-5
        )
        assert a["train"]["text"]["confusion"] == b["train"]["text"]["confusion"]
    one, two = (load_file(tmp_path / n / "1" / WEIGHTS) for n in "12")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_threads_side_by_side_compute_alone(two_threads):
    pool = cpu.pool(2)
    assert [pool.submit(torch.get_num_threads).result() for _ in range(4)] == [1] * 4
    assert torch.get_num_threads() == 2


def test_side_by_side_training_repeats_bit_by_bit(two_threads, tmp_path):
    data, config = random_data(SPEC, 26), experiment(epochs=2, micro_batch=5)
    for folder in "ab":
        train(config, SPEC, data, data, on_epoch=saver(tmp_path / folder))
    a, b = (load_file(tmp_path / n / "1" / WEIGHTS) for n in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_compiled_layers_match_eager():
    data = random_data(SPEC, 16)
    one, other = (
        train(experiment(model=STILL, epochs=2, batch_size=8, compile=c), SPEC, data, data).history[
            -1
        ]
        for c in ("off", "on")
    )
    for head in HEADS:
        assert one["train"][head]["loss"] == pytest.approx(other["train"][head]["loss"], rel=1e-4)


def test_bf16_trains_finite():
    data = random_data(SPEC, 16)
    meta, fp32 = (
        train(experiment(STILL, precision=p, epochs=2), SPEC, data, data) for p in ("bf16", "fp32")
    )
    for head in HEADS:
        low, high = (m.history[-1]["train"][head]["loss"] for m in (meta, fp32))
        assert low != high
        assert low == pytest.approx(high, rel=0.02)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop("fex"), "Missing key.*fex"),
        (lambda w: w.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
        (lambda w: w.update(fex=torch.zeros(2, 16)), "size mismatch for fex"),
    ],
)
def test_checkpoints_load_strictly(tmp_path, change, words):
    data = random_data(SPEC, 8)
    train(experiment(epochs=1), SPEC, data, data, on_epoch=saver(tmp_path))
    weights = load_file(tmp_path / "0" / WEIGHTS)
    change(weights)
    save_file(weights, tmp_path / "0" / WEIGHTS)
    with pytest.raises(RuntimeError, match=f"(?s){words}"):
        load_model(tmp_path / "0")


def test_a_state_file_runs_no_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    torch.save({"optimizer": Bomb()}, tmp_path / STATE)
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path)
    assert not (tmp_path / "boom").exists()
    torch.load(tmp_path / STATE, weights_only=False)  # the bomb was live
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("text", [None, "", '{"config": ', "{}", "[]"])
def test_a_folder_without_a_whole_checkpoint_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / META).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=META):
        load_meta(tmp_path)


def test_a_validation_split_that_cannot_choose_is_refused():
    valid = random_data(SPEC, 8, seed=1)
    valid.labels[:, HEADS.index("multimodal")] = IGNORE_LABEL
    with pytest.raises(InputError, match=r"train\.selection.*multimodal"):
        train(experiment(epochs=1), SPEC, random_data(SPEC, 8), valid)


@pytest.mark.integration
def test_two_workers_reach_the_losses_and_weights_of_one(tmp_path):
    n, batch = 29, 6  # batches of 6 and a last one of 5: one worker fills up
    config = experiment(
        model=STILL,
        optimizer="sgd",
        lr=0.05,
        momentum=0.9,
        epochs=3,
        batch_size=batch,
        grad_clip=1.0,
    )
    running = mp.spawn(worker, (2, str(tmp_path), config, SPEC, n), nprocs=2, join=False)
    models = []
    alone = train(
        config,
        SPEC,
        random_data(SPEC, n, missing=0.3),
        random_data(SPEC, n, seed=1),
        wrap=lambda m: models.append(m) or m,
    ).history
    while not running.join():
        pass
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, weight in models[0].state_dict().items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], weight, rtol=1e-3, atol=1e-4)
    for got in (first["history"], second["history"]):
        for a, b in zip(got, alone, strict=True):
            for part in ("train", "valid"):
                for head in HEADS:
                    assert a[part][head]["loss"] == pytest.approx(b[part][head]["loss"], rel=1e-4)
                    assert a[part][head]["count"] == b[part][head]["count"]


def test_one_layer_trains_under_ddp(tmp_path):
    """DDP refuses parameters without a gradient, and ᾱ has no row when there is one layer."""
    config = experiment(model=dataclasses.replace(SMALL, num_layers=1), epochs=2)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        data = random_data(SPEC, 20)
        meta = train(config, SPEC, data, data, wrap=torch.nn.parallel.DistributedDataParallel)
    finally:
        torch.distributed.destroy_process_group()
    assert meta.epoch == 2


def test_warm_up_rises_step_by_step_to_the_schedules_rate(data):
    seen = []
    config = experiment(
        epochs=2, warmup_epochs=1.5, lr=0.1, optimizer="sgd", lr_scheduler="constant"
    )
    original = torch.optim.SGD.step

    def spy(self, *args, **kwargs):
        seen.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    torch.optim.SGD.step = spy
    try:
        train(config, SPEC, *data)
    finally:
        torch.optim.SGD.step = original
    steps = len(seen) // 2
    assert seen == pytest.approx([0.1 * min(1.0, (i + 1) / steps / 1.5) for i in range(2 * steps)])


def test_the_moving_average_is_what_is_judged_and_saved(data, tmp_path):
    """With decay d the saved weights follow their own recursion from the trained ones, which
    state.pt keeps."""
    config = experiment(epochs=3, ema_decay=0.9, lr=0.01)
    meta = train(config, SPEC, *data, on_epoch=saver(tmp_path))
    model, _ = load_model(tmp_path / "2")
    judged = evaluate(model, data[1], batch_size=64)
    assert {h: m.confusion for h, m in judged.items()} == {
        h: meta.history[2]["valid"][h]["confusion"] for h in HEADS
    }
    averaged, raw = load_file(tmp_path / "2" / WEIGHTS), load_state(tmp_path / "2")["weights"]
    assert averaged.keys() == raw.keys()
    assert any(not torch.equal(averaged[k], raw[k]) for k in raw)
    plain = train(experiment(epochs=3, lr=0.01), SPEC, *data, on_epoch=saver(tmp_path / "plain"))
    assert all(
        torch.equal(x, raw[k]) for k, x in load_file(tmp_path / "plain" / "2" / WEIGHTS).items()
    )
    assert plain.history[2]["train"] == meta.history[2]["train"]


def test_label_smoothing_is_the_librarys(data):
    logits, labels = {"text": torch.randn(5, 7)}, torch.full((5, len(HEADS)), IGNORE_LABEL)
    labels[:, 0] = torch.arange(5)
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none")(
        logits["text"], labels[:, 0]
    )
    assert torch.equal(head_losses(logits, labels, Objective(0.2))[:, 0], expected)


def test_modality_dropout_needs_a_model_that_can_do_without(data):
    model = dataclasses.replace(SMALL, name="pmr")
    with pytest.raises(InputError, match=r"train\.modality_dropout: pmr"):
        train(experiment(model, modality_dropout=0.1), SPEC, *data)


COUNTS = torch.tensor([[90, 9, 1, 0, 0, 0, 0]] * 4)


def test_class_weights_are_one_on_average_and_the_published_ones():
    for kind in ("inverse", "effective"):
        weight = class_weights(COUNTS, kind)
        torch.testing.assert_close((weight * COUNTS).sum(dim=1), torch.full((4,), 100.0))
        assert bool((weight[:, 3:] == 0).all())
    inverse, effective = (class_weights(COUNTS, k)[0] for k in ("inverse", "effective"))
    torch.testing.assert_close(inverse[2] / inverse[0], torch.tensor(90.0))
    # Cui et al. 2019: (1 - β^90) / (1 - β^1) with β = 0.999
    torch.testing.assert_close(effective[2] / effective[0], torch.tensor((1 - 0.999**90) / 0.001))


@pytest.mark.parametrize(
    "fields",
    [{}, {"loss": "focal"}, {"loss": "logit_adjusted"}, {"class_weights": "inverse"}],
    ids=str,
)
def test_losses_for_rare_classes(fields):
    """By the formulas; and the workers' shares of a batch add up to the whole's."""
    whole = random_data(SPEC, 37, missing=0.3)
    config = TrainConfig(label_smoothing=0.0, **fields)
    objective = Objective.of(config, whole.labels, 7)
    g = torch.Generator().manual_seed(3)
    logits = {h: torch.randn(37, 7, generator=g) for h in HEADS}
    found = head_losses(logits, whole.labels, objective)

    for i, h in enumerate(HEADS):
        known = whole.labels[:, i] != IGNORE_LABEL
        y, x = whole.labels[known, i], logits[h][known]
        counts = torch.bincount(y, minlength=7)
        if fields.get("loss") == "logit_adjusted":
            x = x + (counts.clamp(min=1) / counts.clamp(min=1).sum()).log()
        p = x.softmax(dim=1)[torch.arange(len(y)), y]
        expected = -p.log()
        if fields.get("loss") == "focal":
            expected = (1 - p) ** 2 * expected
        if "class_weights" in fields:
            expected = expected * (len(y) / counts / (counts > 0).sum())[y]
        torch.testing.assert_close(found[known, i], expected)
        assert not found[~known, i].any()
    if not fields:
        assert objective == Objective()

    counts = (whole.labels != IGNORE_LABEL).sum(dim=0)
    shares = [
        head_losses({h: x[r::3] for h, x in logits.items()}, whole.labels[r::3], objective)
        for r in range(3)
    ]
    parts = sum(weighted_loss(share, counts, torch.ones(4)) for share in shares)
    torch.testing.assert_close(parts, weighted_loss(found, counts, torch.ones(4)))


def test_newer_losses_train_and_leave_older_hashes_alone(data):
    config = experiment(epochs=1, loss="focal", class_weights="effective")
    meta = train(config, SPEC, *data)
    assert meta.history[0]["train"]["text"]["loss"] > 0
    old = hash_parts(experiment())["train"]
    assert {"loss", "class_weights"} & set(old) == set()
    assert hash_parts(config)["train"] == {
        **hash_parts(experiment(epochs=1))["train"],
        "loss": "focal",
        "class_weights": "effective",
    }
    scores = dataclasses.replace(SMALL, task="sentiment")
    for part in data:
        object.__setattr__(part, "labels", part.labels.clamp(min=0) / 7)
    with pytest.raises(InputError, match=r"train\.loss: focal is of classes"):
        train(dataclasses.replace(config, model=scores), SPEC, *data)


@pytest.mark.integration
def test_temperatures_lower_the_loss_and_change_no_answer(data, tmp_path):
    sharp = experiment(epochs=3, lr=0.02)
    meta = train(sharp, SPEC, *data, on_epoch=saver(tmp_path))
    folder = tmp_path / str(meta.best_epoch)
    before = Predictor.from_checkpoint(folder)
    assert before.meta.temperature == {}
    calibrate(folder, lambda: data[1])
    after = Predictor.from_checkpoint(folder)
    assert set(after.meta.temperature) == set(HEADS)
    assert dataclasses.replace(after.meta, temperature={}) == before.meta

    rows = {
        m: [data[1].sequence(m, i).numpy() for i in range(len(data[1]))] for m in data[1].features
    }
    was, now = before.predict(rows), after.predict(rows)
    for i, h in enumerate(HEADS):
        np.testing.assert_array_equal(was[h].argmax(axis=1), now[h].argmax(axis=1))
        y = data[1].labels[:, i].numpy()
        nll = [-np.log(p[np.arange(len(y)), y]).mean() for p in (was[h], now[h])]
        assert nll[1] <= nll[0] + 1e-6
    # a second call fits nothing anew, and a run that goes on from there is not calibrated
    first = load_meta(folder)
    calibrate(folder, lambda: data[0])
    assert load_meta(folder) == first
    longer = dataclasses.replace(sharp, train=dataclasses.replace(sharp.train, epochs=5))
    assert train(longer, SPEC, *data, resume=tmp_path / "2").temperature == {}
