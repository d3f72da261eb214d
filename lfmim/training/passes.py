"""The passes over a run's data: one that trains and one that judges, eager or captured."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lfmim.config import ModelConfig, TrainConfig
from lfmim.data.batches import Batch, UtteranceTensors, epoch_order
from lfmim.metrics import HeadSums, Metrics, SentimentSums, sums_for
from lfmim.models import EmotionNet
from lfmim.training.averaging import MovingAverage
from lfmim.training.capture import MAX_SHAPES, Replays, fixed_lengths
from lfmim.training.losses import head_losses
from lfmim.training.regularization import drop_modalities, drop_steps
from lfmim.training.step import TrainStep, micro_batch_size, rank_and_world
from lfmim.training.variant import Variant

EVALUATED_ROWS = 256
"""Samples that are judged at a time, at least."""


@torch.no_grad()
def judge(
    model: nn.Module,
    batch: Batch,
    sums: HeadSums | SentimentSums,
    autocast: torch.autocast | None = None,
) -> None:
    """Count what the model says of a batch in `sums`."""
    with autocast or torch.autocast(batch.labels.device.type, enabled=False):
        logits = model(batch.features, batch.masks).logits
    sums.update(logits, batch.labels, head_losses(logits, batch.labels))


@contextmanager
def judging(model: nn.Module) -> Iterator[None]:
    """The model in eval mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def evaluate(
    model: nn.Module,
    data: UtteranceTensors,
    *,
    batch_size: int,
    autocast: torch.autocast | None = None,
) -> Mapping[str, Metrics]:
    """Exact global metrics per head: sums over this worker's share, added up over the workers."""
    rank, world = rank_and_world()
    device, sums = data.labels.device, sums_for(data.labels, data.label_spec.classes)

    # Without a backward pass there is more room, but a CPU's cache is as small as in training.
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    config = getattr(inner, "config", None)
    size = micro_batch_size(0, device, config) if isinstance(config, ModelConfig) else sys.maxsize

    with judging(model):
        for batch in data.batches(batch_size, rank=rank, world=world):
            for part in batch.split(size):
                judge(model, part, sums, autocast)

    # Sums are added up, not metrics averaged: F1 of a whole is no mean of its parts' F1.
    return sums.all_reduce().compute()


class Passes:
    """Over the training and the validation split of one run, both where they are to be read."""

    sums: HeadSums | SentimentSums
    """Of the training pass that is under way."""
    bad: Tensor
    """Steps of it whose loss was not finite (0-d). Counted on the device and read once an epoch: to
    look at each loss would make a GPU wait."""

    def __init__(
        self,
        config: TrainConfig,
        model: EmotionNet,
        step: TrainStep,
        averaged: MovingAverage | None,
        train_data: UtteranceTensors,
        valid_data: UtteranceTensors,
    ) -> None:
        self.config, self.model, self.step, self.averaged = config, model, step, averaged
        self.train_data, self.valid_data = train_data, valid_data
        self.judged = step.model if averaged is None else averaged.module
        self.judged_rows = max(config.batch_size, EVALUATED_ROWS)
        self.sums = sums_for(train_data.labels, train_data.label_spec.classes)
        self.bad = torch.zeros((), device=train_data.labels.device)
        self.valid_sums = sums_for(valid_data.labels, valid_data.label_spec.classes)
        self.trained: Replays | None = None
        self.validated: Replays | None = None
        if step.variant.captured:
            self._capture()

    @property
    def kept(self) -> nn.Module:
        """What is validated and saved: the model, or its moving average."""
        return self.model if self.averaged is None else self.averaged.module

    def restart(self, config: TrainConfig, model: nn.Module) -> None:
        """Begin another run, of a recipe that differs in what a step reads anew: from the weights
        of `model`, with nothing of the optimizer's state."""
        self.config = config
        self.model.load_state_dict(model.state_dict())
        if self.averaged is not None:
            self.averaged.module.load_state_dict(model.state_dict())
            self.averaged.begun = False
        # Zeroed and not dropped: graphs update it where it lies.
        for of in self.step.optimizer.state.values():
            for x in of.values():
                if isinstance(x, Tensor):
                    x.zero_()

    def take(self, batch: Batch) -> None:
        """One optimizer step, with all that belongs to it and nothing that asks the device."""
        if self.config.modality_dropout:
            batch = drop_modalities(batch, self.config.modality_dropout)
        if self.config.step_dropout:
            batch = drop_steps(batch, self.config.step_dropout)
        self.bad += ~self.step(batch, self.sums).isfinite()
        if self.averaged is not None:
            self.averaged.follow(self.step.model)

    def start_epoch(self) -> None:
        """In train mode, nothing counted."""
        self.step.model.train()
        self._clear(self.sums, self.bad)

    def steps(
        self, data: UtteranceTensors, epoch: int, begin: int
    ) -> Iterator[tuple[int, Callable[[], None]]]:
        """The steps of an epoch from number `begin` on, each one's number and what takes it. `data`
        is the training split, perhaps with other labels. After `start_epoch`."""
        c, seed = self.config, (self.config.seed, epoch)
        if self.trained is not None:
            self.trained.labels.copy_(data.labels)
            yield from self.trained.over(epoch_order(len(data), seed), begin)
            return
        rank, world = rank_and_world()
        batches = data.batches(c.batch_size, rank=rank, world=world, shuffle_seed=seed, begin=begin)
        for number, batch in enumerate(batches, begin):
            yield number, functools.partial(self.take, batch)

    def validate(self) -> Mapping[str, Metrics]:
        """Metrics of the validation split, per head."""
        if self.validated is None:
            return evaluate(
                self.judged,
                self.valid_data,
                batch_size=self.judged_rows,
                autocast=self.step.autocast,
            )
        self._clear(self.valid_sums)
        with judging(self.judged):
            for _, call in self.validated.over(epoch_order(len(self.valid_data), None)):
                call()
        return self.valid_sums.compute()

    def _capture(self) -> None:
        c = self.config
        cuda = self.bad.device.type == "cuda"
        # One pool: no graph's inner memory is read once another has run.
        pool = torch.cuda.graph_pool_handle() if cuda else None
        # A model that is compiled whole is compiled for each shape.
        most = 1 if self.step.variant is Variant.CAPTURED_MODEL else MAX_SHAPES
        shapes = fixed_lengths(self.train_data, c.batch_size, most)
        self.step.model.train()
        with self._unchanged():
            self.trained = Replays(
                self.train_data,
                c.batch_size,
                shapes,
                self.take,
                pool,
                fill_up=not self.model.batch_wide,
            )

        # Compiled code would be made once more, for eval mode; a forward pass is little work.
        judged = functools.partial(
            judge, self.judged, sums=self.valid_sums, autocast=self.step.autocast
        )
        whole = fixed_lengths(self.valid_data, self.judged_rows, 1)
        with judging(self.judged), torch.compiler.set_stance("force_eager"):
            self.validated = Replays(self.valid_data, self.judged_rows, whole, judged, pool)

    @staticmethod
    def _clear(sums: HeadSums | SentimentSums, *more: Tensor) -> None:
        for x in (*sums.tensors, *more):
            x.zero_()

    @contextmanager
    def _unchanged(self) -> Iterator[None]:
        """Steps in the block leave weights, averages and the optimizer's state as they were."""
        modules = [self.step.model] + ([] if self.averaged is None else [self.averaged.module])
        kept = [x for module in modules for x in (*module.parameters(), *module.buffers())]
        before = [x.detach().clone() for x in kept]
        state = self.step.optimizer.state
        known: dict[Any, dict[str, Tensor]] = {
            p: {k: x.clone() for k, x in of.items() if isinstance(x, Tensor)}
            for p, of in state.items()
        }
        yield
        with torch.no_grad():
            for x, was in zip(kept, before, strict=True):
                x.copy_(was)
            # What the steps have begun lies where the graphs update it, so it is not dropped.
            for p, of in state.items():
                for k, x in of.items():
                    if isinstance(x, Tensor):
                        x.copy_(known.get(p, {}).get(k, torch.zeros_like(x)))
