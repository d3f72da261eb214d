"""Names of settings up to 0.1 give what they gave, wherever a config comes from, and are said."""

from __future__ import annotations

import dataclasses
import json
import logging
import subprocess
import sys

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import auto_cli

from lfmim import former_names
from lfmim.config import (
    NEWER,
    ExperimentConfig,
    ModelConfig,
    TrainConfig,
    config_hash,
    experiment_from_dict,
    hash_parts,
    to_dict,
)
from lfmim.experiments.search import TrialRecord, read_space, read_trial
from lfmim.experiments.systems import load_presets
from lfmim.former_names import FORMER, RENAMED, translate, translate_options
from lfmim.models import EmotionNet, build_model
from lfmim.schema import EncoderSpec, FeatureSpec, InputError
from lfmim.training.checkpoint import META, CheckpointMeta, load_model, save_checkpoint
from tests.support.toy import ROOT

# old name, its value, the value under the new name; d_model is 128
CASES = [
    ("model.width", 64, 64),
    ("model.heads", 4, 4),
    ("model.layers", 2, 2),
    ("model.ffn_multiple", 2, 256),
    ("model.ffn_multiple", 4, 0),
    ("train.schedule", "cosine", "cosine"),
    ("train.warmup", 1.5, 1.5),
    ("train.ema", 0.9, 0.9),
]
each = pytest.mark.parametrize(("old", "value", "now"), CASES)
BASE = ExperimentConfig(store="s")
# As 0.1 wrote them.
OLD_MODEL = {"width": 16, "heads": 2, "layers": 1, "ffn_multiple": 2}
OLD_TRAIN = {"schedule": "cosine", "warmup": 1.0, "ema": 0.5}
NEW = ExperimentConfig(
    store="s",
    model=ModelConfig(d_model=16, num_heads=2, num_layers=1, dim_feedforward=32),
    train=TrainConfig(lr_scheduler="cosine", warmup_epochs=1.0, ema_decay=0.5),
)


def as_old(config: ExperimentConfig, model=OLD_MODEL, train=OLD_TRAIN) -> dict:
    """The whole config as 0.1 wrote it, its renamed settings those of OLD_*."""
    raw = to_dict(config)
    for new in FORMER:
        section, name = new.split(".")
        del raw[section][name]
    return {**raw, "model": {**raw["model"], **model}, "train": {**raw["train"], **train}}


def nested(field: str, value) -> dict:
    section, name = field.split(".")
    return {"store": "s", section: {name: value}}


def wanted(old: str, now) -> ExperimentConfig:
    return experiment_from_dict(nested(RENAMED[old], now))


def parse(*args: str) -> ExperimentConfig:
    return auto_cli(ExperimentConfig, as_positional=False, args=translate_options(args)[0])


@pytest.fixture(autouse=True)
def fresh():
    """Warnings are given once a process."""
    former_names._say.cache_clear()


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_every_renamed_setting_is_tried():
    assert {old for old, _, _ in CASES} == set(RENAMED)
    fields = {f"model.{f.name}" for f in dataclasses.fields(ModelConfig)}
    fields |= {f"train.{f.name}" for f in dataclasses.fields(TrainConfig)}
    assert set(FORMER) <= fields
    assert not set(RENAMED) & fields


@each
def test_a_dict(caplog, old, value, now):
    raw = nested(old, value)
    before = json.dumps(raw)
    assert experiment_from_dict(raw) == experiment_from_dict(raw) == wanted(old, now)
    assert json.dumps(raw) == before
    (line,) = said(caplog)
    assert line.startswith(f"{old} is now {RENAMED[old]}")


@each
@pytest.mark.parametrize("joined", [True, False])
def test_a_command_line(old, value, now, joined):
    given = [f"--{old}={value}"] if joined else [f"--{old}", str(value)]
    args, lines = translate_options(["--store", "s", *given, "--run.name", "r"])
    (line,) = lines
    assert line.startswith(f"{old} is now {RENAMED[old]}")
    new = [f"--{RENAMED[old]}={now}"] if joined else [f"--{RENAMED[old]}", str(now)]
    assert args == ["--store", "s", *new, "--run.name", "r"]
    assert translate_options(args) == (args, [])
    assert parse("--store", "s", *given) == wanted(old, now)


@each
@pytest.mark.parametrize("option", ["--config", "--section"])
def test_a_file_of_a_command_line(tmp_path, old, value, now, option):
    path, (section, name) = tmp_path / "old.yaml", old.split(".")
    raw = nested(old, value) if option == "--config" else {name: value}
    path.write_text(yaml.safe_dump(raw))
    option = option.replace("section", section)
    for command in ([option, str(path)], [f"{option}={path}"], [option, json.dumps(raw)]):
        args, lines = translate_options(command)
        assert len(lines) == 1
        assert f": {old} is now {RENAMED[old]}" in lines[0]
        assert parse(*args, "--store", "s") == wanted(old, now)


def test_files_and_command_lines_without_old_names_are_left_alone(tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("model: {d_model: 64}\n")
    for value in (path, tmp_path, "models:/lfmim@champion", "gone.yaml", "{", "[1]", ""):
        args = ["--config", str(value), "--model", str(value), "--heads", "16", "model.width", "--"]
        assert translate_options(args) == (args, [])
    for shipped in (ROOT / "lfmim" / "configs").glob("*.yaml"):
        assert translate(yaml.safe_load(shipped.read_text()) or {})[1] == []


@pytest.mark.parametrize(
    ("args", "width"),
    [
        (["--model.ffn_multiple", "2"], 2 * 128),
        (["--model.ffn_multiple", "2", "--model.width", "32"], 2 * 32),
        (["--model.d_model=32", "--model.ffn_multiple=2"], 2 * 32),
        (["--config", "FILE", "--model.ffn_multiple", "3"], 3 * 64),
        (["--config", "FILE", "--model.d_model", "32"], 2 * 32),
        (["--config", "FILE", "--model.dim_feedforward", "7"], 7),
        (["--model", "{width: 32, ffn_multiple: 3}"], 3 * 32),
    ],
)
def test_a_multiple_is_of_the_width_that_counts_in_the_end(tmp_path, args, width):
    path = tmp_path / "old.yaml"
    path.write_text("model: {width: 64, ffn_multiple: 2}\n")
    args = [str(path) if a == "FILE" else a for a in args]
    assert parse("--store", "s", *args).model.feedforward == width


def test_an_option_overrides_a_config_under_either_name(tmp_path):
    path = tmp_path / "c.yaml"
    for name, option in (("width", "model.d_model"), ("d_model", "model.width")):
        path.write_text(f"store: s\nmodel: {{{name}: 64}}\n")
        assert parse("--config", str(path), f"--{option}", "32").model.d_model == 32


@each
def test_both_names_at_once_are_refused(tmp_path, old, value, now):
    new = RENAMED[old]
    words = rf"{old} and (--)?{new} are two names of one setting"
    (section, name), other = old.split("."), new.split(".")[1]
    both = {section: {name: value, other: now}}
    with pytest.raises(InputError, match=words):
        experiment_from_dict({"store": "s", **both})
    with pytest.raises(InputError, match=words):
        translate_options([f"--{old}={value}", f"--{new}", str(now)])
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(both))
    with pytest.raises(InputError, match=words):
        translate_options(["--config", str(tmp_path / "c.yaml")])
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({old: [value], new: [now]}))
    with pytest.raises(InputError, match=words):
        read_space(str(tmp_path / "space.yaml"), BASE)


@each
def test_a_search_space(caplog, tmp_path, old, value, now):
    spaces = []
    for field, entry in ((old, value), (RENAMED[old], now)):
        path = tmp_path / f"{field}.yaml"
        path.write_text(yaml.safe_dump({field: [entry]}))
        spaces.append(read_space(str(path), BASE))
    assert spaces[0] == spaces[1]
    (line,) = said(caplog)
    assert line.startswith(f"{tmp_path / old}.yaml: {old} is now {RENAMED[old]}")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("model.ffn_multiple: {low: 1, high: 4}", "dim_feedforward now, the width itself"),
        ("model.ffn_multiple: [two]", "'two' of 128 is no whole number"),
        ("model.ffn_multiple: [0]", "model.ffn_multiple: 0 must be at least 1"),
        ("model.ffn_multiple: [2]\nmodel.width: [64]", "which is searched, too"),
    ],
)
def test_multiples_that_are_no_widths_are_refused(tmp_path, space, words):
    path = tmp_path / "space.yaml"
    path.write_text(space)
    with pytest.raises(InputError, match=words):
        read_space(str(path), BASE)


def test_a_trial_of_before(caplog):
    raw = {
        "number": 3,
        "params": {"model.width": 16, "train.ema": 0.5, "model.ffn_multiple": 2},
        "state": "finished",
        "config": as_old(BASE),
    }
    assert read_trial(json.dumps(raw)) == TrialRecord(
        number=3,
        params={"model.d_model": 16, "train.ema_decay": 0.5, "model.dim_feedforward": 32},
        state="finished",
        config=to_dict(NEW),
    )
    assert said(caplog) == []


def test_a_preset(caplog, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {heads: 2}\ntrain: {schedule: cosine}\n")
    assert load_presets(["mine"], tmp_path) == {
        "mine": {"model": {"num_heads": 2}, "train": {"lr_scheduler": "cosine"}}
    }
    assert len(said(caplog)) == 1


def test_a_checkpoint_of_before_loads_silently_and_strictly(caplog, tmp_path):
    dims = {"text": 5, "audio": 4, "vision": 3}
    spec = FeatureSpec(
        encoders={
            m: EncoderSpec(name=m, revision="", weights_sha256=m, dim=d, max_length=9)
            for m, d in dims.items()
        }
    )
    model = build_model(NEW.model, spec.dims)
    save_checkpoint(tmp_path / "c", model, CheckpointMeta.start(NEW, spec), {})
    meta = json.loads((tmp_path / "c" / META).read_text())
    meta["config"] = as_old(BASE)
    (tmp_path / "c" / META).write_text(json.dumps(meta))

    loaded, again = load_model(tmp_path / "c")
    assert again.config == NEW
    assert all((a == b).all() for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert said(caplog) == []
    meta["config"]["model"]["breadth"] = 1
    (tmp_path / "c" / META).write_text(json.dumps(meta))
    with pytest.raises(InputError, match="breadth"):
        load_model(tmp_path / "c")


def test_a_plugin_model_that_reads_the_old_names(caplog):
    class Mine(EmotionNet):
        def __init__(self, config: ModelConfig) -> None:
            super().__init__()
            old = config
            self.sizes = (old.width, old.heads, old.layers, old.ffn_multiple)

    assert Mine(NEW.model).sizes == (16, 2, 1, 2)
    assert Mine(BASE.model).sizes == (128, 8, 4, 4)
    assert len(said(caplog)) == 4
    assert not hasattr(NEW.model, "breadth")
    assert not hasattr(NEW.model, "ema")


@pytest.mark.integration
def test_a_job_reads_old_names_and_says_so_once(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text("store: s\nmodel: {width: 64, layers: 2}\n")
    command = [sys.executable, str(ROOT / "jobs" / "train.py"), "--config", str(path)]
    done = subprocess.run(
        [*command, "--model.ffn_multiple", "2", "--print_config"],
        capture_output=True,
        text=True,
        check=True,
    )
    model = yaml.safe_load(done.stdout)["model"]
    assert (model["d_model"], model["num_layers"], model["dim_feedforward"]) == (64, 2, 128)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{path}: model.width is now model.d_model")
    assert line.endswith("The next release reads the new names alone.")


small = st.fixed_dictionaries(
    {},
    optional={
        "width": st.sampled_from([8, 64]),
        "heads": st.sampled_from([2, 8]),
        "layers": st.integers(1, 9),
        "ffn_multiple": st.integers(1, 9),
    },
)
recipe = st.fixed_dictionaries(
    {},
    optional={
        "schedule": st.sampled_from(["cosine", "constant"]),
        "warmup": st.floats(0, 9),
        "ema": st.floats(0, 0.99),
    },
)


@given(small, recipe)
def test_what_was_hashed_is_hashed_and_what_was_trained_is_trained(model, train):
    """A run begun under the old names keeps its own: the same command continues it."""
    before = as_old(
        BASE,
        {"width": 128, "heads": 8, "layers": 4, "ffn_multiple": 4, **model},
        {"schedule": "inverse_epoch", "warmup": 0.0, "ema": 0.0, **train},
    )
    now = experiment_from_dict({"store": "s", "model": model, "train": train}, stored=True)
    assert experiment_from_dict(before, stored=True) == now
    assert now.model.feedforward == before["model"]["width"] * before["model"]["ffn_multiple"]
    old = {
        part: {k: v for k, v in before[part].items() if k not in fields}
        for part, fields in NEWER.items()
    }
    assert hash_parts(now) == old


def test_the_hash_of_the_defaults_is_that_of_0_1():
    """Taken with the code of before the names changed."""
    assert config_hash(*hash_parts(BASE).values(), "data") == "3318ecaa93"
    odd = dataclasses.replace(BASE, model=ModelConfig(dim_feedforward=100))
    same = dataclasses.replace(BASE, model=ModelConfig(dim_feedforward=512))
    hashes = {config_hash(*hash_parts(c).values()) for c in (BASE, odd, same)}
    assert len(hashes) == 3


def test_an_option_that_means_nothing_any_more_is_left_out_and_said(tmp_path):
    config = tmp_path / "old.yaml"
    config.write_text("store: s\nface_workers: 2\n")
    given = ["--config", str(config), "--face_workers", "3", "--seed", "1", "--face_workers=4"]
    args, lines = translate_options([*given, "--model.width", "64"])
    assert args == ["--config", "{store: s}\n", "--seed", "1", "--model.d_model", "64"]
    assert len([line for line in lines if "face_workers is no setting any more" in line]) == 3


def test_a_model_that_was_revised_is_another_run():
    pmr = dataclasses.replace(BASE, model=ModelConfig(name="pmr"))
    assert hash_parts(pmr)["model"].pop("revision") > 1
    assert "revision" not in hash_parts(BASE)["model"]
