"""One `ray start --head` for all job tests."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.toy import ROOT

BIN = Path(sys.executable).parent


class Head(NamedTuple):
    """A cluster's job server, where it is joined, and the environment of a user who talks to it and
    has its token."""

    address: str
    gcs: str
    home: str
    env: dict[str, str]

    def submit(
        self, *command: str, wait: bool = True, **env_vars: str
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- python ...`, with variables if given; stdout holds the
        streamed log."""
        options = [
            "--address",
            self.address,
            "--working-dir",
            ".",
            *([] if wait else ["--no-wait"]),
        ]
        if env_vars:
            options += ["--runtime-env-json", json.dumps({"env_vars": env_vars})]
        return subprocess.run(
            [BIN / "ray", "job", "submit", *options, "--", "python", *command],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
            check=False,
        )


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="session")
def new_port():
    return free_port


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    """`ray start --head` as its own processes."""
    port, gcs = free_port(), free_port()
    # The environment is active, as a user's is.
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    env.pop("RAY_ADDRESS", None)
    # Ports of its own throughout: the session's shared cluster holds the defaults.
    ports = [
        f"--port={gcs}",
        *(
            f"--{name}={free_port()}"
            for name in (
                "ray-client-server-port",
                "dashboard-agent-listen-port",
                "dashboard-agent-grpc-port",
                "metrics-export-port",
                "runtime-env-agent-port",
            )
        ),
    ]
    log = tmp_path_factory.mktemp("head") / "head.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--dashboard-port={port}",
                *ports,
                "--dashboard-host=127.0.0.1",
                f"--temp-dir=/tmp/rt{port}",
            ],
            env=env,
            stdout=file,
            stderr=file,
        )
    deadline = time.monotonic() + 120
    try:
        while True:
            if "Ray runtime started" in log.read_text():  # the port opens before
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Head(f"http://127.0.0.1:{port}", f"127.0.0.1:{gcs}", f"/tmp/rt{port}/", env)
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(f"/tmp/rt{port}", ignore_errors=True)
