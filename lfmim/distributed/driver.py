"""What every training run does, in one process or in Ray's workers: begin at its newest checkpoint,
keep the best ones, tell the tracker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lfmim import tracking
from lfmim.config import ExperimentConfig
from lfmim.data.loading import load_split
from lfmim.schema import FeatureSpec
from lfmim.training.checkpoint import (
    CheckpointMeta,
    epoch_folder,
    latest_checkpoint,
    load_meta,
    remove_checkpoints,
)
from lfmim.training.loop import EpochReport, train
from lfmim.training.step import rank_and_world


def run_epochs(
    config: ExperimentConfig,
    store: Path,
    folder: Path,
    uri: str,
    run_id: str,
    *,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    after_epoch: Callable[[EpochReport], None] = lambda report: None,
) -> CheckpointMeta:
    """Train from the newest checkpoint in `folder` to the end; returns the final state's meta.

    Under torch.distributed every rank calls it; rank 0 alone writes checkpoints and logs.
    `after_epoch` is called on every rank once the epoch is saved and logged. Raises as
    `training.loop.train`, and WriteError.
    """
    resume = _newest(folder)
    history = load_meta(resume).history if resume else []
    # By strict improvement: of equally good epochs the first is `best_epoch`, and it must stay.
    improved = [entry["epoch"] for entry in history if entry["best"]]
    lead = rank_and_world()[0] == 0

    def on_epoch(report: EpochReport, save: Callable[[Path], None]) -> None:
        if lead:
            now = epoch_folder(folder, report.epoch)
            # Before MLflow hears of it: a rerun logs what was saved and not logged.
            save(now)
            tracking.log_epoch(uri, run_id, report)
            improved.extend([report.epoch] * report.best)

            newest = improved[-config.run.keep_checkpoints :]
            remove_checkpoints(folder, keep={now, *(epoch_folder(folder, e) for e in newest)})
        after_epoch(report)

    data = [
        load_split(store, split, config.model, config.train.cache) for split in ("train", "valid")
    ]
    return train(
        config,
        FeatureSpec.load(store),
        *data,
        device=device,
        wrap=wrap,
        on_epoch=on_epoch,
        resume=resume,
    )


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint, as rank 0 sees it: shared storage may show another node an older one,
    and ranks that begin at different epochs would wait for each other for ever."""
    found = [latest_checkpoint(folder)]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]
