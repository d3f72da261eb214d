"""The one command line: its words, its help, what older versions called things."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lfmim.cli.arguments import PRESETS, parse, preset
from lfmim.cli.main import COMMANDS, main
from lfmim.config import ExperimentConfig
from lfmim.experiments.systems import BenchmarkConfig
from lfmim.schema import InputError
from tests.support.toy import ROOT

ABOUT = "What it does.\n\n    lfmim train --store s"
COMMON = ("store", "model.name", "run.storage")


def experiment(*args: str, **more) -> ExperimentConfig:
    return parse(ExperimentConfig, args, prog="lfmim train", about=ABOUT, common=COMMON, **more)


def said(capsys, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(args)
    shown = capsys.readouterr()
    return int(end.value.code or 0), shown.out, shown.err


def test_the_first_help_fits_a_screen_and_names_every_command(capsys):
    code, out, _ = said(capsys, "--help")
    lines = out.splitlines()
    assert (code, len(lines) <= 24, max(map(len, lines)) <= 100) == (0, True, True)
    assert re.findall(r"^  (\w+) ", out, flags=re.M) == list(COMMANDS)
    assert said(capsys)[0] == 2
    code, _, err = said(capsys, "trian")
    assert code == 2
    assert err.startswith("error: unknown command 'trian'; known: demo, import")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_opens_with_an_example_and_lists_common_options_first(command, capsys):
    code, out, _ = said(capsys, command, "--help")
    assert code == 0
    first = f"usage: lfmim {command} "
    assert out.startswith(first)
    assert importlib.import_module(f"lfmim.cli.{COMMANDS[command][0]}").__doc__
    if command not in ("import", "labels", "submit", "encoders", "starter"):
        headings = re.findall(r"^(\S.*):$", out, flags=re.M)
        assert headings[0] == "common options"


def test_one_word_a_thing():
    config = experiment(
        "--store=s", "--storage", "r", "--mlflow", "http://x", "--config=strong", "--system", "mult"
    )
    assert (config.store, config.model.name, config.run.storage) == ("features", "mult", "r")
    assert config.tracking.uri == "http://x"
    assert config == experiment(
        *("--store=s", "--run.storage=r", "--tracking.uri", "http://x"),
        *("--config", str(PRESETS / "strong.yaml"), "--model.name", "mult"),
    )


def test_a_dash_is_an_underscore_and_a_flag_needs_no_value(capsys):
    a = experiment("--store", "s", "--train.batch-size=7", "--model.standardize", "--run.workers=2")
    assert (a.train.batch_size, a.model.standardize, a.run.workers) == (7, True, 2)
    assert not experiment("--store", "s-t", "--model.standardize", "false").model.standardize
    assert experiment("--store", "s-t").store == "s-t"


@pytest.mark.parametrize("given", ["lfmim,pmr", "[lfmim,pmr]", "lfmim, pmr"])
@pytest.mark.parametrize("equals", [True, False])
def test_a_list_needs_no_brackets(given, equals):
    words = [f"--systems={given}"] if equals else ["--systems", given]
    config = parse(
        BenchmarkConfig, ["--store", "s", *words], prog="lfmim benchmark", about="a\n\n", common=()
    )
    assert config.systems == ["lfmim", "pmr"]


def test_old_words_are_taken_and_said(capsys):
    config = experiment("--store", "s", "--uri", "http://x", was={"--uri": "--mlflow"})
    assert config.tracking.uri == "http://x"
    assert capsys.readouterr().err == "note: --uri is --mlflow now\n"


def test_settings_that_come_with_the_package(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset("demo") == preset("demo.yaml") == str(PRESETS / "demo.yaml")
    assert preset("jobs/configs/demo.yaml") == str(PRESETS / "demo.yaml")
    assert "is `--config demo` now" in capsys.readouterr().err
    Path("demo.yaml").write_text("store: mine\n")
    assert preset("demo.yaml") == "demo.yaml"
    assert preset("other.yaml") == "other.yaml"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--store", "s", "--stroe", "x"], r"unrecognized .*--stroe x \(did you mean --store\?\)"),
        (["--store", "s", "--model", "lfmim"], r"unrecognized arguments: --model lfmim"),
        (["--store", "s", "--train.lr", "x"], r"^train.lr: Expected a float. Got value: x;"),
        (["--store", "s", "--train.optimizer", "x"], r"one of 'sgd', 'adamw'. Got value: x"),
        (["--store", "s", "--train.lr", "-1"], r"^train.lr: -1.0 must be positive"),
        ([], r"^--store: needed; `lfmim train --help`"),
        (["--store", "s", "--nope"], r"^unrecognized arguments: --nope; "),
        (["--store", "s", "--config", "none.yaml"], r"none.yaml"),
    ],
)
def test_bad_input_is_one_message(args, message):
    with pytest.raises(InputError, match=message) as told:
        experiment(*args)
    assert len(str(told.value).splitlines()) == 1


def test_a_command_without_options_says_what_it_needs(capsys):
    assert said(capsys, "train") == (
        2,
        "",
        "error: --store: needed; `lfmim train --help` lists the options\n",
    )


def test_an_old_command_line_and_its_new_one_print_the_same_settings(capsys):
    new = said(capsys, "tune", "--store", "s", "--system", "lft", "--print_config")
    old = said(capsys, "tune", "--store", "s", "--model.name", "lft", "--print_config")
    assert new[0] == 0
    assert new == old
    assert "name: lft" in new[1]


@pytest.mark.integration
def test_a_wheel_carries_what_the_command_needs(tmp_path):
    """What setuptools puts into one, run from another folder."""
    build = "import setuptools; setuptools.setup()"
    where = ["build_py", "--build-lib", str(tmp_path / "site"), "egg_info", "-e", str(tmp_path)]
    subprocess.run([sys.executable, "-c", build, *where], check=True, cwd=ROOT, capture_output=True)
    files = {str(p.relative_to(tmp_path / "site")) for p in (tmp_path / "site").rglob("*")}
    assert {"lfmim/configs/demo.yaml", "lfmim/py.typed", "feature_service/py.typed"} <= files
    assert not any(name.startswith(("tests", "jobs")) for name in files)
    done = subprocess.run(
        [sys.executable, "-m", "lfmim", "train", "--config", "demo", "--print_config"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "store: demo/features" in done.stdout
