"""Temperature scaling (Guo et al. 2017): one number per head by which its logits are divided, so
that its probabilities are as often right as they say."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lfmim.data.batches import UtteranceTensors
from lfmim.models import EmotionNet
from lfmim.schema import HEADS, IGNORE_LABEL
from lfmim.training.checkpoint import load_meta, load_model, write_meta

BATCH = 256
BOUNDS = (0.05, 20.0)
"""Of a temperature. A head that is always right on a small split would want 0, and then claim to be
certain."""


def calibrate(checkpoint: Path, load_valid: Callable[[], UtteranceTensors]) -> None:
    """Fit the checkpoint's temperatures on the validation split and store them in it; nothing to
    do, and nothing loaded, for sentiment scores and where it has them. Raises WriteError."""
    meta = load_meta(checkpoint)
    if meta.config.model.task == "emotion" and not meta.temperature:
        model, _ = load_model(checkpoint)
        fitted = fit_temperatures(model, load_valid())
        write_meta(checkpoint, dataclasses.replace(meta, temperature=fitted))


@torch.inference_mode()
def fit_temperatures(model: EmotionNet, data: UtteranceTensors) -> dict[str, float]:
    """Head -> temperature of the lowest negative log-likelihood; heads without labels in `data` are
    left out."""
    logits: dict[str, list[Tensor]] = {h: [] for h in model.answers}
    labels = []
    for batch in data.batches(BATCH):
        for h, x in model(batch.features, batch.masks).logits.items():
            logits[h].append(x.double().cpu())
        labels.append(batch.labels.cpu())
    labels_NH = torch.cat(labels)

    fitted = {}
    for i, h in enumerate(HEADS):
        known = labels_NH[:, i] != IGNORE_LABEL
        if h in logits and bool(known.any()):
            fitted[h] = _temperature(torch.cat(logits[h])[known], labels_NH[known, i])
    return fitted


def _temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    # Only who trains waits for its import; a registered model runs where there is none.
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        scaled = logits_NC / math.exp(log_t)
        return float(torch.nn.functional.cross_entropy(scaled, labels_N))

    found = minimize_scalar(loss, bounds=tuple(map(math.log, BOUNDS)), method="bounded")
    return math.exp(float(found.x))
