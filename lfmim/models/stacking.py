"""The second baseline: what each modality says by itself, weighed by a regression (Wolpert 1992).

A logistic regression per modality on its own labels, and one of the multimodal label on their
probabilities. LFMIM's idea without a network: own labels, independent streams, fusion on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import Batches, ModelOutput, register_model
from lfmim.models.layers import init_weights
from lfmim.models.logistic import Array, Logistic
from lfmim.schema import HEADS, IGNORE_LABEL, MULTIMODAL, Modality

FOLDS = 5


@register_model("stacking")
class Stacking(Logistic):
    """Uni-modal heads as `logistic`; the multimodal one reads their probabilities (sentiment: their
    scores).

    The training split's are out of fold by speaker, as a regression is too sure of what it was
    fitted on. A modality without labels of its own is fitted on the multimodal ones. An absent
    modality's answer is that of its mean.
    """

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims)
        self.heads[MULTIMODAL] = nn.Linear(len(self.modalities) * config.outputs, config.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m.value: self.inputs[m](features[m], masks[m]) for m in self.modalities}
        logits = {m: self.heads[m](x) for m, x in z.items()}
        classes = self.config.task == "emotion"
        answers = [x.softmax(dim=1) if classes else x for x in logits.values()]
        z[MULTIMODAL] = torch.cat(answers, dim=1)
        return ModelOutput({**logits, MULTIMODAL: self.heads[MULTIMODAL](z[MULTIMODAL])}, z)

    @torch.no_grad()
    def fit(
        self,
        train: Callable[[], Batches],
        valid: Callable[[], Batches],
        speakers: Sequence[str],
    ) -> None:
        self.standardize(train)
        (x, y, _), (x_valid, y_valid, _) = self.pooled(train()), self.pooled(valid())
        joint = HEADS.index(MULTIMODAL)

        held_out: dict[str, Array] = {}
        for m in self.modalities:
            own = HEADS.index(m)
            i = own if (y[:, own] != IGNORE_LABEL).any() else joint
            strength = self.fit_head(m, x[m], y[:, i], x_valid[m], y_valid[:, i])
            held_out[m] = self._held_out(m, x[m], y[:, i], strength, speakers)

        # What the heads answer where they were not fitted, on validation as it is.
        whole = self.pooled(valid())[0][MULTIMODAL]
        read = np.concatenate([held_out[m] for m in self.modalities], axis=1)
        self.fit_head(MULTIMODAL, read, y[:, joint], whole, y_valid[:, joint])

    def _held_out(
        self,
        head: str,
        x: Array,
        y: npt.NDArray[Any],
        strength: float,
        speakers: Sequence[str],
    ) -> Array:
        """[N, outputs] the head's answers to the training split, each labelled row's by a
        regression that was fitted on other speakers; rows without a label by the head itself."""
        answers = self._answers(x @ self._weight(head).T + self._bias(head))
        known = np.flatnonzero(y != IGNORE_LABEL)
        for fitted, held in _folds(np.asarray(speakers)[known]):
            rows, asked = known[fitted], known[held]
            weight, bias = self.regression(x[rows], y[rows], strength)
            answers[asked] = self._answers(x[asked] @ weight.T + bias)
        return answers

    def _weight(self, head: str) -> Array:
        return self.heads[head].weight.detach().double().cpu().numpy()  # type: ignore[operator]

    def _bias(self, head: str) -> Array:
        return self.heads[head].bias.detach().double().cpu().numpy()  # type: ignore[operator]

    def _answers(self, logits: Array) -> Array:
        from scipy.special import softmax

        return np.asarray(softmax(logits, axis=1)) if self.config.task == "emotion" else logits


def _folds(speakers: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Rows to fit on and rows to ask, FOLDS times: whole speakers where all are known and there are
    two, else single rows; nothing where there is one row."""
    from sklearn.model_selection import GroupKFold, KFold

    known = len(set(speakers)) > 1 and "" not in speakers
    count = min(FOLDS, len(set(speakers)) if known else len(speakers))
    if count < 2:
        return
    kind = GroupKFold(count) if known else KFold(count, shuffle=True, random_state=0)
    yield from kind.split(speakers, groups=speakers if known else None)
