"""MLF-DNN: multitask late fusion of DNN encoders by concatenation (Yu et al. 2020, CH-SIMS)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lfmim.config import ModelConfig, SizedConfig
from lfmim.models.base import register_model
from lfmim.models.layers import Dropout
from lfmim.models.multitask import Multitask
from lfmim.schema import MODALITIES, Modality


class ConcatFusion(nn.Module):
    """The three vectors side by side, dropout, two Linear-ReLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.layers = nn.Sequential(
            Dropout(config.dropout_ffn),
            nn.Linear(len(MODALITIES) * d, d),
            nn.ReLU(),
            nn.Linear(d, d),
            nn.ReLU(),
        )

    def fuse(self, z: Mapping[Modality, Tensor]) -> Tensor:
        """Vectors [B, d_model] per modality -> [B, d_model]."""
        joined = torch.cat([z[m] for m in MODALITIES], dim=1)
        return self.layers(joined)  # type: ignore[no-any-return]


@register_model("mlf-dnn")
class MLFDNN(Multitask):
    """Answers all four heads."""

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims, ConcatFusion(config))
