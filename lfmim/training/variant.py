"""How a training step is computed: kernel by kernel, or prepared ahead."""

from __future__ import annotations

import dataclasses
import os
from enum import StrEnum

import torch
from torch.utils._triton import has_triton

from lfmim.config import ModelConfig, TrainConfig, cache_folder


class Variant(StrEnum):
    """Recorded in checkpoints, so that a run goes on as it began."""

    EAGER = "eager"
    """Each operation by itself."""
    COMPILED = "compiled"
    """The transformer layers compiled, the rest eager."""
    CAPTURED = "captured"
    """The whole step one CUDA graph of eager kernels."""
    CAPTURED_LAYERS = "captured-layers"
    """As captured, the transformer layers compiled."""
    CAPTURED_MODEL = "captured-model"
    """As captured, the whole model compiled."""

    @property
    def captured(self) -> bool:
        return self in (Variant.CAPTURED, Variant.CAPTURED_LAYERS, Variant.CAPTURED_MODEL)

    @property
    def compiles(self) -> bool:
        return self not in (Variant.EAGER, Variant.CAPTURED)

    @property
    def compiles_layers(self) -> bool:
        return self in (Variant.COMPILED, Variant.CAPTURED_LAYERS)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a variant at the paper's sizes and batch: seconds until its first step, and of a step.
    Measured on an H200 with torch 2.11 (docs/benchmarks.md)."""

    start_s: float
    step_s: float


COSTS = {
    Variant.CAPTURED: Cost(6.9, 11.87e-3),
    Variant.CAPTURED_LAYERS: Cost(28.4, 8.55e-3),
    Variant.CAPTURED_MODEL: Cost(45.4, 7.14e-3),
}


def obstacle(config: TrainConfig, device: torch.device, *, precision: str, world: int) -> str:
    """Why a step cannot be captured; "" if it can."""
    if device.type != "cuda":
        return "only a CUDA device has graphs"
    if world > 1:
        return "several workers exchange their gradients within a step"
    if precision == "fp16":
        return "the loss scaling of fp16 looks at every step's gradients on the host"
    if config.micro_batch:
        return "train.micro_batch divides each batch by its own lengths"
    return ""


def choose(
    config: TrainConfig,
    model: ModelConfig,
    device: torch.device,
    *,
    samples: int,
    precision: str,
    world: int,
    before: str = "",
) -> Variant:
    """What `train.compile` means for a run over so many samples an epoch. `before`: what its
    checkpoint says, if it goes on from one.

    Depends on nothing else, neither a cache's state nor a timing: a run that is made again computes
    the same.
    """
    if config.compile == "off":
        return Variant.EAGER
    compiler = device.type == "cpu" or has_triton()
    hindered = obstacle(config, device, precision=precision, world=world)
    # With more epochs the choice would be another.
    if config.compile == "auto" and before and Variant(before).captured and not hindered:
        return Variant(before)
    if hindered:
        # Compiled and not captured, every step still waits for its launches: measured as the
        # slowest on a GPU, so only who asks for it has it.
        return Variant.COMPILED if config.compile == "on" and compiler else Variant.EAGER
    if not compiler:
        return Variant.CAPTURED
    if config.compile == "on":
        return Variant.CAPTURED_MODEL

    # What compiling saves grows with a step's arithmetic, what it costs does not.
    paper = ModelConfig()
    steps = config.epochs * samples / TrainConfig().batch_size
    work = steps * _arithmetic(model) / _arithmetic(paper)
    return min(COSTS, key=lambda variant: COSTS[variant].start_s + work * COSTS[variant].step_s)


def _arithmetic(model: ModelConfig) -> float:
    """Of a sample, up to a factor: that of the layers' products."""
    return model.num_layers * model.d_model**2 * sum(model.max_lengths.values())


def keep_compiled_code() -> None:
    """Let torch keep what it compiles in $LFMIM_CACHE, unless the user has said where.

    It is code that later runs execute: a folder that another user owns is left alone.
    """
    folder = cache_folder() / f"compiled-{os.getuid()}"
    if folder.exists() and folder.stat().st_uid != os.getuid():
        return
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
