"""What the service costs: the same clip in this process, and over HTTP, one and four at a time.

    lfmim serve --model builtin:face --clips 8
    python benchmarks/service.py clip.mp4 --url http://127.0.0.1:8000 --requests 20

Prints a table of seconds a request (median) and requests a second. Nothing but the clip's answers
is asked for, and all must be the same.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import tempfile
import time
from pathlib import Path

import requests

from feature_service.pretrained.builtin import builtin_face
from feature_service.recordings.job import Task, predict_recording
from feature_service.recordings.predict import Settings, UtterancePredictor
from lfmim.config import ExtractConfig

AT_ONCE = (1, 4)


def over_http(url: str, clip: bytes) -> tuple[float, object]:
    """Seconds, and what is said of the clip."""
    started = time.monotonic()
    answer = requests.post(f"{url}/v1/predict", files={"file": ("clip.mp4", clip)}, timeout=600)
    answer.raise_for_status()
    return time.monotonic() - started, answer.json()["utterances"]


def in_process(utterances: UtterancePredictor, clip: Path) -> tuple[float, object]:
    """The same by the functions that the service calls, into a folder of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        task = Task(clip, None, Path(scratch) / "recording")
        done = predict_recording(utterances, task, about=utterances.about("m"))
        return time.monotonic() - started, json.loads(done.result.read_bytes())["utterances"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--requests", type=int, default=20)
    given = parser.parse_args()

    config = ExtractConfig(manifest="-", store="-")
    utterances = UtterancePredictor(builtin_face(), config, Settings())
    _, expected = in_process(utterances, given.clip)  # and all that is slow at a start
    here = [in_process(utterances, given.clip)[0] for _ in range(given.requests)]
    print(f"{'':16}{'median s':>10}{'a second':>10}")
    print(f"{'in process':16}{statistics.median(here):10.3f}{len(here) / sum(here):10.3f}")

    data = given.clip.read_bytes()
    over_http(given.url, data)
    for count in AT_ONCE:
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            found = list(pool.map(lambda _: over_http(given.url, data), range(given.requests)))
        rate = given.requests / (time.monotonic() - started)
        assert all(said == expected for _, said in found), "an answer differs"
        median = statistics.median(seconds for seconds, _ in found)
        print(f"{f'service, {count}':16}{median:10.3f}{rate:10.3f}")


if __name__ == "__main__":
    main()
