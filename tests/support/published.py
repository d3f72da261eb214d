"""Checkpoints as the published code writes them."""

from __future__ import annotations

import torch

from lfmim.config import ModelConfig
from lfmim.convert.published import BUFFERS, published_name
from lfmim.models import build_model
from tests.support.toy import DIMS

SIZES = [
    {
        "d_model": 16,
        "num_heads": 2,
        "num_layers": 1,
        "fex_tokens": 1,
        "max_text": 5,
        "max_audio": 4,
        "max_vision": 3,
    },
    {
        "d_model": 24,
        "num_heads": 3,
        "num_layers": 3,
        "fex_tokens": 6,
        "max_text": 7,
        "max_audio": 9,
        "max_vision": 2,
        "dim_feedforward": 48,
    },
]


def published(path, prefix="module.", **sizes):
    """A model of the given sizes, saved in the published layout; returns the model."""
    torch.manual_seed(1)
    model = build_model(ModelConfig(name="upstream", audio_excess="cut", **sizes), DIMS).eval()
    for parameter in model.parameters():  # norms and biases too
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = {}
    for name, tensor in model.state_dict().items():
        if not name.endswith(BUFFERS):
            new = published_name(name)
            tensors[prefix + new] = (
                tensor[0] if new in ("embedding_t", "embedding_a", "embedding_v") else tensor
            )
    assert len(tensors) == len(list(model.parameters()))
    tensors[f"{prefix}me"] = torch.zeros(4)
    torch.save(tensors, path)
    return model
