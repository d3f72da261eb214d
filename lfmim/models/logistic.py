"""The simple baseline: regression on pooled features, fitted by scikit-learn.

Each uni-modal head reads the mean over time of its modality, the multimodal head all means side by
side. What a neural system has to beat: on small corpora it often does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import Batches, EmotionNet, ModelOutput, register_model
from lfmim.models.layers import init_weights, mean_over_time
from lfmim.schema import HEADS, IGNORE_LABEL, MODALITIES, MULTIMODAL, Modality

STRENGTHS = tuple(10.0**k for k in range(-4, 3))
"""Inverse regularisation C tried per head, the strongest first; validation chooses."""
NEVER = -30.0
"""Logit of a class that no training label names: a probability of 1e-13."""
Array = npt.NDArray[np.float64]


class MeanOverTime(nn.Module):
    """Masked mean of a sequence, standardised by the training split's; 0 where it is absent."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, x_BTF: Tensor, mask_BT: Tensor) -> Tensor:
        z_BF = (mean_over_time(x_BTF, mask_BT) - self.mean) * self.scale
        return z_BF.masked_fill(~mask_BT.any(dim=1, keepdim=True), 0)


@register_model("logistic")
class Logistic(EmotionNet):
    """Softmax regression per head on standardised means over time (sentiment: ridge regression).

    Of the config it reads `task` alone. No epoch of gradient steps: `fit` gives the weights.
    """

    accepts_absent = True
    fitted = True

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        self.modalities = tuple(m for m in MODALITIES if m in dims)
        self.answers = (*(m.value for m in self.modalities), MULTIMODAL)

        self.inputs = nn.ModuleDict({m: MeanOverTime(int(dims[m])) for m in self.modalities})
        widths = {m.value: int(dims[m]) for m in self.modalities}
        widths[MULTIMODAL] = sum(widths.values())
        self.heads = nn.ModuleDict({h: nn.Linear(n, config.outputs) for h, n in widths.items()})
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m.value: self.inputs[m](features[m], masks[m]) for m in self.modalities}
        z[MULTIMODAL] = torch.cat([z[m] for m in self.modalities], dim=1)
        return ModelOutput({h: self.heads[h](x) for h, x in z.items()}, z)

    @torch.no_grad()
    def fit(
        self,
        train: Callable[[], Batches],
        valid: Callable[[], Batches],
        speakers: Sequence[str],
    ) -> None:
        """Weights from the training split; C per head by its score on validation. A head without
        labels keeps a weight of 0."""
        self.standardize(train)
        (x, y, _), (x_valid, y_valid, _) = self.pooled(train()), self.pooled(valid())
        for head in self.answers:
            i = HEADS.index(head)
            self.fit_head(head, x[head], y[:, i], x_valid[head], y_valid[:, i])

    def standardize(self, train: Callable[[], Batches]) -> None:
        """Each modality's mean and deviation over the rows that have it; a feature that never
        changes says nothing."""
        plain, _, present = self.pooled(train())
        for m in self.modalities:
            there = plain[m][present[m]]
            if len(there):
                deviation = there.std(axis=0)
                scale = np.divide(1.0, deviation, where=deviation > 1e-8, out=0.0 * deviation)
                _set(self.inputs[m], "mean", there.mean(axis=0))
                _set(self.inputs[m], "scale", scale)

    def pooled(
        self, batches: Batches
    ) -> tuple[dict[str, Array], npt.NDArray[Any], dict[str, npt.NDArray[np.bool_]]]:
        """What the heads read [N, D], labels [N, heads], and which rows have a modality [N]."""
        read: dict[str, list[Tensor]] = {h: [] for h in self.answers}
        there: dict[str, list[Tensor]] = {m.value: [] for m in self.modalities}
        labels = []
        for features, masks, label_BH in batches:
            for h, z in self(features, masks).pooled.items():
                read[h].append(z.cpu())
            for m, kept in there.items():
                kept.append(masks[m].any(dim=1).cpu())
            labels.append(label_BH.cpu())

        return (
            {h: torch.cat(z).double().numpy() for h, z in read.items()},
            torch.cat(labels).numpy(),
            {m: torch.cat(kept).numpy() for m, kept in there.items()},
        )

    def fit_head(
        self,
        head: str,
        x: Array,
        y: npt.NDArray[Any],
        x_valid: Array,
        y_valid: npt.NDArray[Any],
    ) -> float:
        """Give the head the weights of the C that scores best on validation; returns it. Of equally
        good ones the strongest regularisation. Rows without a label are left out."""
        known, asked = y != IGNORE_LABEL, y_valid != IGNORE_LABEL
        x, y, x_valid, y_valid = x[known], y[known], x_valid[asked], y_valid[asked]
        outputs, width = self.config.outputs, x.shape[1]
        weight, bias = np.zeros((outputs, width)), np.zeros(outputs)
        best, best_score = STRENGTHS[0], -np.inf

        for strength in STRENGTHS if len(y) else ():
            found = self.regression(x, y, strength)
            answer = x_valid @ found[0].T + found[1]
            if self.config.task == "emotion":
                right = answer.argmax(axis=1) == y_valid
            else:
                right = -np.abs(answer[:, 0] - y_valid)
            # Without a validation label there is nothing to choose by: the first stays.
            score = float(right.mean()) if len(right) else 0.0
            if score > best_score:
                (weight, bias), best, best_score = found, strength, score

        _set(self.heads[head], "weight", weight)
        _set(self.heads[head], "bias", bias)
        return best

    def regression(self, x: Array, y: npt.NDArray[Any], strength: float) -> tuple[Array, Array]:
        """Weight [outputs, D] and bias [outputs] of labelled rows with C = `strength`."""
        if self.config.task == "sentiment":
            return _ridge(x, y, strength)
        return _softmax(x, y, strength, self.config.outputs)


def _softmax(x: Array, y: npt.NDArray[Any], strength: float, outputs: int) -> tuple[Array, Array]:
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, NEVER)
    classes = np.unique(y).astype(int)
    # scikit-learn refuses a single class, which needs no weights.
    if len(classes) == 1:
        bias[classes] = 0.0
        return weight, bias

    model = LogisticRegression(C=strength, max_iter=2000).fit(x, y)
    # Of two classes it keeps one row, the second's log-odds.
    rows, biases = model.coef_, model.intercept_
    if len(classes) == 2:
        rows = np.concatenate([np.zeros_like(rows), rows])
        biases = np.concatenate([np.zeros_like(biases), biases])
    weight[classes], bias[classes] = rows, biases
    return weight, bias


def _ridge(x: Array, y: npt.NDArray[Any], strength: float) -> tuple[Array, Array]:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1 / strength).fit(x, y)
    return model.coef_[None], np.array([model.intercept_])


@torch.no_grad()
def _set(module: nn.Module, name: str, values: Array) -> None:
    getattr(module, name).copy_(torch.from_numpy(values))
