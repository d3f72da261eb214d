"""The GPU's extraction benchmark, as far as a CPU can run it, on a machine with few packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.toy import ROOT

ABSENT = ("ray", "mlflow", "decord", "av", "jsonargparse", "pandas", "torchaudio")


@pytest.mark.slow
def test_it_runs_without_ray_and_a_stage_that_fails_leaves_the_others(tmp_path):
    code = (
        "import sys, runpy\n"
        f"for name in {ABSENT}: sys.modules[name] = None\n"  # an import of it fails
        f"sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "sys.argv[0] = 'gpu_extraction.py'\n"
        f"runpy.run_path({str(ROOT / 'benchmarks' / 'gpu_extraction.py')!r}, run_name='__main__')\n"
    )
    words = ["--device", "cpu", "--size", "tiny", "--count", "3", "--frames", "2"]
    words += [
        "--limit",
        "240",
        "--clips",
        "absent.mp4",
        "--out",
        str(tmp_path),
        "--write",
        str(tmp_path / "page.md"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stages = json.loads((tmp_path / "gpu_extraction.json").read_text())["stages"]
    failed = {name for name, s in stages.items() if "error" in s}
    assert failed == {name for name in stages if "absent.mp4" in name}
    assert (len(failed), len(stages)) == (2, 12)
    for name, s in stages.items():
        assert name in failed or s["clips_per_s"] > 0
    # one a pass and in float32, both
    for m in ("text", "audio", "vision"):
        assert stages[f"**{m}, auto**"]["distance"] < 1e-3
        assert stages[f"**{m}, auto**"]["is"] == "fp32"
    assert "| **all encoders: clips/s per GPU** |" in (tmp_path / "page.md").read_text()
