"""The whole service killed, with all its processes, and started again: no accepted job is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
import requests

pytest.importorskip("python_multipart", reason="needs the extra serve")
from recording import write_recording

from tests.support.toy import ROOT

OPEN = ("queued", "running")
pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Service:
    """`lfmim serve` in a process of its own, with a Ray of its own."""

    def __init__(self, folder) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "lfmim", "serve", "--model", "[builtin:face]"]
        command += ["--port", str(port), "--storage", str(folder)]
        self.process = subprocess.Popen(command, cwd=ROOT)
        self.until(lambda: self.get("/readyz") is not None)

    def get(self, path: str) -> dict | list | None:
        try:
            answer = requests.get(self.url + path, timeout=60)
        except requests.ConnectionError:
            assert self.process.poll() is None
            return None
        return answer.json() if answer.ok else None

    def until(self, true):
        end = time.monotonic() + 300
        while not (found := true()):
            assert time.monotonic() < end
            time.sleep(0.2)
        return found

    def kill(self) -> None:
        """All at once, as a machine that loses its power."""
        every = [*psutil.Process(self.process.pid).children(recursive=True), self.process]
        for process in every:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def test_no_accepted_job_is_lost(media, tmp_path):
    talk = tmp_path / "talk.mp4"
    write_recording(talk, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=60)
    data = talk.read_bytes()
    first = Service(tmp_path / "runs")
    try:
        ids = []
        for _ in range(2):
            new = {"name": "talk.mp4", "size": len(data)}
            id = requests.post(f"{first.url}/v1/uploads", json=new, timeout=60).json()["id"]
            ids.append(id)
            place = f"{first.url}/v1/uploads/{id}?offset=0"
            assert requests.put(place, data=data, timeout=60).ok
            job = {"upload": id}
            assert requests.post(f"{first.url}/v1/jobs", json=job, timeout=60).status_code == 202

        def at_work():
            progress = (first.get(f"/v1/jobs/{ids[0]}") or {}).get("progress")
            return progress and progress["done"] >= 3

        first.until(at_work)
        assert first.get(f"/v1/jobs/{ids[1]}")["state"] == "queued"
    finally:
        first.kill()
    parts = list((tmp_path / "runs" / "service").rglob("recording.parts/*.json"))
    assert len(parts) >= 3

    second = Service(tmp_path / "runs")
    try:
        for id in ids:
            second.until(lambda id=id: second.get(f"/v1/jobs/{id}")["state"] not in OPEN)
            assert second.get(f"/v1/jobs/{id}")["state"] == "done"
        one, other = (second.get(f"/v1/jobs/{id}/result") for id in ids)
        assert one["utterances"] == other["utterances"]
        assert len(one["utterances"]) > 3
    finally:
        second.process.send_signal(signal.SIGINT)
        second.process.wait(60)
