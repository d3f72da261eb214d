"""benchmarks/experiments.py runs, small, and goes on where it stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.toy import ROOT


def run(*words: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "benchmarks" / "experiments.py")
    return subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("part", ["table-2", "lazy", "feedback"])
def test_a_part_makes_its_tables_and_a_rerun_repeats_no_run(tmp_path: Path, part: str) -> None:
    words = ("--folder", str(tmp_path), "--tiny", "--only", part)
    first = run(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    page = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert "| logistic |" in page
    assert ("lfmim > pmr" in page) == (part == "table-2")
    assert ("at 30" in page) == (part == "lazy")
    assert ("feedback.png" in page) == (part == "feedback")
    again = run(*words)
    assert again.returncode == 0
    assert " s left]" not in again.stdout
    assert again.stdout.count("[done before]") == first.stdout.count(" s left]")


def test_the_composite_needs_its_data(tmp_path: Path) -> None:
    found = run("--only", "composite", "--folder", str(tmp_path))
    assert found.returncode
    assert "--only composite: needs --real and --emotiontalk" in found.stderr
