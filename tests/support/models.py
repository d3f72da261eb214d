"""Models of the smallest sizes, and inputs for them."""

from __future__ import annotations

import dataclasses
import functools

import torch

from lfmim.config import ExperimentConfig, ExtractConfig, ModelConfig
from lfmim.models import build_model
from lfmim.predictor import Predictor
from lfmim.schema import MODALITIES
from lfmim.training.checkpoint import CheckpointMeta

DIMS = {"text": 12, "audio": 10, "vision": 8}
SIZES = {
    "d_model": 16,
    "num_heads": 4,
    "num_layers": 3,
    "max_text": 12,
    "max_audio": 12,
    "max_vision": 12,
}


def build(seed=0, **fields):
    torch.manual_seed(seed)
    return build_model(ModelConfig(**{**SIZES, **fields}), DIMS).eval()


def inputs(lengths, seed=1, scale=1.0):
    """Features with garbage beyond each sample's length; `lengths[u]` holds one length per
    sample."""
    g = torch.Generator().manual_seed(seed)
    x, masks = {}, {}
    for m in MODALITIES:
        n = torch.tensor(lengths[m])
        t = max(int(n.max()), 1)
        masks[m.value] = torch.arange(t)[None] < n[:, None]
        x[m.value] = scale * torch.randn(len(n), t, DIMS[m], generator=g)
    return x, masks


LENGTHS = {"text": [6, 3, 5, 1], "audio": [4, 7, 2, 7], "vision": [5, 5, 1, 4]}


@functools.cache
def tiny_spec(modalities):
    """What the tiny encoders of these modalities give."""
    # here, for it loads the encoders' libraries, and most tests of models need none
    from feature_service.pipeline.stages import build_feature_spec

    config = ExtractConfig(manifest="-", store="-", modalities=[m.value for m in modalities])
    return build_feature_spec(config)


def tiny_predictor(modalities=tuple(MODALITIES), **fields):
    """A predictor, never trained, of the features of the tiny encoders."""
    spec = tiny_spec(tuple(modalities))
    torch.manual_seed(0)
    sizes = {"d_model": 16, "num_heads": 2, "num_layers": 1, **fields}
    experiment = ExperimentConfig(store="s", model=ModelConfig(**sizes))
    meta = dataclasses.replace(CheckpointMeta.start(experiment, spec), temperature={"audio": 1.5})
    return Predictor(build_model(experiment.model, spec.dims), meta)
