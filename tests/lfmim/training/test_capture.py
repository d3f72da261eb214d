"""What is captured on a GPU, called directly here: the same steps, in memory that stays, and
nothing that a CUDA graph could not hold."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors, epoch_order
from lfmim.models import MODELS, cpu
from lfmim.schema import HEADS, IGNORE_LABEL, InputError
from lfmim.training import capture
from lfmim.training.capture import MAX_SHAPES, Replays, batch_lengths, fixed_lengths
from lfmim.training.checkpoint import WEIGHTS, load_meta
from lfmim.training.loop import train
from lfmim.training.variant import Variant, choose, keep_compiled_code, obstacle
from tests.support.toy import SPEC
from tests.support.two_workers import random_data

SMALL = ModelConfig(d_model=16, num_heads=2, num_layers=2, max_text=5, max_audio=5, max_vision=5)
STILL = dataclasses.replace(SMALL, dropout_attention=0, dropout_ffn=0, dropout_embedding=0)
TRAINED = [name for name in MODELS if not MODELS[name].fitted]
CUDA = torch.device("cuda")


def experiment(model=STILL, **fields) -> ExperimentConfig:
    """24 utterances make one whole batch and a short one."""
    defaults = {"epochs": 2, "batch_size": 16, "lr": 0.01, "lr_scheduler": "constant"}
    return ExperimentConfig(store="none", model=model, train=TrainConfig(**{**defaults, **fields}))


def scores(data: UtteranceTensors) -> UtteranceTensors:
    """The same utterances with sentiment scores."""
    known = data.labels != IGNORE_LABEL
    labels = torch.where(known, data.labels / 3 - 1, float(IGNORE_LABEL))
    return dataclasses.replace(data, labels=labels)


def run(config, data, variant, **options):
    return train(config, SPEC, data, data, variant=variant, **options)


@given(
    lengths=st.lists(st.tuples(*[st.integers(0, 90)] * 2), min_size=1, max_size=60),
    rows=st.integers(1, 9),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_few_shapes_hold_every_batch(lengths, rows, seed):
    counts = torch.tensor(lengths)
    features = {m: torch.zeros(len(lengths), 90, 1) for m in ("text", "audio")}
    data = UtteranceTensors.from_padded(
        [str(i) for i in range(len(lengths))],
        features,
        {"text": counts[:, 0], "audio": counts[:, 1]},
        torch.zeros(len(lengths), len(HEADS), dtype=torch.int64),
    )
    shapes = fixed_lengths(data, rows)
    assert 1 <= len(shapes) <= MAX_SHAPES
    assert shapes == sorted(shapes, key=sum)
    longest = counts.amax(dim=0).clamp(min=1).tolist()
    assert list(shapes[-1]) == longest
    # of every epoch, not only the one that they were chosen by
    needed = batch_lengths(data, epoch_order(len(data), (seed, 7)), rows)
    assert all(
        any(all(n <= room for n, room in zip(batch, shape, strict=True)) for shape in shapes)
        for batch in needed.tolist()
    )
    assert needed.amax(dim=0).tolist() == longest


@pytest.mark.parametrize("mapped", [False, True])
def test_every_row_comes_once_as_gather_gives_it(mapped):
    data = dataclasses.replace(random_data(SPEC, 21, missing=0.3), mapped=mapped)
    order = epoch_order(len(data), (0, 1))
    seen = []
    shapes = fixed_lengths(data, 8)
    for fill_up, sizes in ((True, [8, 8, 8]), (False, [8, 8, 5])):
        replays = Replays(data, 8, shapes, lambda batch: seen.append(batch), fill_up=fill_up)
        seen.clear()
        for number, call in replays.over(order):
            call()
            batch = seen.pop()
            assert len(batch.labels) == sizes[number]
            rows = order[8 * number : 8 * number + 8]
            (expected,) = [data.gather(rows, torch.ones(len(rows)), batch.counts)]
            for m, x in expected.features.items():
                n = x.shape[1]
                assert torch.equal(batch.features[m][: len(rows), :n], x)
                assert torch.equal(batch.masks[m][: len(rows), :n], expected.masks[m])
                assert not batch.masks[m][: len(rows), n:].any()
            assert torch.equal(batch.labels[: len(rows)], expected.labels)
            assert (batch.labels[len(rows) :] == IGNORE_LABEL).all()
            assert batch.weight.sum() == len(rows)
            assert torch.equal(batch.counts, (expected.labels != IGNORE_LABEL).sum(dim=0).float())


@pytest.mark.parametrize(
    ("name", "task"), [*((name, "emotion") for name in TRAINED), ("lfmim", "sentiment")]
)
def test_each_model_learns_what_it_does_eagerly(name, task):
    data = random_data(SPEC, 24, missing=0.2)
    data = scores(data) if task == "sentiment" else data
    config = experiment(dataclasses.replace(STILL, name=name, task=task))
    eager, captured = (run(config, data, v) for v in (Variant.EAGER, Variant.CAPTURED))
    assert captured.variant == "captured"
    for a, b in zip(eager.history, captured.history, strict=True):
        for split in ("train", "valid"):
            for head in HEADS:
                x, y = a[split][head], b[split][head]
                assert x["count"] == y["count"]
                if x["count"]:
                    assert y["loss"] == pytest.approx(x["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adamw", "ema_decay": 0.8, "warmup_epochs": 1.5, "lr_scheduler": "cosine"},
        {"momentum": 0.9, "grad_clip": 0.1, "weight_decay": 0.01, "labels": "multimodal"},
        {"loss": "focal", "class_weights": "inverse", "label_smoothing": 0.1},
    ],
)
def test_every_recipe_learns_what_it_does_eagerly(tmp_path, fields):
    data, config = random_data(SPEC, 40, missing=0.2), experiment(**fields, epochs=3)
    weights = []
    for variant in (Variant.EAGER, Variant.CAPTURED):
        folder = tmp_path / variant
        run(config, data, variant, on_epoch=lambda r, save, f=folder: save(f / str(r.epoch)))
        weights.append(load_file(folder / "2" / WEIGHTS))
    eager, captured = weights
    assert eager.keys() == captured.keys()
    for name, x in eager.items():
        # A third of it are the keys', whose gradient is rounding alone: softmax ignores them.
        if not name.endswith("qkv.bias"):
            assert torch.allclose(captured[name], x, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize(
    "fields",
    [
        {"optimizer": "adamw", "ema_decay": 0.8, "modality_dropout": 0.2, "step_dropout": 0.1},
        {"momentum": 0.9},
    ],
)
def test_a_resumed_run_equals_the_undisturbed_one(tmp_path, fields):
    data, config = random_data(SPEC, 40, missing=0.2), experiment(SMALL, **fields, epochs=3)

    def saver(folder):
        return lambda report, save: save(folder / str(report.epoch))

    whole = run(config, data, Variant.CAPTURED, on_epoch=saver(tmp_path / "whole"))
    torch.manual_seed(99)
    rest = run(
        config,
        data,
        Variant.CAPTURED,
        on_epoch=saver(tmp_path / "rest"),
        resume=tmp_path / "whole" / "0",
    )
    assert whole.history[-1]["train"] == rest.history[-1]["train"]
    a, b = (load_file(tmp_path / name / "2" / WEIGHTS) for name in ("whole", "rest"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    # And where steps are computed one by one, from the same state.
    eager = run(config, data, Variant.EAGER, resume=tmp_path / "whole" / "1")
    assert eager.epoch == 3
    assert load_meta(tmp_path / "whole" / "2").variant == "captured"


def test_one_seed_after_another_is_what_each_gives_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(capture, "_replay", lambda work, *_: calls.append(1) or work)
    data = random_data(SPEC, 40, missing=0.2)
    fields = {"optimizer": "adamw", "ema_decay": 0.8, "modality_dropout": 0.2}
    runs = [
        experiment(SMALL, **fields, seed=0),
        experiment(SMALL, **fields, seed=1, lr=0.003, epochs=3),
        experiment(SMALL, **fields, seed=2, batch_size=8),
    ]
    alone = [run(c, data, Variant.CAPTURED) for c in runs]
    captured, begun = [], len(calls)
    for c in runs:
        captured.append(run(c, data, Variant.CAPTURED, hold=True))
    assert len(calls) - begun < begun
    for a, b in zip(alone, captured, strict=True):
        assert [(x["train"], x["valid"]) for x in a.history] == [
            (x["train"], x["valid"]) for x in b.history
        ]


class NothingAsked(TorchDispatchMode):
    """Refuses what the host would have to wait for, or has to say anew: no graph can hold it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert name not in (
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "_unique2",
            "unique_dim",
            "bincount",
            "lift_fresh",
            "lift_fresh_copy",
            "repeat_interleave",
            "is_nonzero",
            "equal",
        ), name
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        assert not any(i is not None and i.dtype == torch.bool for i in indices), f"{name} by bool"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ["emotion", "sentiment"])
@pytest.mark.parametrize("name", TRAINED)
def test_no_step_asks_the_device(monkeypatch, name, task):
    # As on a GPU, where torch's own kernels compute.
    monkeypatch.setattr(cpu, "applies", lambda x: False)
    asked = []

    def call(work, device, pool):
        def watched():
            with NothingAsked():
                work()
            asked.append(1)

        work()  # as a warm-up does
        return watched

    monkeypatch.setattr(capture, "_replay", call)
    data = random_data(SPEC, 24, missing=0.2)
    data = scores(data) if task == "sentiment" else data
    model = dataclasses.replace(SMALL, name=name, task=task)
    drops = {"step_dropout": 0.1}
    if MODELS[name].accepts_absent:
        drops["modality_dropout"] = 0.2
    config = experiment(model, epochs=1, momentum=0.9, grad_clip=1.0, ema_decay=0.9, **drops)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=99))
    run(config, data, Variant.CAPTURED)
    assert len(asked) == 2 + 1


def test_what_cannot_be_captured_is_computed_eagerly(monkeypatch, capsys):
    data, config = random_data(SPEC, 24, missing=0.2), experiment(momentum=0.9, ema_decay=0.8)
    eager = run(config, data, Variant.EAGER)

    def refused(work, device, pool):
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    monkeypatch.setattr(capture, "_replay", refused)
    meta = run(config, data, Variant.CAPTURED)
    assert meta.variant == "eager"
    assert [x["train"] for x in meta.history] == [x["train"] for x in eager.history]
    said = capsys.readouterr().err
    assert "lfmim: its step cannot be captured" in said
    assert "not permitted when stream is capturing)" in said


def test_a_full_gpu_is_an_error_for_people(monkeypatch):
    gib = 2**30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * gib)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(capture, "_replay", full)
    with pytest.raises(InputError, match=r"Of 80\.0 GiB this run has 9\.0 and other .* 70\.0;"):
        run(experiment(), random_data(SPEC, 24), Variant.CAPTURED)


def test_the_choice_depends_on_the_work_alone(monkeypatch):
    monkeypatch.setattr("lfmim.training.variant.has_triton", lambda: True)

    def chosen(epochs=20, samples=17_230, model=None, world=1, precision="bf16", **fields):
        c = TrainConfig(epochs=epochs, **fields)
        return choose(
            c, model or ModelConfig(), CUDA, samples=samples, precision=precision, world=world
        )

    assert [chosen(epochs=n) for n in (5, 20, 50, 100)] == [
        Variant.CAPTURED,
        Variant.CAPTURED,
        Variant.CAPTURED_LAYERS,
        Variant.CAPTURED_MODEL,
    ]
    # half the batch is twice as many steps of half the arithmetic
    assert chosen(epochs=50, batch_size=48) == chosen(epochs=50)
    assert chosen(epochs=100, model=SMALL) is Variant.CAPTURED
    assert chosen(compile="off") is Variant.EAGER
    assert chosen(compile="on") is Variant.CAPTURED_MODEL
    for hindered in ({"world": 2}, {"precision": "fp16"}, {"micro_batch": 8}):
        assert chosen(**hindered) is Variant.EAGER
        assert chosen(**hindered, compile="on") is Variant.COMPILED

    monkeypatch.setattr("lfmim.training.variant.has_triton", lambda: False)
    assert chosen(epochs=100) is chosen(compile="on") is Variant.CAPTURED


def test_a_run_goes_on_as_it_began(monkeypatch):
    monkeypatch.setattr("lfmim.training.variant.has_triton", lambda: True)

    def chosen(before, device=CUDA, **fields):
        c = TrainConfig(epochs=5, **fields)
        about = {"samples": 17_230, "precision": "bf16", "world": 1, "before": before}
        return choose(c, ModelConfig(), device, **about)

    assert chosen("captured-layers") is Variant.CAPTURED_LAYERS
    assert chosen("eager") is chosen("") is Variant.CAPTURED
    assert chosen("captured-layers", compile="on") is Variant.CAPTURED_MODEL
    assert chosen("captured-layers", device=torch.device("cpu")) is Variant.EAGER


def test_what_hinders_is_named():
    def said(device=CUDA, precision="bf16", world=1, **fields):
        return obstacle(TrainConfig(**fields), device, precision=precision, world=world)

    assert said() == ""
    assert "CUDA" in said(device=torch.device("cpu"))
    assert "workers" in said(world=2)
    assert "fp16" in said(precision="fp16")
    assert "micro_batch" in said(micro_batch=4)


def test_compiled_code_is_kept_in_a_folder_of_the_users_own(monkeypatch, tmp_path):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as the user said")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "as the user said"

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder = tmp_path / f"compiled-{os.getuid() + 1}"
    folder.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    keep_compiled_code()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.undo()
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / f"compiled-{os.getuid()}")
