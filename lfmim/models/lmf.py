"""LMF: low-rank tensor fusion of pooled modalities (Liu et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig
from lfmim.models.layers import ModelOutput, Pooling, init_weights, input_projections
from lfmim.schema import EMOTIONS, MODALITIES, MULTIMODAL, Modality

RANK = 4


class LMF(nn.Module):
    """h = Σ_r w_r · Π_u([1; z_u] F_u^r) + b, then classes; factors Xavier-normal. Answers the multimodal head."""

    answers = (MULTIMODAL,)
    accepts_absent = False

    def __init__(self, config: ModelConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__()
        self.config = config
        self.inputs = input_projections(config, dims)
        self.pools = nn.ModuleDict({m: Pooling(config.sequence_pooling, config.width) for m in MODALITIES})
        self.factors = nn.ParameterDict(
            {m: nn.Parameter(torch.empty(RANK, config.width + 1, config.width)) for m in MODALITIES}
        )
        self.rank_weight = nn.Parameter(torch.empty(1, RANK))
        self.bias = nn.Parameter(torch.zeros(config.width))
        self.head = nn.Linear(config.width, len(EMOTIONS))
        self.apply(init_weights)
        for factor in self.factors.values():
            for matrix in factor:
                nn.init.xavier_normal_(matrix)
        nn.init.xavier_normal_(self.rank_weight)

    def forward(self, features: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> ModelOutput:
        """Shapes as LFMIM.forward."""
        product: Tensor | None = None
        for m in MODALITIES:
            z = self.pools[m](self.inputs[m](features[m]), masks[m])
            part = torch.einsum("bi,rij->rbj", nn.functional.pad(z, (1, 0), value=1.0), self.factors[m])
            product = part if product is None else product * part
        h = torch.einsum("r,rbj->bj", self.rank_weight[0], product) + self.bias
        return ModelOutput({MULTIMODAL: self.head(h)}, {MULTIMODAL: h})
