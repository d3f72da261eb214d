"""A service under load: the same clip in this process and over HTTP, several at a time.

    pip install locust
    python benchmarks/service.py clip.mp4 --requests 500 --at_once 1 4 16
    python benchmarks/service.py clip.mp4 --requests 200 --at_once 4 --kill

Starts `lfmim serve` on a free port of this machine for its own time, with `builtin:face`. Prints a
table. Every answer must be what this process says of the clip; a client that is told to come again
(429, 503 with Retry-After) does, after a second, and that is counted. `--kill`: a process that
decodes is killed after a third of the requests, one that predicts after two thirds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests
from page import machine

from feature_service.pretrained.builtin import builtin_face
from feature_service.recordings.job import Task, predict_recording
from feature_service.recordings.predict import Settings, UtterancePredictor
from lfmim.config import ExtractConfig


@dataclasses.dataclass
class Load:
    """What came of a number of requests."""

    at_once: int
    seconds: list[float] = dataclasses.field(default_factory=list)
    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    wrong: int = 0
    total_s: float = 0.0

    def row(self) -> str:
        ordered = sorted(self.seconds)
        last = ordered[int(0.95 * (len(ordered) - 1))]
        told = ", ".join(f"{n} x {status}" for status, n in sorted(self.statuses.items()))
        return (
            f"| service, {self.at_once} at once | {statistics.median(ordered):.3f} | {last:.3f} | "
            f"{len(ordered) / self.total_s:.2f} | {told}; {self.wrong} wrong |"
        )


def in_process(utterances: UtterancePredictor, clip: Path) -> tuple[float, object]:
    """Seconds, and what is said of the clip, by the functions that the service calls."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        task = Task(clip, None, Path(scratch) / "recording")
        done = predict_recording(utterances, task, about=utterances.about("m"))
        return time.monotonic() - started, json.loads(done.result.read_bytes())["utterances"]


@contextmanager
def service(workers: int, clips: int) -> Iterator[tuple[str, psutil.Process]]:
    """The address of a service, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "model": "[builtin:face]",
            "port": port,
            "storage": folder,
            "workers": workers,
            "decode_workers": workers,
            "clips": clips,
        }
        command = [sys.executable, "-m", "lfmim", "serve"]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            while not _ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"the service ended with {process.returncode}")
                time.sleep(0.5)
            yield url, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait(60)


def _ready(url: str) -> bool:
    try:
        return requests.get(f"{url}/readyz", timeout=5).ok
    except (requests.ConnectionError, requests.Timeout):
        return False


def load(
    url: str, clip: Path, expected: object, count: int, at_once: int, victims: int | None
) -> Load:
    """`count` requests by locust's clients, in a process of their own (`load.py`)."""
    with tempfile.TemporaryDirectory() as folder:
        answer, result = Path(folder) / "expected.json", Path(folder) / "result.json"
        answer.write_text(json.dumps(expected), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).parent / "load.py"), url, str(clip)]
        command += [str(answer), str(result), f"--requests={count}", f"--at_once={at_once}"]
        if victims is not None:
            command.append(f"--victims={victims}")
        subprocess.run(command, check=True)
        found = json.loads(result.read_text(encoding="utf-8"))
    statuses = Counter({int(status): n for status, n in found.pop("statuses").items()})
    return Load(at_once, statuses=statuses, **found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clip", type=Path)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--at_once", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kill", action="store_true")
    given = parser.parse_args()

    config = ExtractConfig(manifest="-", store="-")
    utterances = UtterancePredictor(builtin_face(), config, Settings())
    _, expected = in_process(utterances, given.clip)  # and all that is slow at a start
    here = sorted(in_process(utterances, given.clip)[0] for _ in range(min(given.requests, 50)))
    rows = [
        f"{machine('cpu')}; {given.clip.name}, {given.requests} requests, {given.workers} workers",
        "",
        "| | median s | 95 % s | a second | answers |",
        "|---|---|---|---|---|",
        f"| in process, one at once | {statistics.median(here):.3f} | "
        f"{here[int(0.95 * (len(here) - 1))]:.3f} | {len(here) / sum(here):.2f} | |",
    ]
    del utterances
    data = given.clip.read_bytes()
    with service(given.workers, max(given.at_once)) as (url, process):
        requests.post(f"{url}/v1/predict", files={"file": ("clip.mp4", data)}, timeout=300)
        for at_once in given.at_once:
            victims = process.pid if given.kill else None
            rows.append(load(url, given.clip, expected, given.requests, at_once, victims).row())
            print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
