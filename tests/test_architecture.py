"""Imports point one way, and the core needs neither Ray nor MLflow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lfmim
from tests.support.toy import ROOT

# A room may import itself and the rooms of lower rank.
RANK = {
    "lfmim.schema": 0,
    "lfmim.registry": 1,
    "lfmim.storage": 1,
    "lfmim.text_files": 1,
    "lfmim.former_names": 2,
    "lfmim.config": 3,
    "lfmim.processes": 2,
    "lfmim.progress": 2,
    "lfmim.logs": 2,
    "lfmim.metrics": 4,
    "lfmim.data": 4,
    "lfmim.models": 4,
    "lfmim.training": 5,
    "lfmim.predictor": 6,
    "lfmim.convert": 6,
    "lfmim.evaluation": 7,
    "lfmim.experiments": 8,
    "lfmim.tracking": 9,
    "lfmim.distributed": 10,
    "feature_service": 11,
    "lfmim.inference": 12,
    "lfmim.cli": 13,
    "lfmim": 14,
    "lfmim.__main__": 15,
    "jobs": 16,
}
SOURCES = sorted(
    p for top in ("lfmim", "feature_service", "jobs") for p in (ROOT / top).rglob("*.py")
)
IN_LFMIM = [p for p in SOURCES if p.relative_to(ROOT).parts[0] == "lfmim"]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too; `from a import b` counts as a.b and as
    a."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(name: str) -> str | None:
    """The room of a module of ours: the package's child in lfmim, else the top-level package."""
    parts = name.split(".")
    if parts[0] != "lfmim":
        return parts[0] if parts[0] in RANK else None
    child = ROOT.joinpath(*parts[:2])
    return (
        ".".join(parts[:2])
        if (child.is_dir() and parts[1:]) or child.with_suffix(".py").is_file()
        else "lfmim"
    )


def test_there_is_something_to_check():
    assert {"lfmim/schema/labels.py", "lfmim/distributed/trainer.py", "jobs/train.py"} <= {
        label(p) for p in SOURCES
    }
    assert "lfmim.tracking" in imports(ROOT / "lfmim/distributed/trainer.py")
    assert any(name.startswith("ray.") for name in imports(ROOT / "lfmim/distributed/workers.py"))


@pytest.mark.parametrize("path", IN_LFMIM, ids=label)
def test_only_distributed_imports_ray_and_only_tracking_imports_mlflow(path):
    roots = {name.split(".")[0] for name in imports(path)}
    assert "ray" not in roots or room(module(path)) == "lfmim.distributed"
    assert "mlflow" not in roots or room(module(path)) in ("lfmim.tracking", "lfmim.predictor")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "feature_service" / "operators").glob("*.py")), ids=label
)
def test_operators_know_no_ray(path):
    assert "ray" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_point_one_way(path):
    here = room(module(path))
    for there in filter(None, map(room, imports(path))):
        # The door loads nothing by itself; `from lfmim import tracking` passes through it.
        if there != "lfmim":
            assert there == here or RANK[there] < RANK[here], f"{label(path)} imports {there}"


def test_nothing_uses_the_door_from_inside():
    offered = {f"lfmim.{name}" for name in lfmim.__all__}
    for path in SOURCES:
        if label(path) != "lfmim/__init__.py":
            assert not imports(path) & offered, label(path)


def writes(path: Path) -> set[str]:
    """Calls that make, rename or fill files and folders."""
    calls = {
        (node.func.attr, getattr(node.func.value, "id", ""))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    methods = {"mkdir", "makedirs", "mkdtemp", "write_text", "write_bytes"}
    return {
        name
        for name, owner in calls
        if name in methods or (owner == "os" and name in ("replace", "rename"))
    }


# In temporary folders of their own; and a database that MLflow writes itself.
SCRATCH = {
    "lfmim/tracking/database.py": {"replace"},
    "lfmim/tracking/registry.py": {"mkdir", "write_bytes", "write_text"},
    "feature_service/encoders/weights.py": {"mkdir", "write_text"},
}


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_only_storage_writes(path):
    writing = writes(ROOT / "lfmim/storage/writing.py")
    assert writing >= {"mkdir", "write_bytes", "replace", "rename"}
    if not label(path).startswith("lfmim/storage/"):
        assert writes(path) <= SCRATCH.get(label(path), set())


def loaded(modules: str, among: set[str]) -> list[str]:
    """Which of the packages `among` a new process has loaded after importing `modules`."""
    code = f"import sys, {modules}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return sorted(among & set(done.stdout.split()))


@pytest.mark.integration
def test_the_core_loads_neither_ray_nor_mlflow():
    core = (
        "lfmim.schema, lfmim.config, lfmim.metrics, lfmim.data.manifest, lfmim.data.batches, "
        "lfmim.models, lfmim.training.loop"
    )
    assert loaded(core, {"ray", "mlflow", "torch"}) == ["torch"]


@pytest.mark.integration
def test_a_job_loads_no_library_of_statistics_before_it_needs_it():
    """scikit-learn takes seconds, also those before a message of bad input."""
    jobs = "lfmim.cli.train, lfmim.cli.predict, lfmim.distributed.trainer, lfmim.tracking"
    assert loaded(jobs, {"mlflow", "sklearn", "transformers"}) == ["mlflow"]


@pytest.mark.integration
def test_a_decode_worker_starts_without_torch():
    decoding = (
        "feature_service.pipeline.extract, feature_service.operators.isolation, "
        "feature_service.recordings.conversion"
    )
    assert loaded(decoding, {"ray", "torch", "transformers"}) == ["ray"]
