"""The models; `build_model` is the only map from names to classes."""

from __future__ import annotations

from collections.abc import Mapping

from lfmim.config import ModelConfig
from lfmim.models.lfmim import LFMIM, ModelOutput
from lfmim.schema import Modality

MODELS = {"lfmim": LFMIM}


def build_model(config: ModelConfig, dims: Mapping[Modality, int]) -> LFMIM:
    """The model `config.name`, freshly initialised from torch's global RNG, for features of widths `dims`."""
    return MODELS[config.name](config, dims)


__all__ = ["LFMIM", "MODELS", "ModelOutput", "build_model"]
