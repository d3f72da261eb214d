"""Configs refuse what cannot work, by name, and survive a round trip."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lfmim.cli.arguments import parse
from lfmim.config import (
    BetaConfig,
    EncoderConfig,
    ExperimentConfig,
    ExtractConfig,
    ModelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
    config_hash,
    experiment_from_dict,
    to_dict,
)
from lfmim.experiments.search import read_space
from lfmim.experiments.systems import BenchmarkConfig, benchmark_experiment, load_presets
from lfmim.schema import HEADS, InputError, Modality
from tests.support.toy import ROOT

positive, fraction = st.integers(1, 500), st.floats(0, 0.99)
experiments = st.builds(
    ExperimentConfig,
    store=st.text(min_size=1, max_size=5),
    model=st.builds(
        ModelConfig,
        d_model=st.sampled_from([8, 64]),
        num_heads=st.sampled_from([1, 8]),
        num_layers=positive,
        dim_feedforward=st.sampled_from([0, 12, 256]),
        pooling=st.sampled_from(["mean", "fex", "attention"]),
        dropout_ffn=fraction,
        max_audio=positive,
    ),
    train=st.builds(
        TrainConfig,
        optimizer=st.sampled_from(["sgd", "adamw"]),
        lr=st.floats(1e-6, 1.0),
        momentum=fraction,
        beta=st.builds(BetaConfig, text=fraction, multimodal=st.floats(0.1, 2.0)),
        lr_scheduler=st.sampled_from(["inverse_epoch", "cosine", "constant"]),
        patience=st.integers(0, 9),
        selection=st.sampled_from(HEADS),
        seed=st.integers(0, 2**31),
    ),
    run=st.builds(RunConfig, workers=positive, gpus_per_worker=fraction),
    tracking=st.builds(TrackingConfig, experiment=st.text(min_size=1, max_size=4)),
)


@given(experiments)
def test_round_trip_through_json(config):
    assert experiment_from_dict(json.loads(json.dumps(to_dict(config)))) == config


NAN = float("nan")
INVALID = [
    *(
        (ModelConfig, {f: 0}, f"model.{f}")
        for f in (
            "d_model",
            "num_heads",
            "num_layers",
            "fex_tokens",
            "max_text",
            "max_audio",
            "max_vision",
        )
    ),
    (ModelConfig, {"dim_feedforward": -1}, "model.dim_feedforward"),
    (ModelConfig, {"num_heads": 7}, "model.num_heads"),
    (ModelConfig, {"d_model": 9, "num_heads": 3}, "model.d_model"),
    *(
        (ModelConfig, {f: v}, f"model.{f}")
        for f in ("dropout_attention", "dropout_ffn", "dropout_embedding")
        for v in (-0.1, 1.0, NAN)
    ),
    *((BetaConfig, {h: v}, f"train.beta.{h}") for h in HEADS for v in (-1.0, NAN)),
    (BetaConfig, dict.fromkeys(HEADS, 0.0), "train.beta"),
    *(
        (TrainConfig, {f: v}, f"train.{f}")
        for f, v in [
            ("lr", 0),
            ("lr", -1),
            ("lr", NAN),
            ("epochs", 0),
            ("batch_size", 0),
            ("momentum", -0.1),
            ("momentum", 1),
            ("weight_decay", -1),
            ("grad_clip", -1),
            ("patience", -1),
        ]
    ),
    *(
        (RunConfig, {f: v}, f"run.{f}")
        for f, v in [
            ("workers", 0),
            ("gpus_per_worker", -1),
            ("cpus_per_worker", 0),
            ("max_failures", -1),
            ("keep_checkpoints", 0),
            ("name", "a/b"),
            ("name", ".."),
        ]
    ),
    *(
        (TrackingConfig, {f: v}, f"tracking.{f}")
        for f, v in [
            ("experiment", ""),
            ("model_name", ""),
            ("model_name", "a/b"),
            ("model_name", "a:b"),
        ]
    ),
    (ExperimentConfig, {"store": ""}, "store"),
    (EncoderConfig, {"preset": "paper"}, "encoders.vision"),
    *((EncoderConfig, {"text_layer": v}, "encoders.text_layer") for v in ("last", "-1", "8-4")),
    (EncoderConfig, {"audio_layer": "4-"}, "encoders.audio_layer"),
    *(
        (ExtractConfig, {"manifest": "m", "store": "s", f: v}, f)
        for f, v in [
            ("manifest", ""),
            ("store", ""),
            ("segments", 0),
            ("frames_per_segment", 0),
            ("encoder_workers", -1),
            ("rows_per_part", 0),
            ("decode_workers", -1),
            ("gpus_per_worker", -0.5),
        ]
    ),
]
UNCHECKED = [
    (ModelConfig, {"name": "bert"}, "model.name"),
    (ModelConfig, {"pooling": "max"}, "model.pooling"),
    *(
        (TrainConfig, {f: "x"}, f"train.{f}")
        for f in ("optimizer", "lr_scheduler", "selection", "precision")
    ),
    (TrainConfig, {"seed": -1}, "train.seed"),
    (TrainConfig, {"lr": float("inf")}, "train.lr"),
    (EncoderConfig, {"preset": "large"}, "encoders.preset"),
    (EncoderConfig, {"vision_crop": "round"}, "encoders.vision_crop"),
]


@pytest.mark.parametrize(("kind", "fields", "name"), INVALID + UNCHECKED)
def test_invalid_values_name_the_field(kind, fields, name):
    with pytest.raises(InputError, match=rf"^{name}: "):
        kind(**fields)


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        ({}, "store"),
        ({"store": "s", "colour": 1}, "colour"),
        ({"store": "s", "model": {"widht": 1}}, "widht"),
        ({"store": "s", "train": {"beta": {"smell": 1.0}}}, "smell"),
        ({"store": "s", "train": {"lr": -1}}, "train.lr"),
        ({"store": "s", "train": None}, "config"),
        (None, "config"),
        ({"store": "s", "train": "adamw"}, "config"),
    ],
)
def test_a_raw_config_is_refused_by_name(raw, word):
    with pytest.raises(InputError, match=word):
        experiment_from_dict(raw)


def test_the_callers_dict_is_left_alone():
    raw = to_dict(ExperimentConfig(store="s"))
    before = json.dumps(raw)
    experiment_from_dict(raw)
    assert json.dumps(raw) == before


def test_hash_depends_on_values_not_on_key_order():
    assert (
        config_hash({"a": 1, "b": 2})
        == config_hash({"b": 2, "a": 1})
        != config_hash({"a": 1, "b": 3})
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "lfmim" / "configs").glob("*.yaml")), ids=lambda p: p.name
)
def test_shipped_configs_are_valid(path):
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.name == "search.yaml":  # a search space: fields by their full names
        assert set(read_space(str(path), ExperimentConfig(store="s"))) == set(raw)
    elif "manifest" in raw:
        ExtractConfig(**{**raw, "encoders": EncoderConfig(**raw.get("encoders", {}))})
    elif "systems" in raw:  # a benchmark
        args = ["--config", str(path)]
        config = parse(BenchmarkConfig, args, prog="lfmim benchmark", about="a\n\n", common=())
        presets = load_presets(config.systems, path.parent)
        for system in config.systems:
            found = benchmark_experiment(config, system, 0, presets)
            assert found.model.task == config.model.task
    else:
        config = experiment_from_dict(raw)
        assert experiment_from_dict(to_dict(config)) == config


def test_the_upstream_config_is_the_published_recipe():
    raw = yaml.safe_load((ROOT / "lfmim" / "configs" / "upstream.yaml").read_text(encoding="utf-8"))
    config = experiment_from_dict(raw)
    model, train = config.model, config.train
    assert (model.name, model.d_model, model.num_heads, model.num_layers, model.fex_tokens) == (
        "upstream",
        1024,
        16,
        4,
        4,
    )
    assert list(model.max_lengths.values()) == [80, 50, 16]
    assert model.cuts(Modality.AUDIO)
    assert not model.cuts(Modality.VISION)
    assert (train.optimizer, train.lr_scheduler, train.epochs, train.batch_size) == (
        "sgd",
        "inverse_epoch",
        20,
        96,
    )


def test_hub_presets_are_pinned_where_their_own_source_is_used():
    real = EncoderConfig(preset="real-hub")
    assert all(re.fullmatch(r"[0-9a-f]{40}", real.revisions[m]) for m in ("text", "audio"))
    assert (real.sources["vision"], real.revisions["vision"]) == ("", None)
    other = EncoderConfig(preset="real-hub", text="someone/else", audio_revision="v2")
    assert (other.revisions["text"], other.revisions["audio"]) == (None, "v2")
    assert other.sources["audio"] == real.sources["audio"]
    assert EncoderConfig(preset="real", text="x").sources == {
        "text": "x",
        "audio": "",
        "vision": "",
    }
