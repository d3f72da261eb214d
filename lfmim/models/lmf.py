"""LMF: low-rank tensor fusion of pooled modalities (Liu et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import EmotionNet, ModelOutput, register_model
from lfmim.models.layers import Pooling, init_weights, input_projections
from lfmim.schema import MODALITIES, MULTIMODAL, Modality

RANK = 4
"""Terms r of the sum."""


class LowRankFusion(nn.Module):
    """h = Σ_r w_r · Π_u([1; z_u] F_u^r) + b; factors Xavier-normal."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.factors = nn.ParameterDict(
            {
                m: nn.Parameter(torch.empty(RANK, config.d_model + 1, config.d_model))
                for m in MODALITIES
            }
        )
        # Two axes, as xavier_normal_ refuses a vector.
        self.rank_weight = nn.Parameter(torch.empty(1, RANK))
        self.bias = nn.Parameter(torch.zeros(config.d_model))

        # Matrix by matrix: of a tensor of three axes Xavier would take the last one for a
        # convolution's kernel and the first two for its channels.
        for factor in self.factors.values():
            for matrix in factor:
                nn.init.xavier_normal_(matrix)
        nn.init.xavier_normal_(self.rank_weight)

    def fuse(self, z: Mapping[Modality, Tensor]) -> Tensor:
        """Vectors [B, d_model] per modality -> [B, d_model]."""
        product: Tensor | None = None
        for m in MODALITIES:
            # The 1 before z_u keeps terms of one and of two modalities in the product of three.
            one_z = nn.functional.pad(z[m], (1, 0), value=1.0)
            part = torch.einsum("bi,rij->rbj", one_z, self.factors[m])
            product = part if product is None else product * part
        return torch.einsum("r,rbj->bj", self.rank_weight[0], product) + self.bias


@register_model("lmf")
class LMF(LowRankFusion, EmotionNet):
    """LowRankFusion of the pooled modalities, classes. Answers the multimodal head."""

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
        # Linear and Conv1d only: the factors keep what LowRankFusion gave them.
        self.apply(init_weights)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        z = {m: self.pools[m](self.inputs[m](features[m]), masks[m]) for m in MODALITIES}
        h = self.fuse(z)
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
