"""LFT: late fusion transformer, a stack per modality and the pooled vectors concatenated (paper
§5.1.1)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import (
    ClassifierHead,
    Pooling,
    TransformerStack,
    init_weights,
    input_projections,
)
from lfmim.schema import MODALITIES, MULTIMODAL, Modality


@register_model("lft")
class LFT(EmotionNet):
    """Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        self.inputs = input_projections(config, dims)
        self.stacks = nn.ModuleDict(
            {m: TransformerStack(config, config.d_model) for m in MODALITIES}
        )
        # The streams have no CLS token that `model.pooling: fex` could read: it is the mean here.
        self.pools = nn.ModuleDict(
            {m: Pooling(config.sequence_pooling, config.d_model) for m in MODALITIES}
        )

        # Late fusion is this head alone: nothing before it sees two modalities.
        self.head = ClassifierHead(len(MODALITIES) * config.d_model, config.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m: self.stacks[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        h = torch.cat([self.pools[m](z[m], masks[m]) for m in MODALITIES], dim=1)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
