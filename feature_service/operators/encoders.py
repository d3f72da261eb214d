"""Loading encoders: hub ids, local folders, RAF-DB ResNet-18 checkpoints, and the `tiny` preset made on the spot."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

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

from lfmim.schema import InputError, Modality

transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CJK = range(0x4E00, 0xA000)
PUNCTUATION = "，。！？、；：“”‘’（）《》…—"


def cache_folder() -> Path:
    """$LFMIM_CACHE, else ~/.cache/lfmim."""
    return Path(os.environ.get("LFMIM_CACHE") or Path.home() / ".cache" / "lfmim")


def build_tiny_encoders(folder: Path, seed: int = 0) -> dict[Modality, Path]:
    """Write small encoders of the paper's architectures with seeded random weights; reuse them if they are there.

    A folder is complete or absent: it is written beside and renamed, so several processes may build it at once.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tiny-"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _save_tiny_text(scratch / Modality.TEXT)
            _save_tiny_audio(scratch / Modality.AUDIO)
            _save_tiny_vision(scratch / Modality.VISION)
        try:
            os.rename(scratch, folder)
        except OSError:  # another process was first
            shutil.rmtree(scratch)
    return {m: folder / m.value for m in Modality}


def _save_tiny_text(folder: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 127)), *PUNCTUATION, *map(chr, CJK)]
    vocabulary += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})
    )
    # initializer_range: at BERT's 0.02 a random model barely mixes its tokens.
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        max_position_embeddings=512, initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)


def _save_tiny_audio(folder: Path) -> None:
    config = Wav2Vec2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, feat_extract_norm="group",
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
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def from_pretrained(loader: Any, source: str, revision: str | None, **kwargs: Any) -> Any:
    """`loader.from_pretrained` for a folder or hub id; InputError if it cannot be loaded."""
    local = Path(source).is_dir()
    try:
        return loader.from_pretrained(source, revision=revision or "main", local_files_only=local, **kwargs)
    except (OSError, ValueError, KeyError) as error:
        lines = str(error).splitlines()
        raise InputError(
            f"encoder {source!r}: cannot be loaded as {loader.__name__}: {lines[0] if lines else error!r}. "
            "Give a folder made by save_pretrained, or a hub id that this machine can reach."
        ) from error


def load_resnet(source: str, revision: str | None) -> ResNetModel:
    """A ResNet from a folder, a hub id, or a .pth/.pt file with a torchvision ResNet-18 state dict."""
    if not source.endswith((".pth", ".pt")):
        return from_pretrained(ResNetModel, source, revision)
    try:
        raw = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, UnpicklingError for code among them
        raise InputError(f"{source}: cannot be read as a weights-only checkpoint: {error!r:.300}") from error
    for key in ("state_dict", "model_state_dict"):
        raw = raw.get(key, raw) if isinstance(raw, dict) else raw
    if not isinstance(raw, dict) or not all(isinstance(v, torch.Tensor) for v in raw.values()):
        raise InputError(f"{source}: holds no state dict of tensors")
    plain = {k.removeprefix("module."): v for k, v in raw.items()}
    state = {_hf_name(k): v for k, v in plain.items() if not k.startswith("fc.")}
    model = ResNetModel(ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    ))
    expected = model.state_dict()
    wrong = [k for k, v in state.items() if k not in expected or expected[k].shape != v.shape]
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    if wrong or missing:
        raise InputError(f"{source}: not a ResNet-18: {len(missing)} tensors missing ({', '.join(missing[:3])}), "
                         f"{len(wrong)} unknown or of another shape ({', '.join(wrong[:3])})")
    model.load_state_dict(state, strict=False)
    return model


def _hf_name(key: str) -> str:
    """torchvision's ResNet parameter name -> transformers' one."""
    part = key.split(".")
    if part[0] in ("conv1", "bn1"):
        return ".".join(["embedder.embedder", "convolution" if part[0] == "conv1" else "normalization", *part[1:]])
    if not part[0].startswith("layer") or len(part) < 4:
        return key
    prefix = f"encoder.stages.{int(part[0][5:]) - 1}.layers.{part[1]}"
    if part[2] == "downsample":
        return f"{prefix}.shortcut.{'convolution' if part[3] == '0' else 'normalization'}.{part[4]}"
    kind = "convolution" if part[2].startswith("conv") else "normalization"
    return f"{prefix}.layer.{int(part[2][-1]) - 1}.{kind}.{part[3]}"
