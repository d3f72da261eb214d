"""Packed training gives each run what it would get alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import SPEC
from safetensors.torch import load_file
from two_workers import random_data

from lfmim.config import BetaConfig, ExperimentConfig, ModelConfig, TrainConfig
from lfmim.schema import HEADS, InputError
from lfmim.training.checkpoint import WEIGHTS, load_state
from lfmim.training.loop import NonFiniteLossError, train
from lfmim.training.packed import train_packed

STILL = ModelConfig(
    d_model=16,
    num_heads=2,
    num_layers=1,
    max_text=12,
    max_audio=12,
    max_vision=12,
    dropout_attention=0,
    dropout_ffn=0,
    dropout_embedding=0,
)
N = 29


def experiment(model=STILL, **fields) -> ExperimentConfig:
    defaults = {
        "optimizer": "adamw",
        "lr": 0.003,
        "lr_scheduler": "cosine",
        "epochs": 2,
        "batch_size": 16,
    }
    return ExperimentConfig(store="none", model=model, train=TrainConfig(**{**defaults, **fields}))


def data():
    return random_data(SPEC, N, missing=0.3), random_data(SPEC, N, seed=1)


OWN = [
    {"seed": 0, "lr": 0.003},
    {"seed": 5, "lr": 0.01},
    {"seed": 2, "lr": 0.001, "beta": BetaConfig(audio=0, text=2)},
]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fields", "rates"),
    [
        ({"weight_decay": 0.1, "grad_clip": 0.5}, True),
        ({"weight_decay": 0.1}, False),
        ({"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.01, "labels": "multimodal"}, True),
        ({"warmup_epochs": 1.5, "label_smoothing": 0.1}, True),
    ],
)
def test_every_run_equals_its_separate_one(tmp_path, fields, rates):
    own = OWN if rates else [{**o, "lr": 0.003} for o in OWN]
    configs = [experiment(**fields, **o) for o in own]
    metas = train_packed(
        configs, SPEC, *data(), on_epoch=lambda k, r, save: save(tmp_path / f"{k}-{r.epoch}")
    )
    for k, (config, meta) in enumerate(zip(configs, metas, strict=True)):
        alone = train(
            config, SPEC, *data(), on_epoch=lambda r, save: save(tmp_path / f"alone-{r.epoch}")
        )
        assert [e["lr"] for e in meta.history] == [e["lr"] for e in alone.history]
        for a, b in zip(meta.history, alone.history, strict=True):
            for part in ("train", "valid"):
                for head in HEADS:
                    assert a[part][head]["loss"] == pytest.approx(b[part][head]["loss"], rel=2e-5)
                    assert a[part][head]["count"] == b[part][head]["count"]
        got, want = (load_file(tmp_path / name / WEIGHTS) for name in (f"{k}-1", "alone-1"))
        assert got.keys() == want.keys()
        for name, weight in got.items():
            # softmax ignores the keys' bias: its gradient is noise that AdamW blows up
            if name.endswith("qkv.bias"):
                weight[len(weight) // 3 : -len(weight) // 3] = want[name][
                    len(weight) // 3 : -len(weight) // 3
                ]
            torch.testing.assert_close(weight, want[name], rtol=2e-3, atol=1e-4)


def test_a_packed_checkpoint_continues_alone(tmp_path):
    config = experiment(optimizer="sgd", momentum=0.9)
    train_packed(
        [config, experiment(optimizer="sgd", momentum=0.9, seed=1)],
        SPEC,
        *data(),
        on_epoch=lambda k, r, save: save(tmp_path / f"{k}-{r.epoch}"),
    )
    train(
        config,
        SPEC,
        *data(),
        resume=tmp_path / "0-0",
        on_epoch=lambda r, save: save(tmp_path / f"on-{r.epoch}"),
    )
    got, want = (load_file(tmp_path / name / WEIGHTS) for name in ("on-1", "0-1"))
    for name, weight in got.items():
        torch.testing.assert_close(weight, want[name], rtol=1e-3, atol=2e-5)
    assert len(load_state(tmp_path / "0-0")["optimizer"]["state"]) > 10


def test_with_dropout_runs_differ_and_repeat():
    wet = dataclasses.replace(STILL, dropout_attention=0.2, dropout_ffn=0.2)

    def losses(*seeds):
        return [
            m.history[-1]["train"]["text"]["loss"]
            for m in train_packed([experiment(model=wet, seed=s) for s in seeds], SPEC, *data())
        ]

    one, other = losses(0, 1)
    assert one != other
    assert losses(0, 1) == [one, other]
    dry = train_packed([experiment(seed=0)], SPEC, *data())[0].history[-1]["train"]["text"]["loss"]
    assert dry != one
    assert dry == pytest.approx(one, rel=0.2)


def test_patience_ends_a_run_alone_and_all_together():
    reports: list[tuple[int, int]] = []
    configs = [
        experiment(lr=lr, epochs=30, patience=2, lr_scheduler="constant") for lr in (1e-9, 0.01)
    ]
    metas = train_packed(
        configs, SPEC, *data(), on_epoch=lambda k, r, save: reports.append((k, r.epoch))
    )
    assert metas[0].epoch == 3
    assert reports[-1][1] + 1 == max(m.epoch for m in metas)
    assert sum(k == 0 for k, _ in reports) == 3


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(InputError, match="seed, lr, beta only"):
        train_packed([experiment(), experiment(epochs=4)], SPEC, *data())
    with pytest.raises(InputError, match="no runs"):
        train_packed([], SPEC, *data())
    with pytest.raises(NonFiniteLossError, match=r"seed 7, lr 1e\+30"):
        train_packed(
            [experiment(optimizer="sgd"), experiment(optimizer="sgd", seed=7, lr=1e30)],
            SPEC,
            *data(),
        )


def test_what_the_loop_refuses_is_refused():
    lmf, whole = dataclasses.replace(STILL, name="lmf"), random_data(SPEC, N)
    with pytest.raises(InputError, match=r"modality_dropout: lmf needs every modality"):
        train_packed([experiment(model=lmf, modality_dropout=0.1)] * 2, SPEC, whole, whole)
    with pytest.raises(InputError, match="lmf has no head 'text'"):
        train_packed([experiment(model=lmf, selection="text")] * 2, SPEC, whole, whole)
