"""benchmarks/recipes.py: bad input is one message, a benchmark's config is taken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.toy import ROOT, write_toy_store


def recipes(folder, *words):
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "recipes.py", "--output", folder / "out", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        timeout=300,
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "none"], "none: no feature_spec.json there"),
        (["--store", "none", "--changes", "lr"], "--changes lr: 'lr' has no value"),
        (["--store", "none", "--changes", "train.rl=1"], "no field 'train.rl'; did you mean"),
        (["--store", "none", "--systems", "lfmin"], "unknown system 'lfmin'"),
        (["--store", "none", "--common", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_is_one_message(tmp_path, words, message):
    done = recipes(tmp_path, *words)
    assert done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_a_benchmarks_config_is_taken(tmp_path):
    write_toy_store(tmp_path / "store")
    (tmp_path / "small.yaml").write_text(
        "systems: [lfmim]\ncurves: 0\ncpus_per_run: 1\n"
        "model: {d_model: 16, num_heads: 2, num_layers: 1, max_text: 8, max_audio: 8}"
        "\ntrain: {epochs: 1, batch_size: 16}\n"
    )
    given = ["--store", "store", "--common", "small.yaml", "--seeds", "1", "--jobs", "1"]
    done = recipes(tmp_path, *given, "--changes", "train.lr=0.002")
    assert done.returncode == 0, done.stderr
    assert "train.lr=0.002" in done.stdout
