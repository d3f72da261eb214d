"""The model at whose weights a training begins (`ExperimentConfig.init`): found, and checked
against what is to be trained."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, to_dict
from lfmim.predictor import Predictor
from lfmim.schema import InputError
from lfmim.storage import as_path


def resolve_init(config: ExperimentConfig) -> tuple[ExperimentConfig, Predictor | None]:
    """`config` as it is hashed and kept, and the model that it names; (`config`, None) without one.

    In `init` stands a version in place of an alias, which may move, and the whole path of a folder;
    `model` are that model's settings. Raises InputError for a model that is not there or is not
    trained in epochs, for `model` settings that are neither the defaults nor its, and for a store
    of other features or classes than its.
    """
    if not config.init:
        return config, None
    if config.init.startswith("builtin:"):
        raise InputError(
            f"init: {config.init} is the face encoder's own answer, and has no weights to go on "
            "training; train a model with lfmim train, and begin at that one"
        )

    uri = tracking.tracking_uri(config.tracking, config.run.storage)
    init = tracking.resolve_reference(uri, config.init)
    init = str(Path(init).resolve()) if os.path.isdir(init) else init
    predictor = tracking.load_predictor(uri, init)
    if predictor.model.fitted:
        raise InputError(
            f"init: {init} is a '{predictor.meta.config.model.name}', which is fitted anew at once "
            "and begins at no weights; name a model that is trained in epochs, or leave it out"
        )

    model = predictor.meta.config.model
    if config.model not in (ModelConfig(), model):
        now, was = to_dict(config.model), to_dict(model)
        field = next(f for f in now if now[f] != was[f])
        raise InputError(
            f"model.{field}: {now[field]!r}, and {init} has {was[field]!r}; leave the model's "
            "settings out: those of the model that training begins at are taken"
        )
    predictor.check_store(as_path(config.store).resolve())
    return dataclasses.replace(config, init=init, model=model), predictor
