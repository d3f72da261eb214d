"""What a benchmark's system names stand for, and what a preset may decide."""

from __future__ import annotations

import dataclasses
import re

import pytest

from lfmim.config import ModelConfig, TrainConfig
from lfmim.experiments.systems import (
    BASELINES,
    RIVALS,
    SENTIMENT_SYSTEMS,
    SYSTEMS,
    BenchmarkConfig,
    benchmark_experiment,
    load_presets,
    system_names,
)
from lfmim.schema import InputError
from tests.support.toy import ROOT

CONFIGS = ROOT / "lfmim" / "configs"
CONFIG = BenchmarkConfig(
    store="s",
    model=ModelConfig(d_model=32, num_heads=4, num_layers=3, dropout_ffn=0.3),
    train=TrainConfig(epochs=7, lr=0.5),
)


def test_a_system_has_the_common_recipe_and_its_own_labels():
    ml, pmr = (benchmark_experiment(CONFIG, s, 3, {}) for s in ("lfmim-ml", "pmr"))
    assert (ml.model.name, ml.train.labels, pmr.model.name, pmr.train.labels) == (
        "lfmim",
        "multimodal",
        "pmr",
        "own",
    )
    for e in (ml, pmr):
        assert dataclasses.replace(e.train, labels="own") == dataclasses.replace(
            CONFIG.train, seed=3
        )
        assert dataclasses.replace(e.model, name="lfmim") == CONFIG.model


def test_a_preset_has_its_own_recipe_at_the_common_size_and_budget():
    presets = load_presets(["lfmim", "strong", "paper"], CONFIGS)
    assert presets.keys() == {"strong", "paper"}
    strong, paper = (benchmark_experiment(CONFIG, s, 2, presets) for s in presets)
    for e in (strong, paper):
        assert (e.model.d_model, e.model.num_layers, e.train.epochs, e.train.seed) == (32, 3, 7, 2)
    assert (strong.model.name, paper.model.name) == ("lfmim-wide", "lfmim")
    assert (strong.train.optimizer, paper.train.optimizer, paper.train.lr) == (
        "adamw",
        "sgd",
        0.005,
    )
    assert strong.model.dropout_ffn == ModelConfig().dropout_ffn  # not the benchmark's


def test_baselines_come_first_and_default_systems_are_the_papers_and_later_ones():
    assert system_names(CONFIG) == [*BASELINES, *SYSTEMS, *RIVALS, "strong"]
    sentiment = dataclasses.replace(
        CONFIG, model=dataclasses.replace(CONFIG.model, task="sentiment")
    )
    assert system_names(sentiment) == [*BASELINES, *SENTIMENT_SYSTEMS, *RIVALS]
    assert system_names(dataclasses.replace(CONFIG, systems=["lmf"])) == [*BASELINES, "lmf"]
    named = dataclasses.replace(CONFIG, systems=["lmf", "logistic"])
    assert system_names(named) == ["stacking", "lmf", "logistic"]


def test_only_what_can_be_a_system_is_offered():
    with pytest.raises(InputError, match="unknown system 'x'") as refused:
        load_presets(["x"], CONFIGS)
    offered = str(refused.value)
    assert "strong" in offered
    assert "paper-momentum" in offered
    assert not {"cluster_extract", "demo", "benchmark", "text"} & set(re.split("[ ,]+", offered))
    assert "search" not in offered


def test_paper_momentum_is_paper_but_for_it():
    presets = load_presets(["paper", "paper-momentum"], CONFIGS)
    paper, faster = (benchmark_experiment(CONFIG, s, 0, presets).train for s in presets)
    assert dataclasses.replace(paper, momentum=0.9) == faster


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: -1}", "preset mine.*train.lr"),
        ("train: {learning_rate: 1}", "preset mine.*learning_rate"),
        ("model: {}", "no section 'train'"),
        ("[", "not YAML"),
        ("train: {lr: 1, lr: 2}", "'lr' is there twice"),
        (None, "unknown system"),
    ],
)
def test_bad_presets_are_refused_by_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        benchmark_experiment(CONFIG, "mine", 0, load_presets(["mine"], tmp_path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"systems": ["pmr", "pmr"]}, "twice"),
        ({"seeds": 0}, "seeds"),
        ({"curves": -2}, "curves"),
        ({"sizes": [600, 300]}, "sizes"),
        ({"sizes": [0]}, "sizes"),
        ({"subsets": 2}, "subsets: 2 are drawn .* add --sizes"),
        ({"sizes": [10], "folds": 3}, "sizes: not with folds"),
        ({"at_once": -1}, "at_once"),
        ({"folds": 2}, "folds: 2 must be 0 or at least 3"),
        ({"store": ""}, "store"),
    ],
)
def test_bad_settings_are_refused_by_name(fields, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **fields)
