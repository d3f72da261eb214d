"""A hub whose default branch moves while a job runs: workers load the commit that the driver
took."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from feature_service.encoders.weights import build_tiny_encoders
from lfmim.schema import Modality
from tests.support.toy import ROOT

pytestmark = pytest.mark.integration
OLD, NEW = "a" * 40, "b" * 40
JOB = """
import sys, urllib.request
from feature_service.pipeline.stages import build_feature_spec, build_stage, pinned
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import InputError

config = ExtractConfig(manifest="m.csv", store="s", encoders=EncoderConfig(text="someone/bert"))
spec = build_feature_spec(config)
urllib.request.urlopen(sys.argv[1] + "/move").read()
build_stage("text", pinned(config, spec), spec=spec)  # what a worker does
try:
    build_stage("text", config, spec=spec)
except InputError as error:
    print(error)
moved = build_feature_spec(config)
print(*(s.encoders["text"].revision for s in (spec, moved)))
print(*(s.encoders["text"].weights_sha256 for s in (spec, moved)))
"""


class Hub(ThreadingHTTPServer):
    """What `huggingface_hub` asks of a hub to download one model, at two commits."""

    def __init__(self, commits: dict[str, Path]) -> None:
        self.commits, self.main = commits, OLD
        super().__init__(("127.0.0.1", 0), Answers)


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/move":
            self.server.main = NEW
            return self.send(200, b"", body=body)
        _, _, wanted = path.partition("/someone/bert/resolve/")
        revision, _, name = wanted.partition("/")
        commit = self.server.main if revision == "main" else revision
        file = self.server.commits.get(commit, Path("/none")) / name
        if not name or not file.is_file():
            return self.send(404, b"", body=body, error="EntryNotFound")
        return self.send(200, file.read_bytes(), body=body, commit=commit)

    def send(self, code: int, content: bytes, *, body: bool, commit="", error="") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if commit:
            self.send_header("X-Repo-Commit", commit)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if body:
            self.wfile.write(content)


@pytest.fixture
def hub(tmp_path):
    folders = {
        commit: build_tiny_encoders(tmp_path / commit, seed=seed)[Modality.TEXT]
        for seed, commit in enumerate((OLD, NEW))
    }
    server = Hub(folders)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def test_a_branch_that_moves_changes_nothing_of_a_job_that_has_begun(hub, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", JOB, hub],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    refused, *_ = done.stdout.splitlines()
    revisions, hashes = (line.split() for line in done.stdout.splitlines()[-2:])
    assert revisions == [OLD, NEW]
    assert hashes[0] != hashes[1]
    for one in hashes:
        assert one in refused
