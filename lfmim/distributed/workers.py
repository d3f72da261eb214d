"""Ray Train: the plain loop on workers under DDP, with checkpoints and recovery from lost
workers."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, ScalingConfig
from ray.train import RunConfig as RayRunConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from lfmim import tracking
from lfmim.config import ExperimentConfig, experiment_from_dict, to_dict
from lfmim.data.loading import load_split
from lfmim.distributed import at_work
from lfmim.progress import at, watch
from lfmim.schema import FeatureSpec, InputError
from lfmim.storage import WriteError, disk_failure
from lfmim.training.checkpoint import epoch_folder, latest_checkpoint
from lfmim.training.loop import EpochReport, NonFiniteLossError, train
from lfmim.training.step import DDP_OPTIONS

SCORE = "score"
IMPROVED = "improved_score"
"""What Ray keeps checkpoints by: the score of an epoch that is strictly better than all before it,
else NOT_BETTER. By the score alone Ray would keep the last of equally good epochs, and `best_epoch`
is the first."""
# Finite: Ray writes it as JSON, which has no infinity.
NOT_BETTER = -1e9
POLL_SECONDS = 2.0


def fit(config: ExperimentConfig, store: Path, folder: Path, uri: str, run_id: str) -> Path:
    """Train on Ray's workers, checkpoints into `folder`; returns the last one.

    Raises InputError as a worker did (a loss that is not finite, too), WriteError for a full disk,
    WorkerError for any other failure, KeyboardInterrupt.
    """
    c = config.run
    resources = {"CPU": c.cpus_per_worker}
    if c.gpus_per_worker:
        resources["GPU"] = c.gpus_per_worker

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
            num_workers=c.workers, use_gpu=c.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RayRunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=c.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=c.keep_checkpoints,
                checkpoint_score_attribute=IMPROVED,
                checkpoint_score_order="max",
            ),
        ),
    )

    try:
        with _watched(uri, run_id, config):
            result = trainer.fit()
    except TrainingFailedError as error:
        raised = [
            *getattr(error, "worker_failures", {}).values(),
            getattr(error, "controller_failure", None),
        ]
        # A full disk, met by our code or by Ray when it copies a checkpoint. A path elsewhere is a
        # temporary one, of which nobody knows: the run's folder is named instead.
        for failed in filter(None, map(disk_failure, raised)):
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

    if result.checkpoint is None:
        raise RuntimeError(f"run {folder.name} ended without a checkpoint; see {folder}")
    return Path(result.checkpoint.path)


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
    """One DDP worker. The lead worker alone logs epochs and writes checkpoints; of each node one
    worker logs its machine's figures."""
    config = experiment_from_dict(args["config"])
    context = ray.train.get_context()
    store, lead = Path(args["store"]), context.get_world_rank() == 0
    at_work.begin(str(context.get_world_rank()), f"worker {context.get_world_rank()}")

    # The CPU where a node's GPUs cannot be used.
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        # In all of Ray's processes OMP_NUM_THREADS is 1 (session.py), if the user has not set it.
        torch.set_num_threads(max(1, int(config.run.cpus_per_worker)))

    on_epoch = functools.partial(_report_epoch, args, lead)

    def run(resume: Path | None) -> None:
        data = [
            load_split(store, split, config.model, config.train.cache)
            for split in ("train", "valid")
        ]
        train(
            config,
            FeatureSpec.load(store),
            *data,
            device=device,
            wrap=_wrap,
            on_epoch=on_epoch,
            resume=resume,
        )

    def run_tracked(resume: Path | None) -> None:
        # One per node: the figures are those of the whole machine.
        if context.get_local_rank() == 0:
            several = context.get_world_size() > context.get_local_world_size()
            node = f"node_{context.get_node_rank()}" if several else None
            with tracking.system_metrics(args["uri"], args["run_id"], node):
                run(resume)
        else:
            run(resume)

    latest = ray.train.get_checkpoint()
    # The run may have begun in a process without Ray, whose checkpoints Ray does not know.
    if latest is None:
        run_tracked(latest_checkpoint(Path(args["folder"])))
    else:
        with latest.as_directory() as folder:
            run_tracked(Path(folder))
    at("")


def _report_epoch(args: dict[str, Any], lead: bool, report: EpochReport, save: Any) -> None:
    """Hand an epoch to Ray, from the lead worker with its checkpoint, and to MLflow."""
    improved = report.score if report.best else NOT_BETTER
    metrics = {SCORE: report.score, IMPROVED: improved, "epoch": report.epoch}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if lead:
            save(Path(folder))
            tracking.log_epoch(args["uri"], args["run_id"], report)
            checkpoint = Checkpoint.from_directory(folder)

        there = epoch_folder(Path(args["folder"]), report.epoch)
        name = there.name if lead else None

        try:
            # By every rank, though only the lead has a checkpoint: Ray waits for all.
            ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        # Ray copies file by file: half a checkpoint is none, and would be the newest.
        except OSError:
            if lead:
                shutil.rmtree(there, ignore_errors=True)
            raise


def _wrap(model: torch.nn.Module) -> torch.nn.Module:
    if ray.train.get_context().get_world_size() == 1:
        return model
    return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=dict(DDP_OPTIONS))
