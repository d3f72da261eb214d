"""Multimodal emotion recognition on Ray: the Python door.

    import lfmim

    store = lfmim.FeatureStore.open("features")
    result = lfmim.train(lfmim.ExperimentConfig(store="features"))
    model = lfmim.load_model("models:/lfmim@champion")
    model.predict(store.frame("test"))

Importing it loads neither Ray, MLflow nor torch: what is asked for is loaded then.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# For editors and type checkers, which do not run `__getattr__` below.
if TYPE_CHECKING:
    from lfmim.config import (
        EncoderConfig,
        ExperimentConfig,
        ExtractConfig,
        ModelConfig,
        RunConfig,
        TrainConfig,
    )
    from lfmim.inference import FeatureStore, Model, load_model, train
    from lfmim.models import EmotionNet, ModelOutput, register_model
    from lfmim.schema import FeatureSpec, InputError

__all__ = [
    "EmotionNet",
    "EncoderConfig",
    "ExperimentConfig",
    "ExtractConfig",
    "FeatureSpec",
    "FeatureStore",
    "InputError",
    "Model",
    "ModelConfig",
    "ModelOutput",
    "RunConfig",
    "TrainConfig",
    "load_model",
    "register_model",
    "train",
]

_ROOMS = {
    "lfmim.inference": ("FeatureStore", "Model", "load_model", "train"),
    "lfmim.models": ("EmotionNet", "ModelOutput", "register_model"),
    "lfmim.schema": ("FeatureSpec", "InputError"),
    "lfmim.config": (
        "EncoderConfig",
        "ExperimentConfig",
        "ExtractConfig",
        "ModelConfig",
        "RunConfig",
        "TrainConfig",
    ),
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    # No KeyError: hasattr asks this way, and so does `from lfmim import storage`, before it looks
    # for a submodule.
    if name not in _HOME:
        raise AttributeError(f"module 'lfmim' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
