"""A run's metrics: what its epochs scored, and what its machines did meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.entities import Metric
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.tracking import MlflowClient

from lfmim.metrics import metrics_from_dict
from lfmim.tracking.database import connect
from lfmim.tracking.server import told
from lfmim.training.loop import EpochReport

MOST_METRICS = 1000
"""As many as MLflow takes in one request."""


@told
def log_epoch(uri: str, run_id: str, report: EpochReport) -> None:
    """Losses and metrics per head of one epoch, as `train/<head>/loss`, `valid/<head>/accuracy`,
    ..."""
    log_history(uri, run_id, [report.as_dict()])


def log_history(uri: str, run_id: str, history: Sequence[Mapping[str, Any]]) -> None:
    """`log_epoch` for EpochReports as dicts."""
    client = connect(uri)
    for entry in history:
        client.log_batch(run_id, metrics=epoch_metrics(entry))


def epoch_metrics(entry: Mapping[str, Any]) -> list[Metric]:
    """An EpochReport as a dict -> MLflow metrics."""
    values = {
        "lr": entry["lr"],
        "samples_per_second": entry["samples_per_second"],
        "epoch_seconds": entry["seconds"],
        # Read back by the driver, for its progress line, and by a rerun that goes on.
        "epochs_done": entry["epoch"] + 1,
        "score": entry["score"],
    }

    for part in ("train", "valid"):
        for head, metrics in entry[part].items():
            # A head without a label in this split has nothing but NaN to say.
            if metrics["count"]:
                values |= {
                    f"{part}/{head}/{n}": v for n, v in metrics_from_dict(metrics).scalars().items()
                }

    return [Metric(k, v, now(), entry["epoch"]) for k, v in values.items()]


def log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    """Any number of metrics, in as many requests as that takes."""
    for start in range(0, len(metrics), MOST_METRICS):
        client.log_batch(run_id, metrics=metrics[start : start + MOST_METRICS])


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(pd.Timestamp.now("UTC").timestamp() * 1000)


def latest_metrics(uri: str, run_id: str) -> dict[str, float]:
    """The run's metrics as last logged; `gpu_percent` is the mean over its GPUs, where there are
    any."""
    metrics = dict(connect(uri).get_run(run_id).data.metrics)
    # system/gpu_0_utilization_percentage, or system/node_1/gpu_0_... of several nodes. The
    # CPU's figure ends in the same way; a GPU's memory is another one, ..._usage_percentage.
    use = [
        v
        for k, v in metrics.items()
        if k.startswith("system/") and k.endswith("_utilization_percentage") and "gpu_" in k
    ]

    return {**metrics, "gpu_percent": sum(use) / len(use)} if use else metrics


@contextlib.contextmanager
def system_metrics(uri: str, run_id: str, node: str | None = None) -> Iterator[None]:
    """CPU, memory, disk and GPU figures of this process's machine into the run while the block
    runs, as `system/<figure>` or, with `node`, `system/<node>/<figure>`. The run's state is not
    theirs: each node does this."""
    # Not `mlflow.start_run(log_system_metrics=True)`: that ends the run when its block ends,
    # while other nodes are still at work. Every two seconds, for MLflow's ten would leave out a
    # short training; `resume_logging` counts on after the figures of an earlier attempt.
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        run_id, sampling_interval=2, resume_logging=True, node_id=node, tracking_uri=uri
    )
    monitor.start()  # type: ignore[no-untyped-call]

    try:
        yield
    finally:
        monitor.finish()  # type: ignore[no-untyped-call]
