"""Many small models of one shape trained at once: the weights of K runs stacked, one vmapped step
for all.

Every run keeps its own seed (initial weights, data order, dropout), learning rate and β, and gives
the losses and checkpoints it would give alone: the same numbers up to float rounding without
dropout, the same distribution with it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from lfmim.config import ExperimentConfig, TrainConfig, to_dict
from lfmim.data.batches import UtteranceTensors, epoch_order
from lfmim.metrics import Metrics, sums_for
from lfmim.progress import at_step
from lfmim.schema import HEADS, IGNORE_LABEL, FeatureSpec, InputError
from lfmim.training.checkpoint import CheckpointMeta, is_better, save_checkpoint
from lfmim.training.loop import (
    EpochReport,
    NonFiniteLossError,
    build_optimizer,
    learning_rate,
    new_models,
    resolve_precision,
    warmup_factor,
)
from lfmim.training.losses import head_losses, weighted_loss
from lfmim.training.regularization import drop_modalities, drop_steps

OWN = ("seed", "lr", "beta")
"""What may differ between the runs."""
OnPackedEpoch = Callable[[int, EpochReport, Callable[[Path], None]], None]
"""As loop.OnEpoch, with the run's index first."""


def check_packable(configs: Sequence[ExperimentConfig]) -> None:
    """Raise InputError unless the configs differ in OWN only and use what packing supports."""

    def rest(config: ExperimentConfig) -> Any:
        return to_dict(config.model), {
            k: v for k, v in to_dict(config.train).items() if k not in OWN
        }

    if not configs:
        raise InputError("nothing to pack: no runs")
    if any(rest(c) != rest(configs[0]) for c in configs):
        raise InputError(
            f"packed runs may differ in {', '.join(OWN)} only; train the others separately"
        )
    if configs[0].train.ema_decay:
        raise InputError(
            "train.ema_decay: packed training does not support it; set it to 0 or train separately"
        )


class Packed:
    """K models with stacked weights. `parameters[name]` is [K, *shape] and the leaf that is
    trained."""

    def __init__(self, models: Sequence[nn.Module], device: torch.device) -> None:
        self.models = [m.to(device) for m in models]
        parameters, buffers = stack_module_state(self.models)
        self.parameters: dict[str, Tensor] = {
            k: nn.Parameter(
                p.detach(), requires_grad=dict(models[0].named_parameters())[k].requires_grad
            )
            for k, p in parameters.items()
        }
        self.buffers: dict[str, Tensor] = buffers
        self.base = copy.deepcopy(self.models[0]).to("meta")

    def __call__(
        self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, training: bool
    ) -> dict[str, Tensor]:
        """Inputs [K, B, ...] -> logits [K, B, C] per head."""
        self.base.train(training)

        def one(
            p: dict[str, Tensor],
            b: dict[str, Tensor],
            x: Mapping[str, Tensor],
            m: Mapping[str, Tensor],
        ) -> Any:
            return functional_call(self.base, (p, b), (x, m)).logits

        return torch.vmap(one, randomness="different")(  # type: ignore[no-any-return]
            self.parameters, self.buffers, features, masks
        )

    def unpack(self, k: int) -> nn.Module:
        """Run `k`'s model with its present weights."""
        self.models[k].load_state_dict(
            {n: x[k].detach() for n, x in {**self.parameters, **self.buffers}.items()}, strict=False
        )
        return self.models[k]


class PackedOptimizer:
    """One optimizer over stacked weights with a learning rate per run.

    SGD's and AdamW's steps are linear in the rate, so where the rates differ the step is taken at
    rate 1 and each run moves its share of it.
    """

    def __init__(self, config: TrainConfig, parameters: Sequence[Tensor]) -> None:
        # all, as build_optimizer takes them: the saved state counts them
        self.parameters = list(parameters)
        self.optimizer = build_optimizer(config, nn.ParameterList(self.parameters))

    @torch.no_grad()
    def step(self, rates: Sequence[float]) -> None:
        same = len(set(rates)) == 1
        for group in self.optimizer.param_groups:
            group["lr"] = rates[0] if same else 1.0
        if same:
            self.optimizer.step()
            return
        before = [p.clone() for p in self.parameters]
        self.optimizer.step()
        rate = torch.tensor(rates, device=before[0].device)
        for p, old in zip(self.parameters, before, strict=True):
            p.sub_(old).mul_(rate.view(-1, *[1] * (p.dim() - 1))).add_(old)

    def state_of(self, k: int) -> dict[str, Any]:
        """Run `k`'s part, in the layout the unpacked optimizer loads."""
        whole = self.optimizer.state_dict()
        own = {
            i: {n: x[k].clone() if torch.is_tensor(x) and x.dim() else x for n, x in s.items()}
            for i, s in whole["state"].items()
        }
        return {"state": own, "param_groups": whole["param_groups"]}


def clip_gradients(parameters: Sequence[Tensor], limit: float) -> None:
    """Each run's gradient norm to at most `limit`, as nn.utils.clip_grad_norm_ does for one."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm_K = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    factor_K = (limit / (norm_K + 1e-6)).clamp(max=1.0)
    for g in gradients:
        g.mul_(factor_K.view(-1, *[1] * (g.dim() - 1)))


@torch.no_grad()
def _evaluate(
    packed: Packed, data: UtteranceTensors, batch_size: int, autocast: torch.autocast
) -> list[Mapping[str, Metrics]]:
    runs = len(packed.models)
    sums = [sums_for(data.labels) for _ in range(runs)]
    for batch in data.batches(batch_size):
        with autocast:
            logits = packed(
                {m: x.expand(runs, *x.shape) for m, x in batch.features.items()},
                {m: x.expand(runs, *x.shape) for m, x in batch.masks.items()},
                training=False,
            )
        for k in range(runs):
            own = {h: x[k] for h, x in logits.items()}
            sums[k].update(own, batch.labels, head_losses(own, batch.labels))
    return [s.compute() for s in sums]


def train_packed(
    configs: Sequence[ExperimentConfig],
    spec: FeatureSpec,
    train_data: UtteranceTensors,
    valid_data: UtteranceTensors,
    *,
    device: torch.device | None = None,
    on_epoch: OnPackedEpoch = lambda run, report, save: None,
) -> list[CheckpointMeta]:
    """Train all `configs` at once; returns each run's final meta, as loop.train would.

    The configs may differ in seed, lr and β. A saved checkpoint is an ordinary one, which
    loop.train continues. A run whose patience is over trains on unreported until all are done.
    Raises InputError for runs that do not fit together, and NonFiniteLossError naming the run.
    """
    check_packable(configs)
    c, runs, device = configs[0].train, len(configs), device or torch.device("cpu")
    packed = Packed(new_models(configs, spec, train_data, valid_data), device)
    if c.labels == "multimodal":
        train_data = train_data.with_multimodal_labels()
    optimizer = PackedOptimizer(c, list(packed.parameters.values()))
    precision = resolve_precision(c.precision, device)
    if precision == "fp16":
        raise InputError("train.precision: packed training has no loss scaling; use bf16 or fp32")
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
    beta = [
        torch.tensor([x.train.beta.as_dict()[h] for h in HEADS], device=device) for x in configs
    ]
    train_data, valid_data = train_data.to(device, c.cache), valid_data.to(device, c.cache)
    metas = [CheckpointMeta.start(config, spec) for config in configs]

    for epoch in range(c.epochs):
        if all(meta.over for meta in metas):
            break
        started = time.perf_counter()
        torch.manual_seed(c.seed * 100_003 + epoch)
        rates = [learning_rate(x.train, epoch) for x in configs]
        sums, bad = [sums_for(train_data.labels) for _ in configs], torch.zeros(runs, device=device)
        orders = torch.stack([epoch_order(len(train_data), (x.train.seed, epoch)) for x in configs])
        steps = -(-len(train_data) // c.batch_size)
        for step, index_KB in enumerate(orders.split(c.batch_size, dim=1)):  # type: ignore[no-untyped-call]
            at_step(f"epoch {epoch + 1}, step {step + 1} of {steps}")
            size = index_KB.shape[1]
            ones = torch.ones(runs * size, device=device)
            batch = train_data.gather(index_KB.flatten(), ones, ones[: len(HEADS)])
            if c.modality_dropout:
                batch = drop_modalities(batch, c.modality_dropout)
            if c.step_dropout:
                batch = drop_steps(batch, c.step_dropout)
            labels_KBH = batch.labels.view(runs, size, -1)
            with autocast:
                logits = packed(
                    {m: x.view(runs, size, *x.shape[1:]) for m, x in batch.features.items()},
                    {m: x.view(runs, size, -1) for m, x in batch.masks.items()},
                    training=True,
                )
            losses = []
            for k in range(runs):
                own = {h: x[k] for h, x in logits.items()}
                losses_BH = head_losses(own, labels_KBH[k], label_smoothing=c.label_smoothing)
                # Labels before any were dropped, as the loop counts them.
                counts = (
                    (train_data.labels[index_KB[k].to(device)] != IGNORE_LABEL).sum(dim=0).float()
                )
                losses.append(weighted_loss(losses_BH, counts, beta[k]))
                sums[k].update(own, labels_KBH[k], losses_BH.detach())
            for p in packed.parameters.values():
                p.grad = None
            loss_K = torch.stack(losses)
            loss_K.sum().backward()  # type: ignore[no-untyped-call]
            if c.grad_clip:
                clip_gradients(optimizer.parameters, c.grad_clip)
            factor = warmup_factor(c, epoch, step, steps)
            optimizer.step([rate * factor for rate in rates])
            bad += ~loss_K.detach().isfinite()
        if bool(bad.any()):
            k = int(bad.argmax())
            raise NonFiniteLossError(
                f"epoch {epoch}, seed {configs[k].train.seed}, lr {configs[k].train.lr:g}: the "
                "loss is not finite; lower train.lr or set train.grad_clip"
            )
        trained = [s.compute() for s in sums]
        seconds = time.perf_counter() - started
        valid = _evaluate(packed, valid_data, max(c.batch_size, 256), autocast)
        for k, meta in enumerate(metas):
            if meta.over:
                continue
            score = valid[k][c.selection].score
            report = EpochReport(
                epoch=epoch,
                lr=rates[k],
                train=trained[k],
                valid=valid[k],
                score=score,
                best=is_better(score, meta.best_score),
                seconds=seconds / runs,
                samples_per_second=runs * len(train_data) / seconds,
            )
            metas[k] = meta.after(report.as_dict())

            def save(folder: Path, k: int = k, meta: CheckpointMeta = metas[k]) -> None:
                state = {"optimizer": optimizer.state_of(k), "scaler": {}}
                save_checkpoint(folder, packed.unpack(k), meta, state)

            on_epoch(k, report, save)
    return metas
