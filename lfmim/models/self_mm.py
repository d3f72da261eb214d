"""Self-MM: uni-modal labels made from the multimodal ones (Yu et al. 2021, "Learning
Modality-Specific Representations with Self-Supervised Multi-Task Learning for Multimodal Sentiment
Analysis").

The rival of LFMIM's own labels: it never reads them. A modality's label is the multimodal one,
moved by how much nearer to a class the modality's vector lies than the fused one does.

Adapted: the encoder classes of multitask.py, its DNN for text, LSTMs for sound and sight. Labels
are made once an epoch, for all samples from the weights as they are; theirs come batch by batch,
smoothed over the epochs, and a sample's uni-modal loss is weighted by how far its label was moved.
The rule for classes is ours (`moved_class`): theirs is of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import Batches, EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Dropout, init_weights, input_projections
from lfmim.models.multitask import DNNEncoder, LSTMEncoder
from lfmim.schema import HEADS, IGNORE_LABEL, MODALITIES, MULTIMODAL, Modality

EPSILON = 1e-6


def nearness(x_ND: Tensor, group_N: Tensor, groups: int) -> Tensor:
    """[N, groups] α: how much nearer to the centre of a group than to the nearest other one,
    (D_other - D) / (D + ε), D being the distance over √d; for two groups their relative distance.
    NaN for a group without samples, infinite where it is the only one. `group_N`: int64, negative
    where unknown."""
    distance = torch.full((len(x_ND), groups), torch.inf, device=x_ND.device)
    for k in range(groups):
        members = x_ND[group_N == k]
        if len(members):
            distance[:, k] = (x_ND - members.mean(dim=0)).norm(dim=1) / x_ND.shape[1] ** 0.5

    others = torch.stack(
        [
            torch.cat([distance[:, :k], distance[:, k + 1 :]], dim=1).amin(dim=1)
            for k in range(groups)
        ],
        dim=1,
    )
    return (others - distance) / (distance + EPSILON)


def moved_score(y_N: Tensor, alpha_s: Tensor, alpha_m: Tensor) -> Tensor:
    """y_s = y_m + (α_s - α_m) / 2 · (y_m + α_m) / α_m, their equation, in [-1, 1]; α [N] of the
    positive group."""
    moved = y_N + (alpha_s - alpha_m) / 2 * (y_N + alpha_m) / alpha_m
    # Not finite where a group has no sample, or the fused vector lies right in the middle.
    return torch.where(moved.isfinite(), moved, y_N).clamp(-1, 1)


def moved_class(y_N: Tensor, alpha_s: Tensor, alpha_m: Tensor) -> Tensor:
    """The class k of the largest [k = y_m] + α_s^k - α_m^k; α [N, classes]. Their difference rule,
    class by class; a quotient would never leave a class whose label is 0."""
    # Unlabelled rows, whose answer is dropped, take any class.
    label = nn.functional.one_hot(y_N.clamp(min=0), alpha_s.shape[1])
    nearer = (alpha_s - alpha_m).nan_to_num(0.0, 0.0, 0.0)
    return (label + nearer).masked_fill(alpha_s.isnan(), -torch.inf).argmax(dim=1)


@register_model("self-mm")
class SelfMM(EmotionNet):
    """Answers all four heads."""

    answers = HEADS
    accepts_absent = False
    makes_labels = True

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.inputs = input_projections(config, dims)
        # Theirs has BERT's first state for text, an LSTM for sound and sight.
        encoders = {m: DNNEncoder if m is Modality.TEXT else LSTMEncoder for m in MODALITIES}
        self.encoders = nn.ModuleDict({m: encoders[m](config) for m in MODALITIES})
        widths = {m.value: d for m in MODALITIES} | {MULTIMODAL: len(MODALITIES) * d}
        self.projections = nn.ModuleDict(
            {
                h: nn.Sequential(Dropout(config.dropout_ffn), nn.Linear(n, d), nn.ReLU())
                for h, n in widths.items()
            }
        )
        self.heads = nn.ModuleDict({h: nn.Linear(d, config.outputs) for h in HEADS})
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        f = {m.value: self.encoders[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        f[MULTIMODAL] = torch.cat([f[m] for m in MODALITIES], dim=1)
        pooled = {h: self.projections[h](x) for h, x in f.items()}
        return ModelOutput({h: self.heads[h](x) for h, x in pooled.items()}, pooled)

    @torch.no_grad()
    def make_labels(self, train: Callable[[], Batches], epoch: int) -> Tensor:
        pooled: dict[str, list[Tensor]] = {h: [] for h in HEADS}
        labels = []
        training = self.training
        self.eval()
        for features, masks, label_BH in train():
            for h, x in self(features, masks).pooled.items():
                pooled[h].append(x.float())
            labels.append(label_BH)
        self.train(training)

        made = torch.cat(labels).clone()
        y_N = made[:, HEADS.index(MULTIMODAL)]
        known = y_N != IGNORE_LABEL
        scores = made.is_floating_point()
        # Two groups, of negative and positive scores; 0 is in neither.
        signs = torch.where(known & (y_N != 0), (y_N > 0).long(), IGNORE_LABEL)
        group = signs if scores else y_N
        groups = 2 if scores else self.config.outputs
        alpha = {h: nearness(torch.cat(x), group, groups) for h, x in pooled.items()}

        for m in MODALITIES:
            # Before anything is learned the vectors say nothing: the first epoch's label is y_m.
            if not epoch:
                moved = y_N
            elif scores:
                moved = moved_score(y_N, alpha[m][:, 1], alpha[MULTIMODAL][:, 1])
            else:
                moved = moved_class(y_N, alpha[m], alpha[MULTIMODAL])
            made[:, HEADS.index(m)] = torch.where(known, moved, IGNORE_LABEL)
        return made
