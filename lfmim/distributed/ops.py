"""Prometheus metrics of the jobs: Ray's agent on each node serves what its processes set, as
ray_<name> (docs/operations.md)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ray.util.metrics import Counter, Gauge

from lfmim.progress import Log, gpu_percent

if TYPE_CHECKING:
    from lfmim.training.loop import EpochReport

TAGS = ("job", "run", "worker")
"""The command, what it works on (a run's or store's name), and which of its workers says so; the
job's driver is worker ""."""
GAUGES = {
    "lfmim_done": "Rows, or epochs, that are done.",
    "lfmim_rows_per_second": "Rows that the job gets done.",
    "lfmim_eta_seconds": "Seconds until it is done, at that rate.",
    "lfmim_epoch": "Epochs that a training has finished.",
    "lfmim_samples_per_second": "Training samples of the last epoch, of all workers.",
    "lfmim_score": "Validation score of the last epoch.",
    "lfmim_gpu_busy_percent": "Utilisation of the worker's GPU.",
}
"""Name -> what it is. Names stay as they are: dashboards have them."""
ERRORS = "lfmim_errors"


@functools.cache
def _gauge(name: str) -> Gauge:
    return Gauge(name, description=GAUGES[name], tag_keys=TAGS)


@functools.cache
def _errors() -> Counter:
    what = "Rows that were quarantined, by the stage that could not use them."
    return Counter(ERRORS, description=what, tag_keys=("job", "run", "stage"))


def _set(tags: tuple[str, str, str], figures: Mapping[str, float]) -> None:
    for name, value in figures.items():
        _gauge(name).set(float(value), tags=dict(zip(TAGS, tags, strict=True)))


def log_progress(job: str, run: str) -> Log:
    """What `progress.watch` takes as its `log`: a job's rate, time left, rows done and GPU use."""

    def log(figures: Mapping[str, float], step: int) -> None:
        found = {"lfmim_done": float(step)}
        for name, value in figures.items():
            if name.endswith("_per_second"):
                found["lfmim_rows_per_second"] = value
            elif name == "eta_seconds":
                found["lfmim_eta_seconds"] = value
            elif name == "gpu_percent":
                found["lfmim_gpu_busy_percent"] = value
        _set((job, run, ""), found)

    return log


def log_epoch(job: str, run: str, worker: str, report: EpochReport) -> None:
    """A training's last epoch, as one of its workers (or trials) has seen it."""
    use = gpu_percent()
    _set(
        (job, run, worker),
        {
            "lfmim_epoch": report.epoch + 1,
            "lfmim_samples_per_second": report.samples_per_second,
            "lfmim_score": report.score,
            **({} if use is None else {"lfmim_gpu_busy_percent": use}),
        },
    )


def count_errors(job: str, run: str, stage: str, rows: int = 1) -> None:
    """Rows that a stage of a job could not use."""
    _errors().inc(rows, tags={"job": job, "run": run, "stage": stage})
