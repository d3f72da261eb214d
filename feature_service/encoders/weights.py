"""Loading encoders: hub ids, local folders, RAF-DB ResNet-18 checkpoints, and the `tiny` preset
made on the spot."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ResNetConfig,
    ResNetModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)
from transformers.utils import logging as transformers_logging

from lfmim.schema import EncoderSpec, InputError, Modality, listed
from lfmim.storage import new_folder

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CJK = range(0x4E00, 0xA000)
PUNCTUATION = "，。！？、；：“”‘’（）《》…—"


def build_tiny_encoders(folder: Path, seed: int = 0) -> dict[Modality, Path]:
    """Write small encoders of the paper's architectures with seeded random weights; reuse them if
    they are there.

    A folder is complete or absent: it is written beside and renamed, so several processes may build
    it at once.
    """
    if not folder.is_dir():
        with new_folder(folder, first=True) as scratch, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _save_tiny_text(scratch / Modality.TEXT)
            _save_tiny_audio(scratch / Modality.AUDIO)
            _save_tiny_vision(scratch / Modality.VISION)
    return {m: folder / m.value for m in Modality}


def _save_tiny_text(folder: Path) -> None:
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *map(chr, range(33, 127)),
        *PUNCTUATION,
        *map(chr, CJK),
    ]
    vocabulary += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
        )
    )
    # initializer_range: at BERT's 0.02 a random model barely mixes its tokens.
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=512,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)


def _save_tiny_audio(folder: Path) -> None:
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm="group",
        initializer_range=0.1,
    )
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False).save_pretrained(folder)


def _save_tiny_vision(folder: Path) -> None:
    config = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[2, 2, 2, 2], layer_type="basic"
    )
    ResNetModel(config).save_pretrained(folder)


def weights_sha256(module: nn.Module) -> str:
    """Hex digest over names, dtypes, shapes and bytes of the state dict."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


UNUSED = re.compile(r"(^|\.)(pooler\..*|masked_spec_embed|num_batches_tracked)$")
"""Tensors that do not reach the features: poolers, and what only training reads."""
NAMES_SHOWN = 20


def from_pretrained(loader: Any, source: str, revision: str | None, **kwargs: Any) -> Any:
    """`loader.from_pretrained` for a folder or hub id.

    Raises InputError if it cannot be loaded, or if a tensor that the features depend on is not in
    the checkpoint or has another shape there: transformers would fill it with random numbers,
    others at each load.
    """
    local = Path(source).is_dir()
    network = issubclass(loader, nn.Module)
    expected = {"BertModel": "bert", "Wav2Vec2Model": "wav2vec2", "ResNetModel": "resnet"}.get(
        loader.__name__
    )
    info: dict[str, Any] = {}
    try:
        if local and expected and (Path(source) / "config.json").is_file():
            found = json.loads((Path(source) / "config.json").read_text(encoding="utf-8")).get(
                "model_type", expected
            )
            if found != expected:
                raise InputError(
                    f"encoder {source!r}: is a {found!r} model; a {expected!r} one is needed here"
                )
        if network:
            kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded = loader.from_pretrained(
            source, revision=revision or "main", local_files_only=local, **kwargs
        )
        if network:
            loaded, info = loaded
    except InputError:
        raise
    except Exception as error:  # damaged files raise many kinds: safetensors', pickle's, torch's
        lines = str(error).splitlines()
        hint = "Give a folder made by save_pretrained, or a hub id that this machine can reach."
        if not local and huggingface_hub.constants.HF_HUB_OFFLINE:
            hint = (
                f"HF_HUB_OFFLINE is set and {source} at revision {revision or 'main'} is not in "
                f"the local cache ({huggingface_hub.constants.HF_HUB_CACHE}): download it first, "
                "unset HF_HUB_OFFLINE, or give a folder."
            )
        raise InputError(
            f"encoder {source!r}: cannot be loaded as {loader.__name__}: "
            f"{lines[0] if lines else error!r}. {hint}"
        ) from error
    if network:
        _check_complete(loaded, source, info)
    return loaded


def _check_complete(model: nn.Module, source: str, info: dict[str, Any]) -> None:
    """Raise InputError for tensors missing or misshapen in what transformers has loaded. Unused
    ones become 0: random, they would change the weights' hash."""
    missing = sorted(set(info["missing_keys"]))
    misshapen = sorted(
        (name, tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]
    )
    state = model.state_dict()
    for name in (*missing, *(name for name, *_ in misshapen)):
        if UNUSED.search(name) and name in state:
            state[name].zero_()
    missing = [name for name in missing if not UNUSED.search(name)]
    wrong = [
        f"{name}: {_shape(there)}, not {_shape(here)}"
        for name, there, here in misshapen
        if not UNUSED.search(name)
    ]
    problems = [
        f"{_count(len(names))} {what} ({listed(names, most=NAMES_SHOWN)})"
        for names, what in ((missing, "missing"), (wrong, "of another shape"))
        if names
    ]
    if problems:
        raise InputError(
            f"encoder {source!r}: not a complete {type(model).__name__} as its config.json "
            f"describes it: {' and '.join(problems)}. With random numbers in their place every "
            "load would give other features. Give the whole checkpoint, with the config.json that "
            "belongs to it."
        )


def _count(n: int) -> str:
    return f"{n} tensor{'s' * (n > 1)}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def resolved_revision(source: str, revision: str | None) -> str:
    """The commit of a hub model that a branch, a tag or no revision stands for now; "" for a folder
    or file.

    Where the hub cannot be asked, the cache's; what is in neither comes back as it was given.
    """
    if Path(source).exists() or source.endswith((".pth", ".pt")):
        return ""
    try:
        found = huggingface_hub.hf_hub_download(source, "config.json", revision=revision or "main")
    except Exception:  # loading the model says why
        return revision or ""
    return Path(found).parent.name


def load_resnet(source: str, revision: str | None) -> ResNetModel:
    """A ResNet from a folder, a hub id, or a .pth/.pt file with a torchvision ResNet-18 state
    dict."""
    if not source.endswith((".pth", ".pt")):
        return from_pretrained(ResNetModel, source, revision)
    try:
        raw = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, UnpicklingError for code among them
        raise InputError(
            f"{source}: cannot be read as a weights-only checkpoint: {error!r:.300}"
        ) from error
    raw = _state_dict(raw)
    if raw is None:
        raise InputError(f"{source}: holds no state dict of tensors")
    plain = _torchvision_names(raw)
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
    expected = model.state_dict()
    wrong = [k for k, v in state.items() if k not in expected or expected[k].shape != v.shape]
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        raise InputError(
            f"{source}: not a ResNet-18 (it looks like {_looks_like(plain)}): "
            f"{_count(len(missing))} missing ({listed(missing, most=NAMES_SHOWN)}), "
            f"{len(wrong)} unknown or of another shape ({listed(wrong, most=NAMES_SHOWN)})"
        )
    model.load_state_dict(state, strict=False)
    return model


def _state_dict(raw: Any) -> dict[str, torch.Tensor] | None:
    """The state dict in a checkpoint, at the top or under one of the usual keys."""
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
    if not part[0].startswith("layer") or len(part) < 4:
        return key
    prefix = f"encoder.stages.{int(part[0][5:]) - 1}.layers.{part[1]}"
    if part[2] == "downsample":
        return f"{prefix}.shortcut.{'convolution' if part[3] == '0' else 'normalization'}.{part[4]}"
    kind = "convolution" if part[2].startswith("conv") else "normalization"
    return f"{prefix}.layer.{int(part[2][-1]) - 1}.{kind}.{part[3]}"


class WeightedEncoder:
    """What the encoders have in common: a network of a known source, and so a spec.

    They set `model`, `source`, the resolved `revision`, `dim` and, where sequences are cut,
    `max_length`.
    """

    model: Any
    source: str
    revision: str
    dim: int
    max_length: int = 0

    @functools.cached_property
    def spec(self) -> EncoderSpec:
        """Hashes the weights on first use."""
        return EncoderSpec(
            name=self.source,
            revision=self.revision,
            weights_sha256=weights_sha256(self.model),
            dim=self.dim,
            max_length=self.max_length,
        )
