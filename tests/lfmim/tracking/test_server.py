"""Servers that are away, silent or refuse, and databases that are not there, empty or of another
kind."""

from __future__ import annotations

import contextlib
import http.server
import importlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from lfmim import tracking
from lfmim.cli.main import COMMANDS
from lfmim.config import TrackingConfig
from lfmim.schema import InputError
from tests.support.published import SIZES, published
from tests.support.toy import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_tracking_server(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nobody() -> str:
    """The URI of a port where nothing listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}"


def readers(where: dict[str, str]) -> dict:
    """What every job that reads the registry does; `where` are its options."""
    from lfmim.cli.evaluate import evaluate
    from lfmim.cli.predict import predict
    from lfmim.cli.promote import promote

    return {
        "predict": lambda: predict(text="hello", **where),
        "evaluate": lambda: evaluate(store="features", **where),
        "promote": lambda: promote(store="features", challenger="1", **where),
        "rollback": lambda: promote(rollback=True, **where),
    }


@pytest.mark.parametrize("job", ["predict", "evaluate", "promote", "rollback"])
def test_reading_makes_no_database(job, tmp_path, empty_database):
    with pytest.raises(
        InputError,
        match=r"nowhere: there is no mlflow\.db; --storage names another.*--mlflow a server$",
    ):
        readers({"storage": "nowhere"})[job]()
    (tmp_path / "demo" / "runs").mkdir(parents=True)
    shutil.copy(empty_database, tmp_path / "demo" / "runs" / "mlflow.db")
    with pytest.raises(
        InputError,
        match=r"runs: there is no mlflow\.db; .*; mlflow\.db lies in demo/runs: "
        r"--storage demo/runs$",
    ):
        readers({"storage": "runs"})[job]()
    with pytest.raises(InputError, match=r"gone: there is no x\.db"):
        readers({"mlflow": "sqlite:///gone/x.db"})[job]()
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_a_database_of_another_kind_is_refused_and_left_as_it_is(tmp_path, empty_database):
    for name in ("empty", "text", "other", "half"):
        (tmp_path / name).mkdir()
    (tmp_path / "empty" / "mlflow.db").touch()
    (tmp_path / "text" / "mlflow.db").write_text("no database" * 99)
    with contextlib.closing(sqlite3.connect(tmp_path / "other" / "mlflow.db")) as other:
        other.execute("create table songs (name text)")
    shutil.copy(empty_database, tmp_path / "half" / "mlflow.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "half" / "mlflow.db")) as half:
        half.execute("drop table model_versions")
    said = {
        "empty": "not a database of MLflow",
        "text": "file is not a database",
        "other": "not a database of MLflow",
        "half": r"table model_versions and \d+ more are missing.*mlflow db upgrade",
    }
    for name, message in said.items():
        file = tmp_path / name / "mlflow.db"
        before = file.read_bytes()
        with pytest.raises(InputError, match=rf"{name}/mlflow\.db.*{message}"):
            tracking.load_predictor(f"sqlite:///{file}", "models:/lfmim@champion")
        assert file.read_bytes() == before
        assert [p.name for p in file.parent.iterdir()] == ["mlflow.db"]


@pytest.mark.parametrize("job", ["predict", "evaluate", "promote", "rollback"])
def test_a_reader_of_a_server_that_is_away_says_so(job, nobody, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    started = time.monotonic()
    with pytest.raises(
        InputError, match=rf"the server at {nobody} does not answer \(Connection refused\)"
    ):
        readers({})[job]()
    assert time.monotonic() - started < 180  # MLflow's own retries take over four minutes


def run_writer(job: str, store: Path, tmp_path: Path) -> None:
    """A command with the arguments of a user."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,video,text\na,,hello\n", encoding="utf-8")
    if job == "import":
        published(tmp_path / "p.pth", **SIZES[0])
    given = {
        "train": ["--store", store],
        "tune": ["--store", store],
        "benchmark": ["--store", store],
        "extract": ["--manifest", manifest, "--store", "features"],
        "predict": ["--manifest", manifest, "--output", "p.jsonl"],
        "import": ["checkpoint", "--checkpoint", tmp_path / "p.pth", "--num_heads", 2],
    }[job]
    command = importlib.import_module(f"lfmim.cli.{COMMANDS[job][0]}")
    command.main([str(x) for x in given])


@pytest.mark.parametrize("job", ["train", "tune", "benchmark", "extract", "predict", "import"])
def test_a_server_that_is_away_is_told_before_any_work(
    job, nobody, toy_store, tmp_path, monkeypatch
):
    import ray

    def no_cluster(*args, **kwargs):
        raise AssertionError("a cluster was started first")

    monkeypatch.setattr(ray, "init", no_cluster)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    before = time.monotonic()
    with pytest.raises(InputError, match=rf"the server at {nobody} does not answer"):
        run_writer(job, toy_store, tmp_path)
    assert time.monotonic() - before < 180
    assert {p.name for p in tmp_path.iterdir()} <= {"m.csv", "p.pth", "store"}


def test_a_silent_server_and_an_unknown_host_do_not_answer(monkeypatch):
    with pytest.raises(
        InputError, match=r"the server at http://nosuchhost\.invalid:5000 does not answer"
    ):
        tracking.check_server("http://nosuchhost.invalid:5000")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"the server at {uri} does not answer \(.*timed out"):
            tracking.resolve_version(uri, "lfmim", "champion")
    with pytest.raises(InputError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x"):
        tracking.resolve_version("postgresql://me:secret@127.0.0.1:1/x", "lfmim", "champion")


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [
        (401, b"who are you?", "401"),
        (404, b"no such page", "404"),
        (200, b"<html>a web site</html>", "JSON"),
        (503, b"later", "503"),
    ],
)
def test_a_refusal_is_told_as_it_is(code, body, said):
    """A real HTTP server that is not MLflow, or does not let us in."""

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Retry-After", "100")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

        do_GET = do_POST

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        for ask in (
            lambda: tracking.load_predictor(uri, "models:/lfmim@champion"),
            lambda: tracking.resolve_version(uri, "lfmim", "champion"),
            lambda: tracking.find_run(uri, TrackingConfig(), "r"),
        ):
            with pytest.raises(InputError, match=f"{uri}.*{said}") as told:
                ask()
            assert "not in the registry" not in str(told.value)
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_not_found_is_answered_by_what_is_there(tmp_path, empty_database):
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs" / "mlflow.db")
    uri = tracking.tracking_uri(TrackingConfig(), "runs")
    with pytest.raises(
        InputError,
        match=r"models:/lfmim@champion: not in the registry at sqlite:.*no model is "
        r"registered there; train and register one with lfmim train",
    ):
        tracking.load_predictor(uri, "models:/lfmim@champion")
    client = MlflowClient(uri)
    for name in ("alpha", "published", "lfmim"):
        client.create_registered_model(name)
        for _ in range(11 if name == "lfmim" else 1):
            client.create_model_version(name, str(tmp_path / "gone"), None)
    client.set_registered_model_alias("lfmim", "challenger", "11")
    client.set_registered_model_alias("lfmim", "champion", "9")
    said = {
        "models:/lfmin@champion": r"the models there: lfmim, .*; --storage names another folder",
        "models:/publishd/1": "publishd version 1: not in the registry at .*; the models there: "
        "published, ",
        "models:/lfmim@champoin": r"the versions 11, 10, 9, 8, 7, 6, 5, 4 and 3 more and the "
        r"aliases champion "
        r"\(version 9\), challenger \(version 11\)",
        "models:/lfmim/12": "lfmim version 12: not in the registry at .*; there are the versions "
        "11, ",
        "models:/lfmim/99999999999999999999999": "not in the registry",
        "models:/lfmim/0": "not in the registry",
        "lfmim": "model lfmim: no such folder; write models:/<name>@champion or ",
        "models:/lfmim@champion": "models:/lfmim@champion: cannot be read from the registry",
    }
    for ref, message in said.items():
        with pytest.raises(InputError, match=message) as told:
            tracking.load_predictor(uri, ref)
        assert "train and register" not in str(told.value)
    for reader in (
        lambda: tracking.resolve_version(uri, "lfmin", "3"),
        lambda: tracking.rollback(uri, "lfmin"),
    ):
        with pytest.raises(InputError, match="the models there: lfmim, "):
            reader()
    assert tracking.resolve_version(uri, "lfmim", "champion") == "9"
    assert tracking.resolve_version(uri, "lfmim", "nobody") is None
    assert tracking.resolve_version(uri, "nobody", "champion") is None


@pytest.mark.slow
def test_a_real_server_that_goes_away_later_is_never_taken_for_an_empty_registry(
    tmp_path, empty_database, monkeypatch
):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/mlflow.db",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(InputError):  # not yet
                tracking.check_server(uri)
                break
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(1)
        with pytest.raises(
            InputError, match=f"not in the registry at {uri}; no model is registered"
        ):
            tracking.load_predictor(uri, "models:/lfmim@champion")
        client = MlflowClient(uri, registry_uri=uri)
        client.create_registered_model("lfmim")
        info = client.create_run(client.create_experiment("x")).info
        client.create_model_version("lfmim", f"{info.artifact_uri}/m", info.run_id)
        assert tracking.resolve_version(uri, "lfmim", "champion") is None
        tracking.set_champion(uri, "lfmim", "1")
        assert tracking.resolve_version(uri, "lfmim", "champion") == "1"
        with pytest.raises(
            InputError,
            match=f"lfmim version 2: not in the registry at {uri}; there are the versions",
        ):
            tracking.resolve_version(uri, "lfmim", "2")
    finally:
        os.killpg(server.pid, 9)
        server.wait(30)
    # or this takes MLflow's four minutes
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    for lost in (
        lambda: tracking.resolve_version(uri, "lfmim", "champion"),
        lambda: tracking.set_champion(uri, "lfmim", "1"),
        lambda: tracking.rollback(uri, "lfmim"),
        lambda: tracking.load_predictor(uri, "models:/lfmim@champion"),
    ):
        with pytest.raises(InputError, match=f"the server at {uri} does not answer"):
            lost()
    mlflow.set_tracking_uri("")
