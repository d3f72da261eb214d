"""EFT: early fusion transformer, the modalities concatenated in time (paper §5.1.1)."""

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


@register_model("eft")
class EFT(EmotionNet):
    """One stack over [CLS; t; a; v] with modality embeddings, pooled, MLP. Answers the multimodal
    head."""

    answers = (MULTIMODAL,)
    accepts_absent = True

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        self.inputs = input_projections(config, dims)
        self.modalities = tuple(m for m in MODALITIES if m in dims)
        self.modality = nn.Parameter(torch.empty(len(self.modalities), config.d_model))
        self.cls = nn.Parameter(torch.empty(1, config.d_model))
        self.stack = TransformerStack(config, config.d_model)
        # The CLS token is where LFMIM has its FEX token, so `model.pooling: fex` reads it.
        self.pool = Pooling("first" if config.pooling == "fex" else config.pooling, config.d_model)
        self.head = ClassifierHead(config.d_model, config.outputs)

        # init_weights knows layers only; bare parameters start as LFMIM's FEX token does.
        self.apply(init_weights)
        for parameter in (self.modality, self.cls):
            nn.init.normal_(parameter, std=0.02)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        # Positions begin anew in each modality, so in one sequence of all an embedding has to say
        # which of them a token is of.
        z = [self.inputs[m](features[m]) + self.modality[i] for i, m in enumerate(self.modalities)]
        x = torch.cat([self.cls.expand(len(z[0]), -1, -1).to(z[0].dtype), *z], dim=1)

        # CLS is valid in every sample: no row, whatever it lacks, is without a key.
        first = torch.ones_like(masks[self.modalities[0]][:, :1])
        valid = torch.cat([first, *(masks[m] for m in self.modalities)], dim=1)

        h = self.pool(self.stack(x, valid), valid)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
