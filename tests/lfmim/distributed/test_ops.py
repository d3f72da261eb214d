"""What the jobs tell Prometheus, as a scraper of Ray's metrics sees it."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from lfmim.distributed import ops
from lfmim.progress import watch
from lfmim.training.loop import EpochReport

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def scraped() -> dict[str, float]:
    """Our metrics, by `name{tags}` with the tags that are ours."""
    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        for name, tags, value in re.findall(r"^ray_(lfmim_\w+)\{(.*)\} (\S+)$", text, re.M):
            ours = re.findall(r'\b(job|run|worker|stage)="([^"]*)"', tags)
            found[f"{name} {' '.join(v for _, v in sorted(ours) if v)}"] = float(value)
    return found


def test_a_scraper_sees_rows_errors_epochs_and_samples(ray_cluster):
    with watch("extract", 9, "rows", log=ops.log_progress("extract", "s")) as show:
        show(0)
        show(4, gpu_percent=7.0)
    ops.count_errors("extract", "s", "decode")
    ops.count_errors("extract", "s", "decode", 2)

    @ray.remote(num_cpus=0.1)
    def worker() -> None:
        report = EpochReport(
            epoch=2,
            lr=0.1,
            train={},
            valid={},
            score=0.5,
            best=True,
            seconds=2.0,
            samples_per_second=30.5,
        )
        ops.log_epoch("train", "r", "0", report)

    ray.get(worker.remote())

    wanted = {
        "lfmim_done extract s": 4.0,
        "lfmim_gpu_busy_percent extract s": 7.0,
        "lfmim_errors_total extract s decode": 3.0,
        "lfmim_epoch train r 0": 3.0,
        "lfmim_samples_per_second train r 0": 30.5,
        "lfmim_score train r 0": 0.5,
    }
    # Ray's processes hand their figures to the node's agent every few seconds.
    seen, deadline = {}, time.monotonic() + 90
    while not wanted.items() <= seen.items() and time.monotonic() < deadline:
        time.sleep(1)
        seen = scraped()
    assert wanted.items() <= seen.items(), seen
    assert seen["lfmim_rows_per_second extract s"] > 0
    assert seen["lfmim_eta_seconds extract s"] > 0
