"""TFN: tensor fusion of pooled modalities (Zadeh et al. 2017; sizes as in the paper's comparison, §5.1.2)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig
from lfmim.models.layers import ModelOutput, Pooling, init_weights, input_projections
from lfmim.schema import EMOTIONS, MODALITIES, MULTIMODAL, Modality

RANK = 32
"""Width of a pooled modality before the outer product, which has (RANK + 1)^3 entries."""


class TFN(nn.Module):
    """Outer product of [1; z_t], [1; z_a], [1; z_v], dropout, two Linear-ReLU, classes. Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: ModelConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        self.inputs = input_projections(config, dims)
        self.pools = nn.ModuleDict({m: Pooling(config.sequence_pooling, config.width) for m in MODALITIES})
        self.reduce = nn.ModuleDict({m: nn.Linear(config.width, RANK) for m in MODALITIES})
        self.fusion = nn.Sequential(
            nn.Dropout(config.dropout_ffn), nn.Linear((RANK + 1) ** 3, config.width), nn.ReLU(),
            nn.Linear(config.width, config.width), nn.ReLU(),
        )
        self.head = nn.Linear(config.width, len(EMOTIONS))
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z_t, z_a, z_v = (
            nn.functional.pad(self.reduce[m](self.pools[m](self.inputs[m](features[m]), masks[m])), (1, 0), value=1.0)
            for m in MODALITIES
        )
        h = self.fusion(torch.einsum("bi,bj,bk->bijk", z_t, z_a, z_v).flatten(1))
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
