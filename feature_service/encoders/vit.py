"""Crops -> one vector per frame from a vision transformer, or a network that is used like one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CLIPVisionModel
from transformers.utils import cached_file

from feature_service.encoders.base import register_encoder
from feature_service.encoders.frames import FrameEncoder
from feature_service.encoders.resnet import IMAGENET_MEAN, IMAGENET_STD
from feature_service.encoders.weights import (
    from_pretrained,
    model_type,
    network_of,
    without_pooler,
)
from feature_service.operators.crop import ALIGNED, Crop
from lfmim.schema import Modality

CLIP = ("clip", "clip_vision_model")
FAMILIES = ("vit", "convnext", "deit", "dinov2", "swin", "timm_wrapper", *CLIP)


class Input(NamedTuple):
    """What a network expects: side of the image, mean and deviation per channel of 0..1."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@register_encoder(*FAMILIES, modality=Modality.VISION)
class VisionTransformerEncoder(FrameEncoder):
    """The network's pooled output; of a ViT, whose pooler is often not trained, the normed vector
    of the class token; of a CLIP that of its vision part, before the projection.

    Side, mean and deviation of its images are those of the preprocessor_config.json beside it.
    """

    in_float32 = ("timm_wrapper",)

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(source, revision=revision, device=device, batch_size=batch_size)
        if model_type(source, self.revision) in CLIP:
            self.model = from_pretrained(CLIPVisionModel, source, self.revision, families=CLIP)
        else:
            network = network_of(source, self.revision, FAMILIES)
            pooling = without_pooler(network)
            self.model = from_pretrained(network, source, self.revision, **pooling)
        self.model.eval().to(device)

        expected = _input(source, self.revision, self.model.config)
        self.crop = Crop(ALIGNED.kind, expected.side)
        self.mean = torch.tensor(expected.mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(expected.std, device=device).view(1, 3, 1, 1)
        # the weights' hash does not tell it, and the features follow from it
        self.settings |= {"mean": list(expected.mean), "std": list(expected.std)}
        # widths have another name in each family's config
        side = expected.side
        with torch.inference_mode():
            blank = torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device)
            self.dim = self.features(blank).shape[1]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, D]."""
        x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        out = self.model(x)
        pooled = getattr(out, "pooler_output", None)
        found: torch.Tensor = out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
        return found


def _input(source: str, revision: str | None, config: Any) -> Input:
    """From preprocessor_config.json, from what timm writes into config.json, else ImageNet's."""
    timm: dict[str, Any] = getattr(config, "pretrained_cfg", None) or {}
    if timm:
        mean, std = timm.get("mean", IMAGENET_MEAN), timm.get("std", IMAGENET_STD)
        return Input(int(timm.get("input_size", (3, ALIGNED.size))[-1]), tuple(mean), tuple(std))

    given = _preprocessor(source, revision)
    mean, std = given.get("image_mean", IMAGENET_MEAN), given.get("image_std", IMAGENET_STD)
    if given.get("do_normalize") is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    side = _side(given.get("crop_size")) or _side(given.get("size"))
    return Input(
        side or _side(getattr(config, "image_size", 0)) or ALIGNED.size, tuple(mean), tuple(std)
    )


def _preprocessor(source: str, revision: str | None) -> dict[str, Any]:
    found = cached_file(
        source,
        "preprocessor_config.json",
        revision=revision or None,
        local_files_only=Path(source).is_dir(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    read: dict[str, Any] = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    return read


def _side(size: Any) -> int:
    """Of 224, {"height": 224, ...}, {"shortest_edge": 224} or None."""
    if isinstance(size, dict):
        return int(size.get("height") or size.get("shortest_edge") or 0)
    return int(size or 0)
