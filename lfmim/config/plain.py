"""Configs as plain dicts and back, and the hashes that runs are known by."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfmim.config.experiment import (
    BetaConfig,
    ExperimentConfig,
    ModelConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)
from lfmim.former_names import in_former_names, say_renamed, translate
from lfmim.schema import InputError
from lfmim.storage import local_path


def to_dict(config: Any) -> dict[str, Any]:
    """Dataclass -> plain nested dict (YAML- and JSON-ready)."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict -> one level with dotted names: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict)
            else {f"{prefix}{key}": value}
        )
    return flat


NEWER = {"model": ("feedback",), "train": ("loss", "class_weights")}
"""Fields of ModelConfig and TrainConfig that 0.1 did not have."""
REVISED = {"pmr": 2, "upstream": 2}
"""Models that compute, or start, otherwise than under the same name before, and the how many-th it
is: what was trained before is another run, and no benchmark takes its result for today's."""


def hash_parts(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    """`model`, `train` and, where it is set, `init` as what runs, sweeps and benchmarks are hashed
    by and known again: under the names of 0.1, and without newer fields at their defaults, so that
    what was begun then goes on; of REVISED models not."""
    parts = {
        part: in_former_names(part, to_dict(getattr(config, part))) for part in ("model", "train")
    }
    for (part, fields), kind in zip(NEWER.items(), (ModelConfig, TrainConfig), strict=True):
        for field in fields:
            if parts[part][field] == getattr(kind, field):
                del parts[part][field]
    if config.model.name in REVISED:
        parts["model"]["revision"] = REVISED[config.model.name]
    if config.init:
        parts["init"] = {"reference": config.init}
    return parts


def experiment_from_dict(raw: dict[str, Any], *, stored: bool = False) -> ExperimentConfig:
    """Inverse of `to_dict` for ExperimentConfig. Raises InputError on unknown or invalid fields.

    Names of 0.1 are read, too, with a warning unless the config is `stored`, by this project.
    """
    try:
        raw, lines = translate(raw)
        if not stored:
            say_renamed(lines)
        train = dict(raw.pop("train", {}))
        beta = BetaConfig(**train.pop("beta", {}))
        return ExperimentConfig(
            model=ModelConfig(**raw.pop("model", {})),
            train=TrainConfig(beta=beta, **train),
            run=RunConfig(**raw.pop("run", {})),
            tracking=TrackingConfig(**raw.pop("tracking", {})),
            **raw,
        )
    # A ValueError, and names its field already.
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"config: {error}") from error


def cache_folder() -> Path:
    """$LFMIM_CACHE, else ~/.cache/lfmim."""
    named = os.environ.get("LFMIM_CACHE")
    return local_path(named, "LFMIM_CACHE") if named else Path.home() / ".cache" / "lfmim"


def config_hash(*parts: Any) -> str:
    """Ten hex digits over JSON-able parts."""
    # Sorted, so that runs keep their names when a class's fields change their order.
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]
