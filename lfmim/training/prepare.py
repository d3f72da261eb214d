"""A run's model, optimizer and data brought to where they are computed on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lfmim.config import ExperimentConfig, to_dict
from lfmim.data.batches import UtteranceTensors
from lfmim.models import EmotionNet
from lfmim.training.averaging import MovingAverage
from lfmim.training.checkpoint import load_weights
from lfmim.training.losses import Objective
from lfmim.training.passes import Passes
from lfmim.training.step import TrainStep, build_optimizer, load_optimizer
from lfmim.training.variant import Variant

READ_ANEW = (
    "seed",
    "lr",
    "lr_scheduler",
    "warmup_epochs",
    "epochs",
    "patience",
    "selection",
    "compile",
)
"""Settings of a recipe that its captured steps do not hold."""


@dataclasses.dataclass(frozen=True)
class _Held:
    """What the last run that was to be held has captured, and what of."""

    recipe: tuple[object, ...]
    train_data: UtteranceTensors
    valid_data: UtteranceTensors
    passes: Passes


_held: list[_Held] = []
"""At most one: a GPU may have no room for two."""


def prepare(
    config: ExperimentConfig,
    model: EmotionNet,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    *,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module],
    variant: Variant,
    begun: tuple[Path, dict[str, Any]] | None,
    hold: bool,
) -> Passes:
    """The passes of a run that begins with the model's weights, or goes on from a checkpoint that
    has `begun` (its folder and its state).

    `hold`: what is captured stays in this process, and serves the next run whose steps differ only
    in what they read anew, on the same data objects.
    """
    c = config.train
    recipe = {k: v for k, v in to_dict(config)["train"].items() if k not in READ_ANEW}
    of = (to_dict(config)["model"], recipe, variant, device)
    if hold and not begun:
        for held in _held:
            data = held.train_data is train_data and held.valid_data is valid_data
            if held.recipe == of and data:
                held.passes.restart(c, model)
                return held.passes
    _held.clear()

    model = model.to(device)
    splits = [train_data, valid_data]
    if c.labels == "multimodal":
        splits[0] = train_data.with_multimodal_labels()
    optimizer = build_optimizer(c, model, captured=variant.captured)
    averaged = MovingAverage(model, c.ema_decay) if c.ema_decay else None
    if begun:
        folder, state = begun
        load_weights(folder, model if averaged is None else averaged.module)
        # With an average a checkpoint's weights are it; those that are trained lie in state.pt.
        if averaged is not None:
            averaged.begun = True
            model.load_state_dict(state["weights"])
        load_optimizer(optimizer, state["optimizer"])

    splits = [data.to(device, c.cache) for data in splits]
    # Every worker has the labels of the whole split, so counts need no exchange.
    objective = Objective.of(c, splits[0].labels, len(train_data.label_spec.classes))
    step = TrainStep.of(config, model, optimizer, device, wrap, objective, variant)
    # Empty where the run so far had no scaler; it may go on where it needs one.
    if begun and begun[1]["scaler"]:
        step.scaler.load_state_dict(begun[1]["scaler"])

    passes = Passes(c, model, step, averaged, *splits)
    if hold and variant.captured:
        _held.append(_Held(of, train_data, valid_data, passes))
    return passes
