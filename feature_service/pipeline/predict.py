"""One raw clip -> probabilities, in this process; and the encoders that a model asks for."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import pandas as pd

from feature_service.pipeline.stages import (
    ERROR,
    STAGE,
    UNCUT_TOKENS,
    build_feature_spec,
    build_stage,
    new_row,
    pinned,
    stages_of,
)
from feature_service.pretrained.parts import CACHE
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.importers.array_files import GIVEN
from lfmim.predictor import Predictor, to_frame
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    MODALITIES,
    TEXT,
    VIDEO,
    FeatureSpec,
    InputError,
    Modality,
)
from lfmim.storage import write_text
from lfmim.text_files import whole

KEY_FILE = "model"
PRESET_PLACES = {f"/{CACHE}/": "real", "/face_expression_net": "real", "/tiny-v1-": "tiny"}
"""Part of an encoder's path -> the preset that keeps it there."""


def predict_clip(
    predictor: Predictor, config: ExtractConfig, *, video: str, text: str
) -> pd.Series:
    """One clip, in this process. Raises InputError if it cannot be read or the encoders are not the
    model's."""
    config, spec = matching(predictor, config)
    if video and not Path(video).is_file():
        raise InputError(f"--video: no such file: {video}")

    row = new_row({ID: Path(video).name or "text", VIDEO: video, TEXT: whole(text)})
    for stage in stages_of(config):
        (row,) = build_stage(stage, config, spec=spec)([row])

    if row[ERROR]:
        raise InputError(f"{video or 'text'}: {row[STAGE]}: {row[ERROR]}")
    if tokens := row.get(UNCUT_TOKENS):
        logging.getLogger(__name__).warning(
            "the text has %d tokens; only the first %d are read",
            tokens,
            len(row[FEATURE_COLUMNS[Modality.TEXT]]),
        )
    features = {m: [row.get(FEATURE_COLUMNS[m])] for m in MODALITIES}
    return to_frame(predictor.predict(features), predictor.meta.labels.classes).iloc[0]


def matching(predictor: Predictor, config: ExtractConfig) -> tuple[ExtractConfig, FeatureSpec]:
    """The config of the model's encoders, and what they give. Raises InputError if they cannot be
    loaded or are others than the model was trained on."""
    _check_encoders(predictor)
    config = for_model(config, predictor)
    spec = build_feature_spec(config)
    predictor.check_spec(spec, have="the configured encoders")
    # or a branch of the hub that moves now would give other features than were just checked
    return pinned(config, spec), spec


def claim(parts: Path, key: str, another: str) -> None:
    """Begin or continue the folder of finished rows, which are those of `key` alone. Raises
    InputError that names what `another` key may come from."""
    path = parts / KEY_FILE
    if not path.is_file():
        write_text(path, key)
    elif path.read_text(encoding="utf-8") != key:
        raise InputError(
            f"{parts}: left by a run with another {another}; delete it, or use another --output"
        )


def for_model(config: ExtractConfig, predictor: Predictor) -> ExtractConfig:
    """The config with the modalities that the model reads, as what it does not nobody extracts,
    and, where none were named, with the encoders that it was trained on."""
    encoders = predictor.meta.spec.encoders
    read = [m.value for m in MODALITIES if m in encoders]
    config = dataclasses.replace(config, modalities=read)
    if config.encoders != EncoderConfig():
        return config
    return dataclasses.replace(config, encoders=encoders_of(predictor.meta.spec))


def encoders_of(spec: FeatureSpec) -> EncoderConfig:
    """The encoders by the names in a FeatureSpec. A preset's lie in this machine's own cache; what
    is found is compared with the spec later."""
    from feature_service.encoders.base import ENCODERS

    named: dict[str, Any] = {}
    for modality, encoder in spec.encoders.items():
        # The path is that of the machine which made the store.
        preset = next((p for place, p in PRESET_PLACES.items() if place in encoder.name), "")
        family, _, source = encoder.name.rpartition(":")
        if source in ENCODERS:
            family, source = source, ""

        if preset:
            # Of two presets in one store, `tiny` is what a modality without a name gets anyway.
            named["preset"] = preset if preset != "tiny" else named.get("preset", "tiny")
        else:
            named |= {modality: source, f"{modality}_family": family}
            named[f"{modality}_revision"] = encoder.revision
        if layer := encoder.settings.get("layer"):
            named[f"{modality}_layer"] = layer
        if modality == Modality.VISION:
            named["vision_crop"] = encoder.settings.get("crop", "aligned")
    return EncoderConfig(**named)


def _check_encoders(predictor: Predictor) -> None:
    """Raise InputError if nothing here can compute the model's features from media."""
    encoders = predictor.meta.spec.encoders.items()
    given = [f"{m} ({e.name.removeprefix(GIVEN)})" for m, e in encoders if e.name.startswith(GIVEN)]
    if given:
        raise InputError(
            f"the model was trained on arrays that were given to it: {', '.join(given)}, which "
            "cannot be computed from a video here. Compute those of the new clips as well, bring "
            "them into a feature store (lfmim import arrays or join) and give that: --store STORE"
        )
