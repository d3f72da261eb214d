"""The training loop: single-device code that also runs under torch.distributed when a process group
exists."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrainConfig
from lfmim.data.batches import UtteranceTensors
from lfmim.metrics import Metrics
from lfmim.models import MODELS, EmotionNet, build_model, check_dims
from lfmim.models.base import Batches, accepting_absent
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
from lfmim.training.passes import Passes, evaluate
from lfmim.training.pause import Part, PauseClock, part_of_epoch, take_up
from lfmim.training.prepare import prepare
from lfmim.training.step import rank_and_world, resolve_precision, set_learning_rate
from lfmim.training.variant import Variant, choose

FIT_BATCH = 256
"""Samples at a time of what a model itself goes through."""


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


Save = Callable[[Path], None]
"""Saves a checkpoint into a folder."""
OnEpoch = Callable[[EpochReport, Save], None]
"""Called on every worker after every epoch with the report and what saves it."""
OnPause = Callable[[Save], None]
"""Called on every worker within a long epoch (`run.checkpoint_minutes`) with what saves what is
done of it."""


def worker_device(run: RunConfig) -> torch.device:
    """The device that a run without Ray Train's workers gets in this process, its threads set."""
    device = torch.device("cuda" if run.gpus_per_worker and torch.cuda.is_available() else "cpu")
    # cpus_per_worker may be half a CPU, as trials share them.
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(run.cpus_per_worker)))
    return device


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
    if not config.warmup_epochs:
        return 1.0
    return min(1.0, (epoch + (step + 1) / steps) / config.warmup_epochs)


def check_data(config: ModelConfig, spec: FeatureSpec, *splits: UtteranceTensors) -> None:
    """Raise InputError if the model needs a modality that the store, or an utterance of `splits`,
    does not have.

    For the jobs to call before anything is started; `train` calls it too.
    """
    check_dims(config, spec.dims)

    for data in splits:
        # A ValueError: no file that a user gave is wrong, but the code that loaded it.
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


def new_model(
    config: ExperimentConfig,
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    init: Path | None = None,
) -> EmotionNet:
    """The model with its initial weights: at random, or those of the checkpoint `init`. Raises
    InputError if data or recipe do not fit it."""
    c, name = config.train, config.model.name
    check_data(config.model, spec, train_data, valid_data)
    if bool((valid_data.labels[:, HEADS.index(c.selection)] == IGNORE_LABEL).all()):
        raise InputError(
            f"train.selection: no validation label of head '{c.selection}' to choose a checkpoint "
            "by"
        )

    # Right before the weights are drawn: what was drawn while data was loaded does not matter.
    torch.manual_seed(c.seed)
    model = build_model(config.model, spec.dims, len(train_data.label_spec.classes))
    if c.selection not in model.answers:
        raise InputError(
            f"train.selection: {name} has no head '{c.selection}'; it has "
            + ", ".join(model.answers)
        )
    if not any(c.beta.as_dict()[h] for h in model.answers):
        raise InputError(f"train.beta: every head of {name} has weight 0")
    if config.model.task == "sentiment" and (c.loss, c.class_weights) != ("cross_entropy", "none"):
        field = "loss" if c.loss != "cross_entropy" else "class_weights"
        raise InputError(
            f"train.{field}: {getattr(c, field)} is of classes, and sentiment scores have none; "
            "leave it out"
        )
    if c.modality_dropout and not model.accepts_absent:
        raise InputError(f"train.modality_dropout: {name} needs every modality; set it to 0")

    # With the weights come the statistics that they were trained on: other ones would change what
    # they answer.
    if init is not None:
        load_weights(init, model)
    # From the training split alone, as validation must not reach the model. Only the buffers are
    # loaded, hence not strict.
    elif config.model.standardize:
        for m, (mean, scale) in train_data.feature_statistics().items():
            model.inputs[m].load_state_dict({"mean": mean, "scale": scale}, strict=False)
    return model


def no_room(device: torch.device) -> str:
    """What a GPU without memory left says to its user."""
    free, total = (x / 2**30 for x in torch.cuda.mem_get_info(device))
    mine = torch.cuda.memory_reserved(device) / 2**30
    return (
        f"{device}: no memory left. Of {total:.1f} GiB this run has {mine:.1f} and other processes "
        f"{max(total - free - mine, 0):.1f}; use a smaller train.batch_size or train.cache host, "
        "or wait until the others have ended"
    )


def train(
    config: ExperimentConfig,
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    *,
    device: torch.device | None = None,
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model,
    on_epoch: OnEpoch = lambda report, save: None,
    on_pause: OnPause = lambda save: None,
    resume: Path | None = None,
    init: Path | None = None,
    variant: Variant | None = None,
    hold: bool = False,
) -> CheckpointMeta:
    """Train until the epochs or the patience run out; returns the final state's meta.

    `wrap` may wrap the model for data parallelism; `resume` is a checkpoint folder of the same
    model, saved after an epoch or within one; `init` one at whose weights to begin, where there is
    nothing to resume. `variant`: how steps are computed; None: as the resumed run did, else as
    `train.compile` says. `hold`: captured steps stay in this process, for the next run on the same
    data objects with another seed, rate or number of epochs.

    Raises InputError if data or recipe do not fit the model, or the model the device's memory, and
    NonFiniteLossError (on every worker alike) when an epoch's loss is not finite, before anything
    of it is saved.
    """
    c, device = config.train, device or torch.device("cpu")
    begin = init if resume is None else None
    model = new_model(config, spec, train_data, valid_data, begin)
    if model.fitted:
        return _fit(model.to(device), config, spec, train_data, valid_data, on_epoch, resume)

    labels = train_data.label_spec
    meta, state = CheckpointMeta.start(config, spec, labels), None
    if resume is not None:
        # The config of now: more epochs, another precision or patience may be asked for
        # (docs/faults.md).
        before, state = load_meta(resume), load_state(resume)
        meta = dataclasses.replace(before, config=config, labels=labels, temperature={}, later=None)
    if variant is None:
        variant = choose(
            c,
            config.model,
            device,
            samples=len(train_data),
            precision=resolve_precision(c.precision, device),
            world=rank_and_world()[1],
            before=meta.variant,
        )
    meta = dataclasses.replace(meta, variant=variant)

    try:
        passes = prepare(
            config,
            model,
            train_data,
            valid_data,
            device=device,
            wrap=wrap,
            variant=variant,
            begun=None if resume is None or state is None else (resume, state),
            hold=hold,
        )
    except torch.OutOfMemoryError as error:
        raise InputError(f"train: {no_room(device)}") from error
    except RuntimeError as error:
        if not variant.captured:
            raise
        # Nothing is trained yet, so the run begins anew.
        reason = str(error).strip().splitlines()[0]
        print(
            f"note: {config.model.name}: its step cannot be captured as a CUDA graph ({reason}); "
            "it is computed kernel by kernel",
            file=sys.stderr,
        )
        return train(
            config,
            spec,
            train_data,
            valid_data,
            device=device,
            wrap=wrap,
            on_epoch=on_epoch,
            on_pause=on_pause,
            resume=resume,
            init=init,
            variant=Variant.EAGER,
        )

    def save(folder: Path, meta: CheckpointMeta, part: Part | None = None) -> None:
        step = passes.step
        state = {"optimizer": step.optimizer.state_dict(), "scaler": step.scaler.state_dict()}
        if passes.averaged is not None:
            state["weights"] = passes.model.state_dict()
        if part is not None:
            state["part"] = part
        save_checkpoint(folder, passes.kept, meta, state)

    def pause(part: Part, meta: CheckpointMeta) -> None:
        on_pause(functools.partial(save, meta=meta, part=part))

    part, seconds = state.get("part") if state else None, config.run.checkpoint_minutes * 60
    # Such labels are made by the weights of the epoch's beginning, which are gone within it.
    seconds = 0.0 if model.makes_labels else seconds
    data = passes.train_data
    while not meta.over:
        if model.makes_labels:
            # Compiled code is of the steps' shapes.
            with torch.compiler.set_stance("force_eager"):
                made = passes.model.make_labels(functools.partial(_batches, data), meta.epoch)
            data = dataclasses.replace(data, labels=made)
        within = _Within(part, seconds, functools.partial(pause, meta=meta))
        try:
            report = _epoch(c, passes, data, meta, within)
        except torch.OutOfMemoryError as error:
            raise InputError(f"train: {no_room(device)}") from error
        part = None
        meta = meta.after(report.as_dict())
        # partial binds this epoch's meta; a closure would read the loop's variable once called.
        on_epoch(report, functools.partial(save, meta=meta))
    return meta


def _batches(data: UtteranceTensors) -> Batches:
    return ((b.features, b.masks, b.labels) for b in data.batches(FIT_BATCH))


def _fit(
    model: EmotionNet,
    config: ExperimentConfig,
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    on_epoch: OnEpoch,
    resume: Path | None,
) -> CheckpointMeta:
    """`train` of a model that is fitted at once: a run of one epoch."""
    if resume is not None:
        return dataclasses.replace(load_meta(resume), config=config)
    if config.train.labels == "multimodal":
        train_data = train_data.with_multimodal_labels()

    device, size = next(model.parameters()).device, FIT_BATCH
    splits = [data.to(device, config.train.cache) for data in (train_data, valid_data)]

    started = time.perf_counter()
    # Every worker fits on the whole: the same numbers, and no weights to send around.
    speakers = train_data.speakers or [""] * len(train_data)
    train_batches, valid_batches = (functools.partial(_batches, data) for data in splits)
    model.fit(train_batches, valid_batches, speakers)
    seconds = time.perf_counter() - started

    metrics = [evaluate(model, data, batch_size=size) for data in splits]
    score = metrics[1][config.train.selection].score
    report = EpochReport(
        epoch=0,
        lr=0.0,
        train=metrics[0],
        valid=metrics[1],
        score=score,
        best=is_better(score, -math.inf),
        seconds=seconds,
        samples_per_second=len(train_data) / seconds,
    )
    meta = CheckpointMeta.start(config, spec, train_data.label_spec).after(report.as_dict())
    state: dict[str, Any] = {"optimizer": {}, "scaler": {}}
    on_epoch(report, lambda folder: save_checkpoint(folder, model, meta, state))
    return meta


@dataclasses.dataclass(frozen=True)
class _Within:
    """How a long epoch is saved before its end."""

    part: Part | None
    """What is done of it already."""
    seconds: float
    """Between two checkpoints; 0: none."""
    pause: Callable[[Part], None]
    """Saves one."""


def _epoch(
    c: TrainConfig,
    passes: Passes,
    data: UtteranceTensors,
    meta: CheckpointMeta,
    within: _Within,
) -> EpochReport:
    """The epoch that comes after `meta`, trained on `data` and validated. Raises
    NonFiniteLossError."""
    epoch = meta.epoch
    train_metrics, seconds = _train_epoch(c, passes, data, epoch, within)

    # What is named if nothing moves for run.stuck_minutes.
    at_step(f"epoch {epoch + 1}, validation")
    valid_metrics = passes.validate()
    score = valid_metrics[c.selection].score

    return EpochReport(
        epoch=epoch,
        lr=learning_rate(c, epoch),
        train=train_metrics,
        valid=valid_metrics,
        score=score,
        best=is_better(score, meta.best_score),
        seconds=seconds,
        samples_per_second=len(data) / seconds,
    )


def _train_epoch(
    c: TrainConfig, passes: Passes, data: UtteranceTensors, epoch: int, within: _Within
) -> tuple[Mapping[str, Metrics], float]:
    """One pass over this worker's share, or the rest of it; the metrics of all workers and the
    seconds it took. Raises NonFiniteLossError."""
    started = time.perf_counter()
    lr, steps = learning_rate(c, epoch), -(-len(data) // c.batch_size)

    # Dropout depends on (seed, epoch, rank) alone, so a resumed run equals an undisturbed one.
    torch.manual_seed((c.seed * 100_003 + epoch) * 1_009 + rank_and_world()[0])

    begin, before = 0, 0.0
    passes.start_epoch()
    if within.part is not None:
        begin, before = within.part["step"], within.part["seconds"]
        take_up(within.part, passes.sums, passes.bad)
    clock = PauseClock(within.seconds, data.labels.device, begin)

    for number, take in passes.steps(data, epoch, begin):
        at_step(f"epoch {epoch + 1}, step {number + 1} of {steps}")
        set_learning_rate(passes.step.optimizer, lr * warmup_factor(c, epoch, number, steps))
        take()
        if passes.averaged is not None:
            passes.averaged.begin(passes.step.model)

        # After the last step the epoch itself is saved.
        if number + 1 < steps and clock.due(number + 1):
            _check_finite(passes.bad, c, epoch)
            done = before + time.perf_counter() - started
            within.pause(part_of_epoch(number + 1, done, passes.sums, passes.bad))

    _check_finite(passes.bad, c, epoch)
    metrics = passes.sums.all_reduce().compute()
    return metrics, before + time.perf_counter() - started


def _check_finite(bad: Tensor, c: TrainConfig, epoch: int) -> None:
    """Raise NonFiniteLossError if any worker has counted a loss in `bad`."""
    # Every worker raises, or none: one that went on would wait for the others in a collective.
    steps = bad.clone()
    if rank_and_world()[1] > 1:
        dist.all_reduce(steps)
    if steps.item():
        precision = resolve_precision(c.precision, bad.device)
        raise NonFiniteLossError(
            f"epoch {epoch}: the loss is not finite in {int(steps.item())} steps (lr "
            f"{learning_rate(c, epoch):g}, precision {precision}); "
            "lower train.lr, set train.grad_clip, or use train.precision fp32"
        )
