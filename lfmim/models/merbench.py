"""Attention fusion of utterance-level features, MERBench's choice among its fusions (Lian et al.
2024, "MERBench: A Unified Evaluation Benchmark for Multimodal Emotion Recognition").

Adapted: a modality's vector is the pooled sequence of the front end that all models share, not a
feature of the whole utterance from an encoder of its own choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Dropout, Pooling, init_weights, input_projections
from lfmim.schema import MODALITIES, MULTIMODAL, Modality


@register_model("merbench")
class AttentionFusion(EmotionNet):
    """A weight per modality, from its own vector. Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        d = config.d_model
        self.config = config
        self.inputs = input_projections(config, dims)
        self.pools = nn.ModuleDict({m: Pooling(config.sequence_pooling, d) for m in MODALITIES})
        self.encoders = nn.ModuleDict(
            {m: nn.Sequential(Dropout(config.dropout_ffn), nn.Linear(d, d)) for m in MODALITIES}
        )
        # Their b_α is the same for all three, which softmax ignores.
        self.score = nn.Linear(d, 1, bias=False)
        self.head = nn.Linear(d, config.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        # h_u = ReLU(W_u f_u + b_u), α = softmax(h W_α), z = Σ_u α_u h_u
        f = {m: self.pools[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        h_BUD = torch.stack([self.encoders[m](f[m]).relu() for m in MODALITIES], dim=1)
        weight_BU1 = self.score(h_BUD).softmax(dim=1)
        z = (weight_BU1.to(h_BUD.dtype) * h_BUD).sum(dim=1)
        return ModelOutput({MULTIMODAL: self.head(z)}, {MULTIMODAL: z})
