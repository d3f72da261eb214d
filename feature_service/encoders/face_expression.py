"""Face crops -> features of a small network that was trained to tell seven expressions apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from feature_service.encoders.base import register_encoder
from feature_service.encoders.frames import FrameEncoder
from feature_service.encoders.weights import model_type
from feature_service.operators.crop import Crop
from lfmim.schema import InputError, Modality

FAMILY = "face_expression_net"
FOLDER = Path(__file__).with_name(FAMILY)
"""Its weights, which come with the package: those of @vladmandic/face-api 1.7.15 (MIT)."""
EXPRESSIONS = ("neutral", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
"""Order of the logits."""
CHANNELS = (32, 64, 128, 256)
SIDE = 112
MEAN_RGB = (122.782, 117.001, 104.298)


class Convolution(nn.Conv2d):
    """3 x 3, padded as TensorFlow's SAME: at stride 2 an even image gets its row of zeros below and
    its column at the right only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halving = self.stride[0] == 2
        return super().forward(F.pad(x, (0, 1, 0, 1) if halving else (1, 1, 1, 1)))


class DenseBlock(nn.Module):
    """Four convolutions, the first halves the image; each later one reads the ReLU of the sum of
    all outputs before it."""

    def __init__(self, inputs: int, channels: int, *, first: bool) -> None:
        super().__init__()
        head = Convolution(inputs, channels, 3, 2) if first else _separable(inputs, channels, 2)
        tail = [_separable(channels, channels, 1) for _ in range(3)]
        self.convs = nn.ModuleList([head, *tail])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.convs[0](x).relu()
        x = total
        for conv in self.convs[1:]:
            total = total + conv(x)
            x = total.relu()
        return x


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Convolution(inputs, inputs, 3, stride, groups=inputs, bias=False),
        nn.Conv2d(inputs, outputs, 1),
    )


class FaceExpressionNet(nn.Module):
    """face-api's FaceExpressionNet: four dense blocks, a mean over the 7 x 7 places left, one
    linear layer. 324,000 weights."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        widths = zip((3, *CHANNELS), CHANNELS, strict=False)
        self.blocks = nn.ModuleList(
            [DenseBlock(before, here, first=n == 0) for n, (before, here) in enumerate(widths)]
        )
        self.fc = nn.Linear(CHANNELS[-1], len(EXPRESSIONS))
        self.register_buffer("mean", torch.tensor(MEAN_RGB).view(1, 3, 1, 1), persistent=False)

    def features(self, faces: torch.Tensor) -> torch.Tensor:
        """[N, 3, 112, 112] RGB, 0 to 255 -> float32 [N, 256]."""
        x = (faces.float() - self.mean) / 255
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """As `features` -> logits [N, 7], in the order of EXPRESSIONS."""
        logits: torch.Tensor = self.fc(self.features(faces))
        return logits


@register_encoder(FAMILY, modality=Modality.VISION)
class FaceExpressionEncoder(FrameEncoder):
    """The 256 numbers from which the network tells the expression, per frame; it is shown the
    face's box, 112 x 112."""

    crop = Crop("box", SIDE)
    gpu_precision = "fp32"

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        super().__init__(source, revision=revision, device=device, batch_size=batch_size)
        self.model = load_network(Path(source)).eval().to(device)
        self.dim = CHANNELS[-1]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 112, 112, 3] -> float32 [B, 256]."""
        found: torch.Tensor = self.model.features(x.permute(0, 3, 1, 2))
        return found


def load_network(folder: Path) -> FaceExpressionNet:
    """From config.json and model.safetensors. Raises InputError if they are not this network's."""
    if model_type(str(folder), None) != FAMILY:
        raise InputError(
            f"encoder '{folder}': no folder with a config.json of model_type {FAMILY!r}; the "
            "preset real has it: --encoders.preset real"
        )
    network, state = FaceExpressionNet(), _tensors(folder / "model.safetensors")
    expected = network.state_dict()
    wrong = [k for k, v in expected.items() if k not in state or state[k].shape != v.shape]
    if wrong or state.keys() - expected.keys():
        raise InputError(
            f"encoder '{folder}': not a complete FaceExpressionNet; {wrong or 'more'} differ"
        )
    network.load_state_dict(state)
    return network


def _tensors(file: Path) -> dict[str, Any]:
    try:
        return dict(load_file(file))
    # a missing file, or safetensors' own error
    except Exception as error:
        raise InputError(f"{file}: cannot be read: {error}") from error
