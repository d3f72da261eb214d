"""The models: one file each, registered by `@register_model(name)` (base.py)."""

from lfmim.models.base import EmotionNet, ModelOutput, build_model, check_dims, register_model
from lfmim.registry import MODELS

__all__ = ["MODELS", "EmotionNet", "ModelOutput", "build_model", "check_dims", "register_model"]
