"""The speed benchmarks compare like with like and run to their end."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from corpus import SIZES, forward_flops, noise_corpus
from page import write_section
from reference import PlainLFMIM
from scaling import step_model
from torch.utils.flop_counter import FlopCounterMode

from lfmim.models import build_model
from tests.support.toy import ROOT


def test_both_sides_have_the_same_weights_and_the_counted_flops():
    config, dims = SIZES["paper"]
    data, model = noise_corpus(1, "paper"), build_model(config.model, dims)
    plain = PlainLFMIM(config.model, dims)
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, plain)]
    assert trained[1] - trained[0] == 3  # the plain loop keeps the dead first row of ᾱ
    (batch,) = data.batches(1)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.train()(
            {m: x.float() for m, x in batch.features.items()},
            {m: ~v for m, v in batch.masks.items()},
        )
    assert counter.get_total_flops() == pytest.approx(
        sum(forward_flops(data, config.model).values()), rel=0.01
    )


def test_the_scaling_model():
    assert step_model(1, 0.01, 10**9, 1.0, 1.0) == 0.01
    assert step_model(8, 0.01, 1, 1e12, 0.0) == 0.01  # hidden behind the backward pass
    slow = [step_model(n, 0.01, 14_000_000, 1e9, 1e-5) for n in (2, 8, 64)]
    assert slow == sorted(slow)
    assert slow[0] == pytest.approx(0.01 / 3 + 14e6 / 1e9 + 2 * 1e-5 * 3)


def test_a_section_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    for text in ("one\n", "two\n"):
        write_section(page, "speed", text)
    assert page.read_text().endswith("<!-- speed: begin -->\ntwo\n<!-- speed: end -->\n")
    assert "one" not in page.read_text()


@pytest.mark.slow
def test_training_benchmark_runs(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "training.py"),
        "--sizes",
        "tiny",
        "--utterances",
        "32",
        "--workers",
        "1",
        "--repeats",
        "1",
        "--write",
        str(tmp_path / "page.md"),
    ]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "| data alone |" in (tmp_path / "page.md").read_text()


GPU_STAGES = [
    "machine",
    "eager",
    "no such stage",
    "captured",
    "plain loop",
    "agree: eager",
    "agree: captured",
    "auto",
]
"""What a CPU does in reasonable time: compiling takes it minutes."""


@pytest.mark.slow
def test_gpu_benchmark_runs_on_a_cpu_too(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu_training.py"),
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--utterances",
        "60",
        "--epochs",
        "2",
        "--reference-utterances",
        "24",
        "--workers",
        "1",
        "--out",
        str(tmp_path),
        "--stages",
        *GPU_STAGES,
    ]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    stages = json.loads((tmp_path / "gpu_training.json").read_text())["stages"]
    assert list(stages) == GPU_STAGES
    assert list(stages.pop("no such stage")) == ["error"]
    assert not [s for s in stages.values() if "error" in s]
    assert stages["agree: captured"]["loss"] == pytest.approx(stages["agree: eager"]["loss"])
    page = (tmp_path / "gpu_training.md").read_text()
    assert "| no such stage | failed: " in page
    assert "auto, 2 epochs: eager" in page
