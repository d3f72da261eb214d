"""TFN: tensor fusion of pooled modalities (Zadeh et al. 2017); the width of 32 is ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Dropout, Pooling, init_weights, input_projections
from lfmim.schema import MODALITIES, MULTIMODAL, Modality

RANK = 32
"""Width of a pooled modality before the outer product, which has (RANK + 1)^3 entries."""


class TensorFusion(nn.Module):
    """Outer product of [1; z_t], [1; z_a], [1; z_v] of width RANK, dropout, two Linear-ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # At 128 instead of RANK the next layer would have 129³ = 2.1 million inputs.
        self.reduce = nn.ModuleDict({m: nn.Linear(config.d_model, RANK) for m in MODALITIES})
        self.fusion = nn.Sequential(
            Dropout(config.dropout_ffn),
            nn.Linear((RANK + 1) ** 3, config.d_model),
            nn.ReLU(),
            nn.Linear(config.d_model, config.d_model),
            nn.ReLU(),
        )

    def fuse(self, z: Mapping[Modality, Tensor]) -> Tensor:
        """Vectors [B, d_model] per modality -> [B, d_model]."""
        # With a 1 before each vector the outer product of three holds them alone and in pairs too.
        z_t, z_a, z_v = (
            nn.functional.pad(self.reduce[m](z[m]), (1, 0), value=1.0) for m in MODALITIES
        )

        cube = torch.einsum("bi,bj,bk->bijk", z_t, z_a, z_v)
        return self.fusion(cube.flatten(1))  # type: ignore[no-any-return]


@register_model("tfn")
class TFN(TensorFusion, EmotionNet):
    """TensorFusion of the pooled modalities, classes. Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config)
        self.config = config
        self.inputs = input_projections(config, dims)
        self.pools = nn.ModuleDict(
            {m: Pooling(config.sequence_pooling, config.d_model) for m in MODALITIES}
        )
        self.head = nn.Linear(config.d_model, config.outputs)
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m: self.pools[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        h = self.fuse(z)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
