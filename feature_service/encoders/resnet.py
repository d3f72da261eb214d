"""Face crops -> ResNet features, one vector per frame."""

from __future__ import annotations

from typing import Any

import torch
from transformers import ResNetConfig, ResNetModel

from feature_service.encoders.base import register_encoder
from feature_service.encoders.frames import FrameEncoder
from feature_service.encoders.weights import NAMES_SHOWN, from_pretrained, tensor_count
from lfmim.schema import InputError, Modality, listed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@register_encoder("resnet", modality=Modality.VISION)
class ResNetEncoder(FrameEncoder):
    """Globally pooled features of a ResNet (paper §3.3: ResNet-18 trained on RAF-DB, 512-d)."""

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(source, revision=revision, device=device, batch_size=batch_size)
        self.model = (
            load_resnet(source, self.revision).eval().to(device, memory_format=torch.channels_last)
        )

        self.mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        self.dim = self.model.config.hidden_sizes[-1]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, D]."""
        x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
        pooled: torch.Tensor = self.model(
            x.contiguous(memory_format=torch.channels_last)
        ).pooler_output
        return pooled.flatten(1)


def load_resnet(source: str, revision: str | None) -> ResNetModel:
    """A ResNet from a folder, a hub id, or a .pth/.pt file with a torchvision ResNet-18 state
    dict."""
    if not source.endswith((".pth", ".pt")):
        return from_pretrained(ResNetModel, source, revision)

    try:
        raw = torch.load(source, map_location="cpu", weights_only=True)
    # torch raises many kinds here, UnpicklingError for a file that would run code among them
    except Exception as error:
        raise InputError(
            f"{source}: cannot be read as a weights-only checkpoint: {error!r:.300}"
        ) from error
    raw = _state_dict(raw)
    if raw is None:
        raise InputError(f"{source}: holds no state dict of tensors")

    plain = _torchvision_names(raw)
    # the classifier, of 1000 or 7 classes, is not part of the features
    state = {
        _hf_name(k): v for k, v in plain.items() if k.split(".")[0] not in ("fc", "classifier")
    }
    model = ResNetModel(
        ResNetConfig(
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=[2, 2, 2, 2],
            layer_type="basic",
        )
    )

    # num_batches_tracked is read by training only, and absent in old checkpoints: hence, below,
    # `strict=False` after a check of all else.
    expected = model.state_dict()
    wrong = [k for k, v in state.items() if k not in expected or expected[k].shape != v.shape]
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        raise InputError(
            f"{source}: not a ResNet-18 (it looks like {_looks_like(plain)}): "
            f"{tensor_count(len(missing))} missing ({listed(missing, most=NAMES_SHOWN)}), "
            f"{len(wrong)} unknown or of another shape ({listed(wrong, most=NAMES_SHOWN)})"
        )
    model.load_state_dict(state, strict=False)
    return model


def _state_dict(raw: Any) -> dict[str, torch.Tensor] | None:
    """The state dict in a checkpoint, at the top or under one of the usual keys."""
    # Training scripts save {"epoch": 3, "state_dict": {...}} or deeper. An accuracy beside the
    # weights may be a tensor as well, but only parameters have a dot in their names.
    for _ in range(3):
        if not isinstance(raw, dict):
            return None
        tensors = {str(k): v for k, v in raw.items() if isinstance(v, torch.Tensor)}
        if any("." in k for k in tensors):
            return tensors
        inner = [
            raw[k]
            for k in ("state_dict", "model_state_dict", "model", "net", "backbone")
            if k in raw
        ]
        if not inner:
            return None
        raw = inner[0]
    return None


# ResNet as nn.Sequential(*list(resnet.children())[:-1]), a common way to cut the classifier off.
_SEQUENTIAL = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _torchvision_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Strip what wraps the ResNet (`module.`, `backbone.`, a Sequential's numbers): names as
    torchvision has them."""
    first = next((k for k in state if k.endswith("layer1.0.conv1.weight")), None)
    if first is not None:
        prefix = first.removesuffix("layer1.0.conv1.weight")
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    # The first convolution, and first in the dict: `5.0.downsample.0.weight`, later, looks alike.
    stem = next(
        (k for k, v in state.items() if k.endswith(".0.weight") or k == "0.weight" if v.ndim == 4),
        None,
    )
    if stem is None:
        return state

    prefix = stem.removesuffix("0.weight")
    out = {}
    for key, value in state.items():
        head, _, rest = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and head in _SEQUENTIAL:
            out[f"{_SEQUENTIAL[head]}.{rest}"] = value
    return out if any(k.startswith("layer1.") for k in out) else state


def _looks_like(state: dict[str, torch.Tensor]) -> str:
    """A guess at the architecture behind torchvision-style names, for messages."""
    blocks = tuple(
        len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")}) for n in range(1, 5)
    )
    # ResNet-34 and -50 have the same numbers of blocks, but the latter's have a third convolution.
    bottleneck = any(".conv3." in k for k in state)
    known: dict[tuple[int, ...], str] = {
        (2, 2, 2, 2, False): "ResNet-18 of other widths",
        (3, 4, 6, 3, False): "ResNet-34",
        (3, 4, 6, 3, True): "ResNet-50",
        (3, 4, 23, 3, True): "ResNet-101",
        (3, 8, 36, 3, True): "ResNet-152",
    }
    if all(blocks):
        return known.get(
            (*blocks, bottleneck), f"a ResNet with {'-'.join(map(str, blocks))} blocks"
        )
    if any(k.startswith("features.") for k in state) and any(
        k.startswith("classifier.") for k in state
    ):
        return "VGG, AlexNet or MobileNet"
    return f"another network, with tensors such as {', '.join(list(state)[:3])}"


def _hf_name(key: str) -> str:
    """torchvision's ResNet parameter name -> transformers' one."""
    part = key.split(".")
    if part[0] in ("conv1", "bn1"):
        return ".".join(
            [
                "embedder.embedder",
                "convolution" if part[0] == "conv1" else "normalization",
                *part[1:],
            ]
        )
    # left as it is, it is told as unknown by the name that the user's file has
    if not part[0].startswith("layer") or len(part) < 4:
        return key

    prefix = f"encoder.stages.{int(part[0][5:]) - 1}.layers.{part[1]}"
    if part[2] == "downsample":
        return f"{prefix}.shortcut.{'convolution' if part[3] == '0' else 'normalization'}.{part[4]}"
    kind = "convolution" if part[2].startswith("conv") else "normalization"
    return f"{prefix}.layer.{int(part[2][-1]) - 1}.{kind}.{part[3]}"
