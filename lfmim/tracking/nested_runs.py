"""Runs that hold other runs: a sweep and its trials, a benchmark and its systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from mlflow.entities import Metric

from lfmim.config import TrackingConfig, config_hash, experiment_from_dict
from lfmim.experiments.results import Results, largest, systems_of
from lfmim.experiments.search import TrialRecord
from lfmim.experiments.systems import BenchmarkConfig
from lfmim.storage import local_copy
from lfmim.tracking.database import connect
from lfmim.tracking.metrics import epoch_metrics, log_metrics, now
from lfmim.tracking.runs import (
    CONFIG_FILE,
    MESSAGE,
    create_run,
    failing,
    finished_run,
    git_tag,
    log_params,
)
from lfmim.tracking.server import told

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How MLflow marks a nested run.
PARENT_RUN = "mlflow.parentRunId"
REPORT_SUFFIXES = (".csv", ".html", ".json", ".md", ".png", ".tex")


@told
def logged_trials(uri: str, parent: str) -> dict[int, str]:
    """Trial number -> child run, of the trials of a sweep that are in MLflow already. Unfinished
    rests are deleted."""
    client = connect(uri)
    known = {}
    token: str | None = None

    while True:
        page = client.search_runs(
            [client.get_run(parent).info.experiment_id],
            f"tags.`{PARENT_RUN}` = '{parent}'",
            max_results=1000,
            page_token=token,
        )
        for run in page:
            # The winner, trained again, is a child of the sweep as well.
            if "trial" not in run.data.tags:
                continue
            # The sweep was killed while it logged this one; it is logged again, whole.
            if run.info.status == "RUNNING":
                client.delete_run(run.info.run_id)
            else:
                known[int(run.data.tags["trial"])] = str(run.info.run_id)

        token = page.token
        if not token:
            return known


@told
def log_trial(uri: str, parent: str, record: TrialRecord) -> str:
    """An ended trial as a child run of the sweep: config, curves, outcome; returns its id."""
    client = connect(uri)
    tags = {PARENT_RUN: parent, "trial": str(record.number), "state": record.state, **git_tag()}
    run = client.create_run(
        client.get_run(parent).info.experiment_id, run_name=f"trial-{record.number:04d}", tags=tags
    )
    run_id = str(run.info.run_id)

    log_params(client, run_id, {k: record.config[k] for k in ("model", "train")})
    client.log_text(run_id, yaml.safe_dump(record.config, sort_keys=False), CONFIG_FILE)
    for entry in record.history:
        client.log_batch(run_id, metrics=epoch_metrics(entry))

    if record.score is not None:
        client.log_metric(run_id, "best_score", record.score)
        client.log_metric(run_id, "best_epoch", record.best_epoch)
    if record.message:
        client.set_tag(run_id, MESSAGE, record.message)

    # A trial that the scheduler stopped has done what was wanted of it.
    client.set_terminated(
        run_id, "FINISHED" if record.state in ("finished", "stopped") else "FAILED"
    )
    return run_id


@told
def log_best(uri: str, run_id: str, number: int, score: float) -> None:
    """Best score so far after trial `number`, into the parent run."""
    connect(uri).log_metric(run_id, "best_score", score, step=number)


@told
def log_sweep(
    uri: str,
    run_id: str,
    *,
    metrics: Mapping[str, float],
    figures: Mapping[str, Figure],
    texts: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Close a sweep's parent run with its figures (figures/<name>.png), files, metrics and tags."""
    client = connect(uri)

    for name, figure in figures.items():
        client.log_figure(run_id, figure, f"figures/{name}.png")
    for name, text in texts.items():
        client.log_text(run_id, text, name)
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    for name, tag in tags.items():
        client.set_tag(run_id, name, tag)
    client.set_terminated(run_id)


@told
def log_comparison(uri: str, config: BenchmarkConfig, results: Results, folder: Path) -> str:
    """A run for a finished benchmark with test metrics per system and head (mean over seeds) and
    the report's files, and inside it a run per system and seed. Logged once: the same results again
    give the run that is there."""
    key = config_hash(*([r["system"], r["seed"], r["config"], r["test"]] for r in results))
    client = connect(uri, writing=True)
    if found := finished_run(client, config.tracking.experiment, f"tags.benchmark = '{key}'"):
        return found

    run_id = create_run(
        uri, config, config.tracking, f"benchmark-{folder.name}", {"kind": "benchmark"}
    )
    with failing(uri, run_id):
        for result in results:
            _log_result(uri, config.tracking, run_id, result)
        # Of a benchmark over sizes those at the largest: a mean over sizes is of no model.
        for name, mean in _means(largest(results)):
            client.log_metric(run_id, name, mean)
        # What people read. The runs' own results and checkpoints lie in folders beside it.
        files = [p for p in folder.iterdir() if p.is_file() and p.suffix in REPORT_SUFFIXES]
        for path in sorted(files):
            with local_copy(path) as file:
                client.log_artifact(run_id, str(file), "report")
        # Last, with the state: a record that was interrupted is not found by the next attempt,
        # which makes another.
        client.set_tag(run_id, "benchmark", key)
        client.set_terminated(run_id)
    return run_id


def _log_result(uri: str, tracking: TrackingConfig, parent: str, result: Mapping[str, Any]) -> None:
    """One system and seed as a child run of the benchmark: curves, test metrics, cost."""
    client = connect(uri)
    subset = f"-{result['size']}-{result['subset']}" if result.get("size") else ""
    run_id = create_run(
        uri,
        experiment_from_dict(result["config"], stored=True),
        tracking,
        f"{result['system']}-{result['seed']}{subset}",
        {PARENT_RUN: parent, "system": result["system"]},
    )

    metrics = [m for entry in result["history"] for m in epoch_metrics(entry)]
    metrics += [
        Metric(f"test/{head}/{name}", value, now(), 0)
        for head, scores in result["test"].items()
        for name, value in scores.items()
        if isinstance(value, float)
    ]
    metrics += [
        Metric(name, result[name], now(), 0)
        for name in ("parameters", "flops", "seconds", "best_epoch")
    ]

    log_metrics(client, run_id, metrics)
    client.set_terminated(run_id)


def _means(results: Results) -> Iterator[tuple[str, float]]:
    """`<system>/<head>/<metric>` of the test split, and its mean over the seeds."""
    for system in systems_of(results):
        runs = [r["test"] for r in results if r["system"] == system]
        for head in runs[0]:
            for name, value in runs[0][head].items():
                # Not the counts and confusion matrices, which are among the scores as well.
                if isinstance(value, float):
                    mean = sum(t[head][name] for t in runs) / len(runs)
                    yield f"{system}/{head}/{name}", mean
