"""Shared fixtures. One Ray cluster per session; real media from a `shared` folder beside the
checkout."""

from __future__ import annotations

import os
import secrets
import subprocess
from pathlib import Path

# Before ray is imported anywhere: a token of this session's own, whatever lies in ~/.ray or the
# shell has set.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.support.toy import MEDIA, ROOT, write_toy_store

torch.set_num_threads(1)
# A busy machine must not fail a property: no time limits.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def no_tracker_of_another_test(monkeypatch):
    """`mlflow.set_tracking_uri`, which some tests call, sets this for the whole process."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="session")
def media() -> Path:
    if not MEDIA.is_dir():
        pytest.skip("the real test clips (../shared/media) are not here")
    return MEDIA


@pytest.fixture(scope="session")
def ray_cluster():
    import ray

    # inherited by Ray's processes; a runtime environment costs seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """An MLflow database with its tables: making them takes seconds, copying the file none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def object_store():
    """An S3 server for the session; `object_store.bucket()` makes a bucket."""
    from tests.support.object_store import ObjectStore

    with ObjectStore().running() as store:
        yield store


@pytest.fixture
def bucket(object_store):
    """The URL of a new bucket on `object_store`, which refuses nothing again afterwards."""
    yield object_store.bucket()
    object_store.refuse = lambda method, path: None


@pytest.fixture
def small_disk():
    """`mount(folder, size)` makes a folder a disk of that size (as `mount` takes it), or changes
    the size it has."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> None:
        again = folder in mounted
        folder.mkdir(exist_ok=True)
        how = (
            ["-o", f"remount,size={size}"]
            if again
            else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        )
        done = subprocess.run(
            ["mount", *how, str(folder)], check=False, capture_output=True, text=True
        )
        if done.returncode and not again:
            pytest.skip("mounting a small disk needs root")
        assert done.returncode == 0, done.stderr
        if not again:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def toy_store(tmp_path: Path) -> Path:
    return write_toy_store(tmp_path / "store")
