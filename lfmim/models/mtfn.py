"""MTFN: multitask tensor fusion of DNN encoders (Yu et al. 2020, CH-SIMS)."""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import SizedConfig
from lfmim.models.base import register_model
from lfmim.models.multitask import Multitask
from lfmim.models.tfn import TensorFusion
from lfmim.schema import Modality


@register_model("mtfn")
class MTFN(Multitask):
    """Answers all four heads."""

    def __init__(self, config: SizedConfig, dims: Mapping[Modality, int]) -> None:
        super().__init__(config, dims, TensorFusion(config))
