"""Ray Train: the plain loop on workers under DDP, with checkpoints and recovery from lost
workers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from lfmim import tracking
from lfmim.config import ExperimentConfig, experiment_from_dict, to_dict
from lfmim.distributed import at_work, ops
from lfmim.distributed.driver import run_tracked_epochs
from lfmim.progress import at, watch
from lfmim.schema import InputError
from lfmim.storage import WriteError, as_path, disk_failure
from lfmim.storage.arrow import ray_storage
from lfmim.training.loop import EpochReport, NonFiniteLossError
from lfmim.training.step import DDP_OPTIONS

SCORE = "score"
RAY_FOLDER = "ray"
"""Where Ray Train keeps its own state, in the run's folder."""
POLL_SECONDS = 2.0


def fit(config: ExperimentConfig, store: Path, folder: Path, uri: str, run_id: str) -> None:
    """Train on Ray's workers, checkpoints into `folder`.

    Raises InputError as a worker did (a loss that is not finite, too), WriteError for a full disk,
    WorkerError for any other failure, KeyboardInterrupt.
    """
    c = config.run
    resources = {"CPU": c.cpus_per_worker}
    if c.gpus_per_worker:
        resources["GPU"] = c.gpus_per_worker
    # A range, which Ray's types do not have.
    workers: Any = (c.min_workers, c.workers) if c.min_workers else c.workers

    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": to_dict(config),
            "store": str(store),
            "folder": str(folder),
            "uri": uri,
            "run_id": run_id,
        },
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=c.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RayRunConfig(
            # A folder of its own: Ray's snapshot of 0.1 lies in the run's, and Ray refuses a run
            # of whose checkpoints one is gone.
            name=RAY_FOLDER,
            **ray_storage(folder),
            failure_config=FailureConfig(max_failures=c.max_failures),
        ),
    )

    try:
        with _watched(uri, run_id, config):
            trainer.fit()
    except TrainingFailedError as error:
        raised = [
            *getattr(error, "worker_failures", {}).values(),
            getattr(error, "controller_failure", None),
        ]
        # A full disk, met by our code or by Ray when it copies a checkpoint. A path elsewhere is a
        # temporary one, of which nobody knows: the run's folder is named instead.
        for failed in filter(None, map(disk_failure, raised)):
            if not isinstance(failed, WriteError):
                raise failed from error
            place = failed.path if failed.path.startswith(str(folder)) else folder
            raise WriteError(place, failed.reason) from error
        # What a worker says of its input is said in its own words, without Ray's around them.
        for failure in raised:
            if isinstance(failure, InputError | NonFiniteLossError):
                raise InputError(str(failure)) from error
        raise at_work.worker_failure(error, f"train {folder.name}") from None
    # Ray Train's own answer to Ctrl-C, with exit code 0: an interrupted training would pass for a
    # finished one.
    except SystemExit as stop:
        raise KeyboardInterrupt from stop


@contextlib.contextmanager
def _watched(uri: str, run_id: str, config: ExperimentConfig) -> Iterator[None]:
    """Show the run's progress while the block runs. The workers may be on other machines: MLflow is
    what all share."""
    stop = threading.Event()

    def follow() -> None:
        with watch("train", config.train.epochs, "epochs") as show:
            while True:
                # Before the look, not after: it is the last look that shows the last epoch.
                last = stop.wait(POLL_SECONDS)
                # A tracker that is away for a moment must not end the training.
                with contextlib.suppress(Exception):
                    m = tracking.latest_metrics(uri, run_id)
                    figures = {"gpu_percent": m["gpu_percent"]} if "gpu_percent" in m else {}
                    note = (
                        f"{m['samples_per_second']:.0f} samples/s, validation score {m[SCORE]:.3f}"
                        if "epochs_done" in m
                        else "starting workers"
                    )
                    show(int(m.get("epochs_done", 0)), note, **figures)
                if last:
                    return

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        with at_work.say_when_stuck("train", "step", config.run.stuck_minutes):
            yield
    finally:
        stop.set()
        # It may be waiting for a tracker that has gone: the job is not to wait with it.
        thread.join(timeout=10)


def _train_worker(args: dict[str, Any]) -> None:
    """One DDP worker; of each node one logs its machine's figures."""
    config = experiment_from_dict(args["config"])
    context = ray.train.get_context()
    at_work.begin(str(context.get_world_rank()), f"worker {context.get_world_rank()}")

    # The CPU where a node's GPUs cannot be used.
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # In all of Ray's processes OMP_NUM_THREADS is 1 (session.py), if the user has not set it.
        torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))

    # One per node: the figures are those of the whole machine.
    figures: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if context.get_local_rank() == 0:
        several = context.get_world_size() > context.get_local_world_size()
        node = f"node_{context.get_node_rank()}" if several else None
        figures = tracking.system_metrics(args["uri"], args["run_id"], node)

    def after_epoch(report: EpochReport) -> None:
        ops.log_epoch("train", Path(args["folder"]).name, str(context.get_world_rank()), report)
        # Ray waits here for all ranks, and learns that the run gets on.
        ray.train.report({SCORE: report.score, "epoch": report.epoch})

    with figures:
        run_tracked_epochs(
            config,
            as_path(args["store"]),
            as_path(args["folder"]),
            args["uri"],
            args["run_id"],
            device=device,
            wrap=_wrap,
            after_epoch=after_epoch,
        )
    at("")


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    if ray.train.get_context().get_world_size() == 1:
        return model
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=dict(DDP_OPTIONS))
