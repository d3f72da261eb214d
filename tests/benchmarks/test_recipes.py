"""benchmarks/recipes.py: bad input is one message, a benchmark's config is taken."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.support.toy import ROOT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "none"], r"none: no feature_spec.json there"),
        (["--store", "none", "--changes", "lr"], r"--changes lr: 'lr' has no value"),
        (["--store", "none", "--changes", "train.rl=1"], r"no field 'train.rl'; did you mean"),
        (["--store", "none", "--systems", "lfmin"], r"unknown system 'lfmin'"),
        (["--store", "none", "--common", "none.yaml"], r"none.yaml"),
        (["--store", "none", "--changes", "train.lr=[1"], r"--changes train.lr=\[1: '\[1' is no"),
        (
            ["--store", "none", "--size", "9", "--changes", "train.lr=fast"],
            r"train.lr: 'fast' is no number",
        ),
        (["--store", "none", "--common", "typo.yaml"], r"no setting 'trian'"),
        (["--store", "none", "--common", "list.yaml"], r"no settings in it"),
        # The config itself is fine, what a benchmark alone has is left aside.
        (["--store", "none", "--common", "small.yaml"], r"none: no feature_spec.json there"),
    ],
)
def test_bad_input_is_one_message(tmp_path, monkeypatch, words, message):
    (tmp_path / "small.yaml").write_text(
        "systems: [lfmim]\ncurves: 0\ncpus_per_run: 1\nmodel: {d_model: 16, num_heads: 2}\n"
        "train: {epochs: 1}\n"
    )
    (tmp_path / "typo.yaml").write_text("trian: {epochs: 1}\n")
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["recipes.py", *words])
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        runpy.run_path(str(ROOT / "benchmarks" / "recipes.py"), run_name="__main__")


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--jobs", "-1"], ["--seeds", "x"]])
def test_numbers_of_runs_are_positive(monkeypatch, capsys, words):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(sys, "argv", ["recipes.py", "--store", "none", *words])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "benchmarks" / "recipes.py"), run_name="__main__")
    assert f"{words[1]}: a whole number of at least 1" in capsys.readouterr().err
