"""One training step, in the precision and the pieces that suit the device."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.batches import Batch
from lfmim.metrics import HeadSums, SentimentSums
from lfmim.models import cpu
from lfmim.models.layers import TransformerLayer
from lfmim.schema import HEADS
from lfmim.training.losses import PLAIN, Objective, head_losses, weighted_loss
from lfmim.training.variant import Variant, keep_compiled_code

# 3.6M parameters are 14 MB of gradients: buckets of 4 are exchanged while the backward pass still
# runs (the default of 25 would hold nearly all until the end). No static_graph: it and no_sync
# exclude each other.
DDP_OPTIONS = {"bucket_cap_mb": 4, "gradient_as_bucket_view": True}


Computed = tuple[Batch, Tensor, dict[str, Tensor], Tensor]
"""A micro-batch, its loss (0-d), the logits and the losses [B, heads] of its samples; detached but
for the logits of one computed in turn."""


def rank_and_world() -> tuple[int, int]:
    """(0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto -> bf16 on GPUs with native bf16, fp16 on other GPUs, fp32 on CPU (where autocast is
    ~10x slower)."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def build_optimizer(
    config: TrainConfig, model: nn.Module, *, captured: bool = False
) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters, in one fused kernel call per step. `captured`: the learning
    rate is a tensor on their device, which a CUDA graph reads at each replay."""
    lr: float | Tensor = config.lr
    if captured:
        lr = torch.tensor(config.lr, device=next(model.parameters()).device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        model.parameters(),
        lr=lr,
        weight_decay=config.weight_decay,
        fused=True,
        capturable=captured,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from a checkpoint's state. How the parameters are stepped stays this run's: whether the
    rate is a tensor depends on how steps are computed here."""
    mine = [{k: x for k, x in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, settings in zip(optimizer.param_groups, mine, strict=True):
        group.update(settings)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Of all parameters, from the next step on."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            # into the memory that a captured step reads
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def compile_layers(model: nn.Module) -> None:
    """Compile the transformer layers, one piece of code for all: seconds instead of the minutes a
    whole model takes.

    In place, so that DDP and checkpoints see the modules they know.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            # dynamic: lengths differ from batch to batch, and fixed shapes compile anew for each.
            module.compile(dynamic=True)


def micro_batch_size(setting: int, device: torch.device, model: ModelConfig) -> int:
    """train.micro_batch resolved: on a CPU few enough samples that a layer's activations stay in
    its cache.

    16 samples at the paper's sizes, more for smaller models.
    """
    if setting or device.type != "cpu":
        return setting or sys.maxsize

    # Activations grow with width and positions. With a fixed number of samples a tiny model lost
    # all it gained to calls into torch (docs/LOG.md).
    paper = ModelConfig()
    relative = (
        paper.d_model
        * sum(paper.max_lengths.values())
        / (model.d_model * sum(model.max_lengths.values()))
    )
    return max(1, round(16 * relative))


def step_threads(device: torch.device, *, precision: str, alone: bool) -> int:
    """How many threads may compute micro-batches side by side. `alone`: one worker, eager.

    Only where nothing but models/cpu draws random numbers: torch's own dropout has one generator
    for all threads.
    """
    fits = alone and device.type == "cpu" and precision == "fp32"
    return torch.get_num_threads() if fits else 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """How one training step of a model computes: precision, compilation, micro-batches, workers."""

    model: nn.Module
    """As it is called: wrapped for data parallelism, layers compiled."""
    optimizer: torch.optim.Optimizer
    scaler: GradScaler
    autocast: torch.autocast
    beta_H: Tensor
    grad_clip: float = 0.0
    objective: Objective = PLAIN
    variant: Variant = Variant.EAGER
    world: int = 1
    micro_batch: int = sys.maxsize
    threads: int = 1
    """Above 1 (see step_threads) each micro-batch is one thread's: operations this small gain
    little from several."""

    @classmethod
    def of(
        cls,
        config: ExperimentConfig,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
        objective: Objective | None = None,
        variant: Variant = Variant.EAGER,
    ) -> TrainStep:
        """The step that the config asks for; `wrap` may wrap the model for data parallelism.
        `objective` None: cross-entropy, smoothed as the config has it. With a captured `variant`
        this is what is to be captured."""
        c, world = config.train, rank_and_world()[1]

        precision = resolve_precision(c.precision, device)
        parallel = wrap(model)
        if variant.compiles:
            keep_compiled_code()
        if variant.compiles_layers:
            compile_layers(model)
        elif variant is Variant.CAPTURED_MODEL:
            # One shape, so nothing is to be dynamic.
            model.compile(dynamic=False)

        return cls(
            model=parallel,
            optimizer=optimizer,
            # bf16 has float32's range of exponents; only fp16's gradients vanish without scaling.
            scaler=GradScaler(device.type, enabled=precision == "fp16"),
            autocast=torch.autocast(
                device.type,
                dtype=torch.float16 if precision == "fp16" else torch.bfloat16,
                enabled=precision != "fp32",
            ),
            beta_H=torch.tensor([c.beta.as_dict()[h] for h in HEADS], device=device),
            grad_clip=c.grad_clip,
            objective=objective or Objective(c.label_smoothing),
            variant=variant,
            world=world,
            micro_batch=micro_batch_size(c.micro_batch, device, config.model),
            threads=step_threads(
                device, precision=precision, alone=variant is Variant.EAGER and world == 1
            ),
        )

    def __call__(self, batch: Batch, sums: HeadSums | SentimentSums) -> Tensor:
        """One optimizer step on this worker's share of a batch, counted in `sums`; returns its part
        of the global loss (0-d, detached)."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=batch.labels.device)

        # A batch that is one micro-batch stays whole: with small models the threads would mostly
        # wait for Python's lock (3.2 times slower, docs/LOG.md).
        if self.threads > 1 and len(batch.labels) > self.micro_batch:
            # no larger than what leaves each thread a part
            size = min(self.micro_batch, -(-len(batch.labels) // self.threads))
            computed = self._side_by_side(list(batch.split(size)))
        else:
            computed = self._in_turn(list(batch.split(self.micro_batch)))

        # Nothing is asked of the device in here: reading a number would wait for a GPU.
        for part, loss, logits, losses_BH in computed:
            sums.update(logits, part.labels, losses_BH)
            total += loss

        if self.grad_clip:
            # The norm is to be that of the gradients, not of their scaled copies.
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return total

    def _forward(self, part: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        with self.autocast:
            logits, _, auxiliary = self.model(part.features, part.masks)
        losses_BH = head_losses(logits, part.labels, self.objective)
        loss = weighted_loss(losses_BH, part.counts, self.beta_H)
        if auxiliary is not None:
            loss = loss + auxiliary * part.share
        return loss, logits, losses_BH.detach()

    def _in_turn(self, parts: Sequence[Batch]) -> Iterator[Computed]:
        """Gradients are added up as the parts go backward."""
        for i, part in enumerate(parts):
            # DDP exchanges gradients once, with the last part.
            if isinstance(self.model, DistributedDataParallel) and i + 1 < len(parts):
                held: AbstractContextManager[None] = self.model.no_sync()
            else:
                held = nullcontext()
            with held:
                loss, logits, losses_BH = self._forward(part)
                # A worker's loss is already its share of the global batch's (weighted_loss), and
                # DDP averages gradients over the workers: undo the division.
                self.scaler.scale(loss * self.world).backward()  # type: ignore[no-untyped-call]
            yield part, loss.detach(), logits, losses_BH

    def _side_by_side(self, parts: list[Batch]) -> Iterator[Computed]:
        """Computed by threads; gradients are added up in the order of the parts, so the result does
        not depend on who is first."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]

        def work(
            part: Batch, seed: int
        ) -> tuple[Tensor, dict[str, Tensor], Tensor, tuple[Tensor | None, ...]]:
            cpu.seed_thread(seed)
            loss, logits, losses_BH = self._forward(part)
            # Not backward(), which would add to the parameters in the order in which threads end.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            return loss.detach(), {h: x.detach() for h, x in logits.items()}, losses_BH, gradients

        # The longest first (batches begin with their shortest samples), so that no thread begins
        # with it when the others end.
        parts = parts[::-1]
        # A seed per part, drawn here: which thread takes a part changes no mask.
        seeds = torch.randint(2**62, (len(parts),)).tolist()
        results = cpu.pool(self.threads).map(work, parts, seeds)

        # map keeps the order of the parts.
        for part, (loss, logits, losses_BH, gradients) in zip(parts, results, strict=True):
            for p, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)
            yield part, loss, logits, losses_BH
