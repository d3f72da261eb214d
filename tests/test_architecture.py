"""Imports point one way, and the core needs neither Ray nor MLflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

LAYERS = ["schema", "config", ("metrics", "data", "models"), "training", ("evaluation", "tracking", "predictor"),
          "distributed"]
RANK = {name: i for i, level in enumerate(LAYERS) for name in ([level] if isinstance(level, str) else level)}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_only_distributed_imports_ray_and_only_tracking_mlflow():
    for path in (ROOT / "lfmim").rglob("*.py"):
        roots = {name.split(".")[0] for name in imports(path)}
        room = path.relative_to(ROOT / "lfmim").parts[0]
        assert "ray" not in roots or room == "distributed", path
        assert "mlflow" not in roots or room in ("tracking.py", "predictor.py"), path


def test_imports_point_one_way():
    for path in (ROOT / "lfmim").rglob("*.py"):
        room = path.relative_to(ROOT / "lfmim").parts[0].removesuffix(".py")
        for name in imports(path):
            part = name.split(".")
            assert part[0] not in ("feature_service", "jobs"), path
            if part[0] == "lfmim" and len(part) > 1 and room in RANK:
                assert RANK[part[1]] <= RANK[room], f"{path} imports {name}"
    for path in (ROOT / "feature_service" / "operators").glob("*.py"):
        assert "ray" not in {name.split(".")[0] for name in imports(path)}, path


def test_core_loads_neither_ray_nor_mlflow():
    code = ("import sys, lfmim.config, lfmim.data.batches, lfmim.models, lfmim.training.loop;"
            "print([m for m in ('ray', 'mlflow') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
