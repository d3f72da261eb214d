"""Frozen configuration dataclasses, validated on construction; YAML in and out.

The command line is generated from them (jsonargparse), so a field's docstring is its help text.
"""

from lfmim.config.checks import check_choices
from lfmim.config.experiment import (
    MAX_LENGTHS,
    STUCK_MINUTES,
    BetaConfig,
    ExperimentConfig,
    ModelConfig,
    RunConfig,
    SizedConfig,
    TrackingConfig,
    TrainConfig,
)
from lfmim.config.extraction import HUB_PRESETS, LAYERS, EncoderConfig, ExtractConfig
from lfmim.config.plain import (
    NEWER,
    cache_folder,
    config_hash,
    experiment_from_dict,
    flatten,
    hash_parts,
    to_dict,
)

__all__ = [
    "HUB_PRESETS",
    "LAYERS",
    "MAX_LENGTHS",
    "NEWER",
    "STUCK_MINUTES",
    "BetaConfig",
    "EncoderConfig",
    "ExperimentConfig",
    "ExtractConfig",
    "ModelConfig",
    "RunConfig",
    "SizedConfig",
    "TrackingConfig",
    "TrainConfig",
    "cache_folder",
    "check_choices",
    "config_hash",
    "experiment_from_dict",
    "flatten",
    "hash_parts",
    "to_dict",
]
