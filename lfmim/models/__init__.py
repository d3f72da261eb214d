"""The models: one file each, registered by `@register_model(name)` (base.py)."""

from lfmim.models.base import (
    MODELS,
    EmotionNet,
    ModelOutput,
    build_model,
    check_dims,
    register_model,
)

__all__ = ["MODELS", "EmotionNet", "ModelOutput", "build_model", "check_dims", "register_model"]
