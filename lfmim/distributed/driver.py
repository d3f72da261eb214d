"""What every run does, a training's, a sweep's or a benchmark's: begin at its newest checkpoint,
keep the best ones, say when an epoch is done.

Where it runs (this process, Ray Train's workers, a Ray task, a trial of Ray Tune) and what becomes
of its figures is up to who calls it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.data.loading import load_split
from lfmim.data.splits import Fold, Subset
from lfmim.data.store import store_state
from lfmim.schema import FeatureSpec
from lfmim.storage import remove_folder
from lfmim.training.checkpoint import (
    INITIAL,
    UNFINISHED,
    CheckpointMeta,
    epoch_folder,
    load_meta,
    newest_checkpoint,
    remove_checkpoints,
)
from lfmim.training.loop import EpochReport, Save, train
from lfmim.training.step import rank_and_world

AfterEpoch = Callable[[EpochReport], None]
Splits = tuple[UtteranceTensors, UtteranceTensors]


def run_epochs(
    config: ExperimentConfig,
    store: Path,
    folder: Path,
    *,
    device: torch.device,
    keep: int | None,
    hold: bool = False,
    fold: Fold | None = None,
    subset: Subset | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    after_epoch: AfterEpoch = lambda report: None,
) -> CheckpointMeta:
    """Train from the newest checkpoint in `folder` to the end; returns the final state's meta.

    Where there is none and `config.init` is set, from the weights of the one called INITIAL. The
    newest checkpoint is kept and the `keep` best; None: all. `hold`: the data stay in this process,
    and a GPU's captured steps, for the next run on them. `fold`: its splits are trained and
    validated on; `subset`: of the training split it alone. Under torch.distributed every rank calls
    it; rank 0 alone writes checkpoints. `after_epoch` is called on every rank once the epoch is
    saved. Raises as `training.loop.train`, and WriteError.
    """
    resume = _newest(folder)
    history = load_meta(resume).history if resume else []
    # By strict improvement: of equally good epochs the first is `best_epoch`, and it must stay.
    improved = [entry["epoch"] for entry in history if entry["best"]]
    lead = rank_and_world()[0] == 0

    def on_epoch(report: EpochReport, save: Save) -> None:
        if lead:
            # The new one first: killed in between, the run still has one to go on from.
            now = epoch_folder(folder, report.epoch)
            save(now)
            improved.extend([report.epoch] * report.best)
            # Of an epoch that is over.
            remove_folder(folder / UNFINISHED)
            if keep is not None:
                best = improved[-keep:] if keep else []
                remove_checkpoints(folder, keep={now, *(epoch_folder(folder, e) for e in best)})
        after_epoch(report)

    def on_pause(save: Save) -> None:
        if lead:
            save(folder / UNFINISHED)

    load = _held_splits if hold else _splits
    train_data, valid_data = load(store, store_state(store), config.model, config.train.cache, fold)
    if subset:
        train_data = train_data.take(subset.rows(len(train_data)))
    return train(
        config,
        FeatureSpec.load(store),
        train_data,
        valid_data,
        device=device,
        wrap=wrap,
        on_epoch=on_epoch,
        on_pause=on_pause,
        resume=resume,
        init=folder / INITIAL if config.init else None,
        hold=hold,
    )


def run_tracked_epochs(
    config: ExperimentConfig,
    store: Path,
    folder: Path,
    uri: str,
    run_id: str,
    *,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    after_epoch: AfterEpoch = lambda report: None,
) -> CheckpointMeta:
    """`run_epochs` of a run that MLflow follows: rank 0 logs every epoch before `after_epoch`."""

    def log(report: EpochReport) -> None:
        # After it is saved: a rerun logs what was saved and not logged.
        if rank_and_world()[0] == 0:
            tracking.log_epoch(uri, run_id, report)
        after_epoch(report)

    keep = config.run.keep_checkpoints
    return run_epochs(config, store, folder, device=device, keep=keep, wrap=wrap, after_epoch=log)


def _splits(
    store: Path, state: object, model: ModelConfig, cache: str, fold: Fold | None
) -> Splits:
    """Training and validation data of the store in this `state`."""
    train_data, valid_data = (
        load_split(store, split, model, cache, fold, state) for split in ("train", "valid")
    )
    return train_data, valid_data


_held_splits = functools.lru_cache(maxsize=1)(_splits)


def _newest(folder: Path) -> Path | None:
    """The newest checkpoint, as rank 0 sees it: shared storage may show another node an older one,
    and ranks that begin at different epochs would wait for each other for ever."""
    found = [newest_checkpoint(folder)]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]
