"""LEFSA: label-encoder fusion with averaging, from the description of Markitantov, Ryumina, Kaya
and Karpov ("Multi-Modal Multi-Task Affective States Recognition Based on Label Encoder Fusion",
2025).

What each modality predicts of the joint label is encoded and read, beside the other modalities, by
the fusion; and it is averaged with what the fusion predicts. Adapted: a stack of the fusion per
modality, an encoded prediction as one position more, probabilities averaged, one task (theirs:
pairwise attentions, predictions added to every step, logits, two tasks; docs/model.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import (
    ClassifierHead,
    Pooling,
    TransformerStack,
    attention_mask,
    init_weights,
    input_projections,
)
from lfmim.models.mult import CrossModalLayer
from lfmim.schema import MODALITIES, MULTIMODAL, Modality


@register_model("lefsa")
class LEFSA(EmotionNet):
    """Answers the multimodal head: the mean of three uni-modal predictions of its label and the
    fusion's."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        c, d = config, config.d_model
        self.config = config
        self.inputs = input_projections(c, dims)
        self.stacks = nn.ModuleDict({m: TransformerStack(c, d) for m in MODALITIES})
        self.pools = nn.ModuleDict({m: Pooling(c.sequence_pooling, d) for m in MODALITIES})
        self.uni_modal = nn.ModuleDict({m: ClassifierHead(d, c.outputs) for m in MODALITIES})
        self.label_encoders = nn.ModuleDict({m: nn.Linear(c.outputs, d) for m in MODALITIES})
        self.cross = nn.ModuleDict({m: CrossModalLayer(c) for m in MODALITIES})
        self.norms = nn.ModuleDict({m: nn.LayerNorm(d) for m in MODALITIES})
        self.head = ClassifierHead(len(MODALITIES) * d, c.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m: self.stacks[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        guess = {m: self.uni_modal[m](self.pools[m](z[m], masks[m])) for m in MODALITIES}

        # The label encoder's one vector per modality, as a position more of its sequence.
        read = {m: self.label_encoders[m](self._predicted(guess[m])) for m in MODALITIES}
        labelled = {m: torch.cat([read[m][:, None], z[m]], dim=1) for m in MODALITIES}
        valid = {
            m: torch.cat([torch.ones_like(masks[m][:, :1]), masks[m]], dim=1) for m in MODALITIES
        }

        pooled = []
        for target in MODALITIES:
            others = [m for m in MODALITIES if m is not target]
            source = torch.cat([labelled[m] for m in others], dim=1)
            attend = attention_mask(torch.cat([valid[m] for m in others], dim=1))
            x = self.norms[target](self.cross[target](z[target], source, attend))
            pooled.append(self.pools[target](x, masks[target]))

        h = torch.cat(pooled, dim=1)
        answers = torch.stack([*guess.values(), self.head(h)])
        return ModelOutput({MULTIMODAL: self._average(answers)}, {MULTIMODAL: h})

    def _predicted(self, logits: Tensor) -> Tensor:
        """Probabilities; a score stays what it is."""
        p = logits.softmax(dim=1) if self.config.task == "emotion" else logits
        return p.to(logits.dtype)

    def _average(self, answers_ABC: Tensor) -> Tensor:
        """Of the probabilities, as their logarithm; of scores."""
        if self.config.task == "sentiment":
            return answers_ABC.mean(dim=0)
        # log Σ p_a / A, from logarithms: no probability rounds to 0.
        log_p = answers_ABC.float().log_softmax(dim=2)
        return log_p.logsumexp(dim=0) - math.log(len(answers_ABC))
