"""Requests of one clip by locust's clients, each of which asks again once it has its answer.

What service.py runs, in a process of its own: locust changes Python's sockets and threads, which
must come before anything else imports them.
"""

from __future__ import annotations

from locust import HttpUser, constant, task  # isort: skip
from locust.env import Environment  # isort: skip

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import gevent
import psutil

PAUSE_S = 1.0
"""Of a client that is told to come again: what Retry-After says is for people."""


def kill(of: psutil.Process, deployment: str) -> None:
    """SIGKILL for one process of a deployment."""
    title = f"ray::ServeReplica:lfmim:{deployment}"
    for process in of.children(recursive=True):
        if (process.cmdline() or [""])[0].startswith(title):
            os.kill(process.pid, signal.SIGKILL)
            return
    raise SystemExit(f"no process {title}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("clip", type=Path)
    parser.add_argument("expected", type=Path, help="JSON of the answer's utterances")
    parser.add_argument("result", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--at_once", type=int, required=True)
    parser.add_argument("--victims", type=int, help="pid of the service, some of which is killed")
    given = parser.parse_args()

    clip, count = given.clip.read_bytes(), given.requests
    expected = json.loads(given.expected.read_text(encoding="utf-8"))
    victims = psutil.Process(given.victims) if given.victims else None
    kills = {count // 3: "Decode", 2 * count // 3: "Encode"} if victims else {}
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    asked, wrong = iter(range(count)), 0

    class Client(HttpUser):
        host = given.url
        wait_time = constant(0)

        @task
        def predict(self) -> None:
            nonlocal wrong
            number = next(asked, None)
            if number is None:
                self.stop()
                return
            if victims and number in kills:
                kill(victims, kills[number])
            started, status = time.monotonic(), 0
            while status != 200:
                with self.client.post(
                    "/v1/predict", files={"file": ("clip.mp4", clip)}, catch_response=True
                ) as answer:
                    status = answer.status_code
                    statuses[status] += 1
                    if status == 200:
                        wrong += answer.json()["utterances"] != expected
                    elif status not in (429, 503) or "retry-after" not in answer.headers:
                        wrong += 1
                        print(f"{status}: {answer.text[:300]}", file=sys.stderr, flush=True)
                        return
                    answer.success()
                if status != 200:
                    gevent.sleep(PAUSE_S)
            seconds.append(time.monotonic() - started)

    runner = Environment(user_classes=[Client]).create_local_runner()
    started = time.monotonic()
    runner.start(given.at_once, spawn_rate=given.at_once)
    while len(seconds) + wrong < count:
        gevent.sleep(0.05)
    total_s = time.monotonic() - started
    runner.quit()
    found = {"seconds": seconds, "statuses": statuses, "wrong": wrong, "total_s": total_s}
    given.result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
