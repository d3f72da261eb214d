"""The training loop: single-device code that also runs under torch.distributed when a process group
exists."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._triton import has_triton

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.metrics import HeadSums, Metrics, SentimentSums, sums_for
from lfmim.models import MODELS, EmotionNet, build_model, check_dims, cpu
from lfmim.models.base import accepting_absent
from lfmim.models.layers import TransformerLayer
from lfmim.progress import at_step
from lfmim.schema import FEATURE_COLUMNS, HEADS, IGNORE_LABEL, FeatureSpec, InputError
from lfmim.training.checkpoint import (
    CheckpointMeta,
    is_better,
    load_meta,
    load_state,
    load_weights,
    save_checkpoint,
)
from lfmim.training.losses import head_losses, weighted_loss
from lfmim.training.regularization import drop_modalities, drop_steps


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; training on would only destroy the weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochReport:
    """One finished epoch. Metrics are keyed by head name."""

    epoch: int
    lr: float
    train: Mapping[str, Metrics]
    valid: Mapping[str, Metrics]
    score: float
    """Validation score of the selection head: accuracy, for sentiment minus the mean absolute
    error."""
    best: bool
    seconds: float
    samples_per_second: float

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


OnEpoch = Callable[[EpochReport, Callable[[Path], None]], None]
"""Called on every worker after every epoch with the report and a function that saves a checkpoint
into a folder."""


# 3.6M parameters are 14 MB of gradients: buckets of 4 are exchanged while the backward pass still
# runs (the default of 25 would hold nearly all until the end). No static_graph: it and no_sync
# exclude each other.
DDP_OPTIONS = {"bucket_cap_mb": 4, "gradient_as_bucket_view": True}


def rank_and_world() -> tuple[int, int]:
    """(0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def worker_device(run: RunConfig) -> torch.device:
    """The device that a run without Ray Train's workers gets in this process, its threads set."""
    device = torch.device("cuda" if run.gpus_per_worker and torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(run.cpus_per_worker)))
    return device


def resolve_precision(precision: str, device: torch.device) -> str:
    """auto -> bf16 on GPUs with native bf16, fp16 on other GPUs, fp32 on CPU (where autocast is
    ~10x slower)."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """Learning rate of epoch `epoch` (from 0)."""
    if config.lr_scheduler == "inverse_epoch":
        return config.lr / (epoch + 1)
    if config.lr_scheduler == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
    return config.lr


def warmup_factor(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """Share of the learning rate that step `step` (from 0) of an epoch's `steps` gets: rises
    linearly over `train.warmup_epochs`, then 1."""
    return (
        min(1.0, (epoch + (step + 1) / steps) / config.warmup_epochs)
        if config.warmup_epochs
        else 1.0
    )


def build_optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters, in one fused kernel call per step."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )


def compiles(setting: str, device: torch.device) -> bool:
    """train.compile resolved for a device."""
    return setting == "on" or (setting == "auto" and device.type == "cuda" and has_triton())


def compile_layers(model: nn.Module) -> None:
    """Compile the transformer layers, one piece of code for all: seconds instead of the minutes a
    whole model takes.

    In place, so that DDP and checkpoints see the modules they know.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile(dynamic=True)


def micro_batch_size(setting: int, device: torch.device, model: ModelConfig) -> int:
    """train.micro_batch resolved: on a CPU few enough samples that a layer's activations stay in
    its cache.

    16 samples at the paper's sizes, more for smaller models.
    """
    if setting or device.type != "cpu":
        return setting or sys.maxsize
    paper = ModelConfig()
    relative = (
        paper.d_model
        * sum(paper.max_lengths.values())
        / (model.d_model * sum(model.max_lengths.values()))
    )
    return max(1, round(16 * relative))


def step_threads(device: torch.device, *, precision: str, compiled: bool, world: int) -> int:
    """How many threads may compute micro-batches side by side.

    Only where nothing but models/cpu draws random numbers: torch's own dropout has one generator
    for all threads.
    """
    alone = device.type == "cpu" and precision == "fp32" and not compiled and world == 1
    return torch.get_num_threads() if alone else 1


def train_step(
    model: nn.Module,
    batch: Any,
    *,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    autocast: torch.autocast,
    beta_H: Tensor,
    grad_clip: float,
    world: int,
    sums: HeadSums | SentimentSums,
    micro_batch: int = sys.maxsize,
    label_smoothing: float = 0.0,
    threads: int = 1,
) -> Tensor:
    """One optimizer step on this worker's share; returns its part of the global loss (0-d,
    detached).

    With `threads` (see step_threads) each micro-batch is one thread's: operations this small gain
    little from several.
    """
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=batch.labels.device)
    side_by_side = threads > 1 and len(batch.labels) > micro_batch
    if side_by_side:
        micro_batch = min(micro_batch, -(-len(batch.labels) // threads))
    parts = list(batch.split(micro_batch))

    def forward(part: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        with autocast:
            logits = model(part.features, part.masks).logits
        losses_BH = head_losses(logits, part.labels, label_smoothing=label_smoothing)
        return weighted_loss(losses_BH, part.counts, beta_H), logits, losses_BH.detach()

    if side_by_side:
        for part, loss, logits, losses_BH in _side_by_side(model, parts, forward, threads):
            sums.update(logits, part.labels, losses_BH)
            total += loss
    else:
        for i, part in enumerate(parts):
            # DDP exchanges gradients once, with the last part.
            last = i + 1 == len(parts)
            held = (
                nullcontext()
                if last or not isinstance(model, DistributedDataParallel)
                else model.no_sync()
            )
            with held:
                loss, logits, losses_BH = forward(part)
                # DDP averages gradients over the workers: undo the division.
                scaler.scale(loss * world).backward()  # type: ignore[no-untyped-call]
            sums.update(logits, part.labels, losses_BH)
            total += loss.detach()
    if grad_clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scaler.step(optimizer)
    scaler.update()
    return total


def _side_by_side(
    model: nn.Module,
    parts: list[Any],
    forward: Callable[[Any], tuple[Tensor, dict[str, Tensor], Tensor]],
    threads: int,
) -> Iterator[tuple[Any, Tensor, dict[str, Tensor], Tensor]]:
    """(part, loss, logits, losses) of each, computed by threads; gradients are added up in the
    order of the parts, so the result does not depend on who is first."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def work(
        part: Any, seed: int
    ) -> tuple[Tensor, dict[str, Tensor], Tensor, tuple[Tensor | None, ...]]:
        cpu.seed_thread(seed)
        loss, logits, losses_BH = forward(part)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return loss.detach(), {h: x.detach() for h, x in logits.items()}, losses_BH, gradients

    parts = parts[::-1]  # the longest first, so that no thread begins with it when the others end
    seeds = torch.randint(2**62, (len(parts),)).tolist()
    results = cpu.pool(threads).map(work, parts, seeds)
    for part, (loss, logits, losses_BH, gradients) in zip(parts, results, strict=True):
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                p.grad = gradient.clone() if p.grad is None else p.grad.add_(gradient)
        yield part, loss, logits, losses_BH


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: UtteranceTensors,
    *,
    batch_size: int,
    autocast: torch.autocast | None = None,
) -> Mapping[str, Metrics]:
    """Exact global metrics per head: sums over this worker's share, added up over the workers."""
    rank, world = rank_and_world()
    device, sums = data.labels.device, sums_for(data.labels)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    config = getattr(inner, "config", None)
    size = micro_batch_size(0, device, config) if isinstance(config, ModelConfig) else sys.maxsize
    was_training = model.training
    model.eval()
    for batch in data.batches(batch_size, rank=rank, world=world):
        for part in batch.split(size):
            with autocast or torch.autocast(device.type, enabled=False):
                logits = model(part.features, part.masks).logits
            sums.update(logits, part.labels, head_losses(logits, part.labels))
    model.train(was_training)
    return sums.all_reduce().compute()


def check_data(config: ModelConfig, spec: FeatureSpec, *splits: UtteranceTensors) -> None:
    """Raise InputError if the model needs a modality that the store, or an utterance of `splits`,
    does not have.

    For the jobs to call before anything is started; `train` calls it too.
    """
    check_dims(config, spec.dims)
    for data in splits:
        if data.labels.is_floating_point() != (config.task == "sentiment"):
            raise ValueError(
                "the labels are not those of model.task: load the split with the model's config"
            )
        if MODELS[config.name].accepts_absent:
            continue
        for m, length in data.lengths.items():
            absent = (length == 0).nonzero()
            if len(absent):
                raise InputError(
                    f"utterance {data.ids[int(absent[0])]!r}, {FEATURE_COLUMNS[m]}: absent (so in "
                    f"{len(absent)} of {len(data)} utterances), and model.name '{config.name}' "
                    "needs every modality; leave such utterances out, or use one of "
                    f"{accepting_absent()}"
                )


def new_models(
    configs: Sequence[ExperimentConfig],
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
) -> list[EmotionNet]:
    """A model with initial weights per config, all of one architecture. Raises InputError if data
    or recipe do not fit it."""
    model_config, models = configs[0].model, []
    check_data(model_config, spec, train_data, valid_data)
    statistics = train_data.feature_statistics() if model_config.standardize else {}
    for c in (config.train for config in configs):
        if bool((valid_data.labels[:, HEADS.index(c.selection)] == IGNORE_LABEL).all()):
            raise InputError(
                f"train.selection: no validation label of head '{c.selection}' to choose a "
                "checkpoint by"
            )
        torch.manual_seed(c.seed)
        model = build_model(model_config, spec.dims)
        if c.selection not in model.answers:
            raise InputError(
                f"train.selection: {model_config.name} has no head '{c.selection}'; it has "
                + ", ".join(model.answers)
            )
        if not any(c.beta.as_dict()[h] for h in model.answers):
            raise InputError(f"train.beta: every head of {model_config.name} has weight 0")
        if c.modality_dropout and not model.accepts_absent:
            raise InputError(
                f"train.modality_dropout: {model_config.name} needs every modality; set it to 0"
            )
        for m, (mean, scale) in statistics.items():
            model.inputs[m].load_state_dict({"mean": mean, "scale": scale}, strict=False)
        models.append(model)
    return models


def train(
    config: ExperimentConfig,
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    *,
    device: torch.device | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda m: m,
    on_epoch: OnEpoch = lambda report, save: None,
    resume: Path | None = None,
) -> CheckpointMeta:
    """Train until the epochs or the patience run out; returns the final state's meta.

    `wrap` may wrap the model for data parallelism; `resume` is a checkpoint folder of the same
    config. Raises NonFiniteLossError (on every worker alike) when an epoch's loss is not finite,
    before anything of it is saved.
    """
    c = config.train
    (model,) = new_models([config], spec, train_data, valid_data)
    if c.labels == "multimodal":
        train_data = train_data.with_multimodal_labels()
    device = device or torch.device("cpu")
    rank, world = rank_and_world()
    model = model.to(device)
    optimizer = build_optimizer(c, model)
    precision = resolve_precision(c.precision, device)
    scaler = GradScaler(device.type, enabled=precision == "fp16")
    autocast = torch.autocast(
        device.type,
        dtype=torch.float16 if precision == "fp16" else torch.bfloat16,
        enabled=precision != "fp32",
    )
    # The wrapper deep-copies, so it comes after the standardisation; the first update takes the
    # weights as they are.
    averaged = None
    if c.ema_decay:
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(c.ema_decay))  # type: ignore[no-untyped-call]
    kept = model if averaged is None else averaged.module
    beta_H = torch.tensor([c.beta.as_dict()[h] for h in HEADS], device=device)
    meta = CheckpointMeta.start(config, spec)
    if resume is not None:
        meta = dataclasses.replace(load_meta(resume), config=config)
        load_weights(resume, kept)
        state = load_state(resume)
        if averaged is not None:
            averaged.n_averaged.fill_(1)
            model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # a run without a scaler may go on where it needs one
            scaler.load_state_dict(state["scaler"])
    train_data, valid_data = train_data.to(device, c.cache), valid_data.to(device, c.cache)
    parallel = wrap(model)
    compiled = compiles(c.compile, device)
    if compiled:
        compile_layers(model)
    micro_batch = micro_batch_size(c.micro_batch, device, config.model)
    threads = step_threads(device, precision=precision, compiled=compiled, world=world)

    while not meta.over:
        epoch, started = meta.epoch, time.perf_counter()
        lr, steps = learning_rate(c, epoch), -(-len(train_data) // c.batch_size)
        # Dropout depends on (seed, epoch, rank) alone, so a resumed run equals an undisturbed one.
        torch.manual_seed((c.seed * 100_003 + epoch) * 1_009 + rank)
        parallel.train()
        sums = sums_for(train_data.labels)
        bad = torch.zeros((), device=device)
        batches = train_data.batches(
            c.batch_size, rank=rank, world=world, shuffle_seed=(c.seed, epoch)
        )
        for step, batch in enumerate(batches):
            at_step(f"epoch {epoch + 1}, step {step + 1} of {steps}")
            for group in optimizer.param_groups:
                group["lr"] = lr * warmup_factor(c, epoch, step, steps)
            if c.modality_dropout:
                batch = drop_modalities(batch, c.modality_dropout)
            if c.step_dropout:
                batch = drop_steps(batch, c.step_dropout)
            loss = train_step(
                parallel,
                batch,
                optimizer=optimizer,
                scaler=scaler,
                autocast=autocast,
                beta_H=beta_H,
                grad_clip=c.grad_clip,
                world=world,
                sums=sums,
                micro_batch=micro_batch,
                label_smoothing=c.label_smoothing,
                threads=threads,
            )
            if averaged is not None:
                averaged.update_parameters(model)
            bad += ~loss.isfinite()
        if world > 1:
            dist.all_reduce(bad)
        if bad.item():
            raise NonFiniteLossError(
                f"epoch {epoch}: the loss is not finite in {int(bad.item())} steps (lr {lr:g}, "
                f"precision {precision}); "
                "lower train.lr, set train.grad_clip, or use train.precision fp32"
            )
        train_metrics = sums.all_reduce().compute()
        seconds = time.perf_counter() - started
        at_step(f"epoch {epoch + 1}, validation")
        judged = parallel if averaged is None else averaged.module
        valid_metrics = evaluate(
            judged, valid_data, batch_size=max(c.batch_size, 256), autocast=autocast
        )
        score = valid_metrics[c.selection].score
        report = EpochReport(
            epoch=epoch,
            lr=lr,
            train=train_metrics,
            valid=valid_metrics,
            score=score,
            best=is_better(score, meta.best_score),
            seconds=seconds,
            samples_per_second=len(train_data) / seconds,
        )
        meta = meta.after(report.as_dict())

        def save(folder: Path, meta: CheckpointMeta = meta) -> None:
            state = {"optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
            if averaged is not None:
                state["weights"] = model.state_dict()
            save_checkpoint(folder, kept, meta, state)

        on_epoch(report, save)
    return meta
