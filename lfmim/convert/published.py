"""Checkpoints of the published LFMIM code -> ours (model `upstream`), by the names and shapes of
their tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.models import build_model
from lfmim.schema import (
    MODALITIES,
    MULTIMODAL,
    UNKNOWN_ENCODER,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
    default_labels,
)
from lfmim.training.checkpoint import CheckpointMeta, save_checkpoint

SHORT = {"text": "t", "audio": "a", "vision": "v", MULTIMODAL: "m"}
UNUSED = ("proj_*", "pe_*", "me", "t2m.*", "v2m.*", "fc_vtom.*", "embed_positions._float_tensor")
"""Tensors that are saved but never read by the published forward pass (the last one marks a
device)."""
LAYER_NAMES = {
    "attention.qkv.weight": "attn.in_proj_weight",
    "attention.qkv.bias": "attn.in_proj_bias",
    "attention.out": "attn.out_proj",
    "norm_attention": "ln_1",
    "norm_attended": "ln_12",
    "norm_ffn": "ln_2",
    "norm_fed": "ln_22",
    "ffn.0": "mlp.c_fc",
    "ffn.3": "mlp.c_proj",
}
BUFFERS = (".mean", ".scale")
"""Endings of our input standardisation, which the published code does not have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A published checkpoint in our terms."""

    config: ModelConfig
    spec: FeatureSpec
    weights: dict[str, Tensor]
    unused: list[str]
    """Names of tensors the forward pass never reads; they are left behind."""
    sha256: str
    """Of the file."""


def published_name(name: str) -> str:
    """Our tensor name -> the published one (without `module.`)."""
    kind, _, rest = name.partition(".")
    if kind == "mixing":
        return "plus_p"

    part, _, rest = rest.partition(".")
    short = SHORT[part]
    if kind == "inputs":
        return f"fc_{short}dimtr.{rest.removeprefix('linear.')}"
    if kind == "starts":
        if rest == "tokens":
            return f"embedding_{short}"
        norm, _, field = rest.partition(".")
        return f"{'ln_prepe' if norm == 'norm_before' else 'ln_pre'}_{short}.{field}"
    if kind == "stacks":
        index, _, inner = rest.partition(".")
        # nn.MultiheadAttention's in_proj_weight has no dot before `weight`, so LAYER_NAMES has its
        # two tensors whole; of other modules it has the name, and the ending stays.
        ours = next(k for k in LAYER_NAMES if inner == k or inner.startswith(f"{k}."))
        return f"transformer_{short}.{index}.{LAYER_NAMES[ours]}{inner.removeprefix(ours)}"

    stem = {"norms": "ln_post", "pools": "mix", "heads": "mlp"}[kind]
    return f"{stem}_{short}" + (f".{rest}" if rest else "")


def read_published(path: Path, *, num_heads: int, features: FeatureSpec | None = None) -> Imported:
    """Read a `.pth` of the published code. All sizes come from its tensors but the number of
    attention heads.

    `features`: what the model was trained on, if it is known; its widths must be the checkpoint's.
    Raises InputError for a file that is no such checkpoint, naming missing, unexpected and
    misshapen tensors.
    """
    tensors = _load(path)
    config, dims = _sizes(path, tensors, num_heads)

    # Names and shapes without memory: the published model has 1024-wide stacks.
    with torch.device("meta"):
        state = build_model(config, dims).state_dict()
    wanted = {ours: x.shape for ours, x in state.items() if not ours.endswith(BUFFERS)}

    unused = _check_names(path, tensors, {published_name(ours) for ours in wanted}, config)
    weights = {ours: _weight(path, tensors, ours, shape) for ours, shape in wanted.items()}
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if features is not None and features.dims != dims:
        raise InputError(
            f"--features: widths {_words(features.dims)}, the checkpoint takes {_words(dims)}"
        )

    # Its own digest where the encoders' ones are not known: never equal to those of a store.
    unknown = {
        m.value: EncoderSpec(
            name=UNKNOWN_ENCODER,
            revision="",
            weights_sha256=f"unknown-{sha256}",
            dim=d,
            max_length=0,
        )
        for m, d in dims.items()
    }
    return Imported(
        config=config,
        spec=features or FeatureSpec(encoders=unknown),
        weights=weights,
        unused=unused,
        sha256=sha256,
    )


def _sizes(
    path: Path, tensors: Mapping[str, Tensor], num_heads: int
) -> tuple[ModelConfig, dict[Modality, int]]:
    """The config and the features' widths that the tensors tell. Raises InputError."""
    layers = [int(m[1]) for k in tensors if (m := re.match(r"transformer_m\.(\d+)\.", k))]
    if not layers:
        raise InputError(
            f"{path}: no tensor of a multimodal layer (transformer_m.0.*); is it a checkpoint of "
            "the published LFMIM code?"
        )

    def shape(name: str, *, axes: int) -> list[int]:
        if name not in tensors:
            raise InputError(f"{path}: missing tensor: {name}")
        if tensors[name].dim() != axes:
            raise InputError(
                f"{path}: {name} has shape {list(tensors[name].shape)}; {axes} axes are expected"
            )
        return list(tensors[name].shape)

    # The uni-modal tokens are vectors, the multimodal ones a matrix: their widths tell d_model, and
    # how many FEX tokens there are.
    (d_model,), (fex, _) = shape("embedding_t", axes=1), shape("embedding_m", axes=2)
    if num_heads < 1 or d_model % num_heads:
        raise InputError(
            f"--num_heads: {num_heads} does not divide the checkpoint's width {d_model}"
        )

    # Dropout and the cut of audio leave no trace in the tensors: those are the published code's.
    # Pooling has a weight per position, the learned first token's included: length + 1.
    lengths = {f"max_{m}": shape(f"mix_{SHORT[m]}", axes=1)[0] - 1 for m in MODALITIES}
    config = ModelConfig(
        name="upstream",
        d_model=d_model,
        num_heads=num_heads,
        num_layers=1 + max(layers),
        fex_tokens=fex,
        dim_feedforward=shape("transformer_m.0.mlp.c_fc.weight", axes=2)[0],
        **lengths,  # type: ignore[arg-type]
        audio_excess="cut",
        dropout_attention=0.2,
        dropout_ffn=0.1,
        dropout_embedding=0.25,
    )
    return config, {m: shape(f"fc_{SHORT[m]}dimtr.weight", axes=2)[1] for m in MODALITIES}


def _check_names(
    path: Path, tensors: Mapping[str, Tensor], wanted: set[str], config: ModelConfig
) -> list[str]:
    """Names of tensors that the forward pass never reads. Raises InputError unless the others are
    those that are `wanted`."""
    missing = sorted(wanted - set(tensors))
    rest = sorted(set(tensors) - wanted)
    unused = [k for k in rest if any(fnmatch(k, pattern) for pattern in UNUSED)]
    extra = [k for k in rest if k not in unused]

    if missing or extra:
        differences = (("missing", missing), ("unexpected", extra))
        told = [f"{what}: {', '.join(found)}" for what, found in differences if found]
        raise InputError(
            f"{path}: not the tensors of a published LFMIM checkpoint with {config.num_layers} "
            f"multimodal layers; {'; '.join(told)}"
        )
    return unused


def _weight(path: Path, tensors: Mapping[str, Tensor], ours: str, shape: torch.Size) -> Tensor:
    """The float32 tensor that we call `ours`. Raises InputError for another shape or a number that
    is not finite."""
    theirs = published_name(ours)
    tensor = tensors[theirs]
    # A uni-modal token is a vector there and a matrix of one row here.
    if ours.startswith("starts.") and ours.endswith(".tokens") and tensor.dim() == 1:
        tensor = tensor[None]

    if tensor.shape != shape:
        classes = f" ({len(default_labels().classes)} classes)" if theirs.startswith("mlp_") else ""
        raise InputError(
            f"{path}: {theirs} has shape {list(tensors[theirs].shape)}, {list(shape)} is "
            f"expected{classes} beside the other tensors"
        )
    # A checkpoint of a run that diverged loads like any other and answers NaN.
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{path}: {theirs} holds values that are not finite")
    return tensor.float()


def _words(dims: Mapping[Modality, int]) -> str:
    return ", ".join(f"{m} {d}" for m, d in dims.items())


def _load(path: Path) -> dict[str, Tensor]:
    """The file's tensors by name, without DDP's `module.`."""
    # weights_only: a pickle from elsewhere could run any code.
    try:
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise InputError(f"{path}: not readable as plain PyTorch weights: {reason}") from error

    if (
        not isinstance(raw, dict)
        or not raw
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in raw.items())
    ):
        raise InputError(f"{path}: not a flat table of named tensors (a state_dict)")
    return {k.removeprefix("module."): v for k, v in raw.items()}


def save_imported(imported: Imported, folder: Path, *, source: str) -> CheckpointMeta:
    """Write it as a checkpoint folder that training.checkpoint.load_model reads; a half-written one
    is never left."""
    # A mean of 0 and a scale of 1, as the model begins: the published code standardises nothing.
    model = build_model(imported.config, imported.spec.dims)
    buffers = {k: v for k, v in model.state_dict().items() if k.endswith(BUFFERS)}
    model.load_state_dict({**buffers, **imported.weights})

    # A score of NaN, not of a guess: no later version is measured against it (docs/model.md).
    meta = CheckpointMeta(
        config=ExperimentConfig(store=source, model=imported.config),
        spec=imported.spec,
        epoch=0,
        history=[],
        best_epoch=-1,
        best_score=float("nan"),
    )
    save_checkpoint(folder, model, meta, {})
    return meta
