"""MLMF: multitask low-rank fusion of DNN encoders (Yu et al. 2020, CH-SIMS)."""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import SizedConfig
from lfmim.models.base import register_model
from lfmim.models.lmf import LowRankFusion
from lfmim.models.multitask import Multitask
from lfmim.schema import Modality


@register_model("mlmf")
class MLMF(Multitask):
    """Answers all four heads."""

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims, LowRankFusion(config))
