"""The models; `build_model` is the only map from names to classes.

A model has `answers` (the heads it gives logits for), `accepts_absent` (whether a sample may lack a modality at
inference), `inputs` (its InputProjection per modality) and `forward(features, masks) -> ModelOutput`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import ModelConfig
from lfmim.models.eft import EFT
from lfmim.models.layers import ModelOutput
from lfmim.models.lfmim import LFMIM
from lfmim.models.lft import LFT
from lfmim.models.lmf import LMF
from lfmim.models.mult import MulT
from lfmim.models.pmr import PMR
from lfmim.models.tfn import TFN
from lfmim.schema import Modality

EmotionNet = TFN | LMF | EFT | LFT | MulT | PMR | LFMIM
MODELS: dict[str, type[EmotionNet]] = {
    "tfn": TFN, "lmf": LMF, "eft": EFT, "lft": LFT, "mult": MulT, "pmr": PMR, "lfmim": LFMIM,
}


def build_model(config: ModelConfig, dims: Mapping[Modality, int]) -> EmotionNet:
    """The model `config.name`, freshly initialised from torch's global RNG, for features of widths `dims`."""
    return MODELS[config.name](config, dims)


__all__ = ["LFMIM", "MODELS", "EmotionNet", "ModelOutput", "build_model"]
