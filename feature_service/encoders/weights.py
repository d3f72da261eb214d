"""Loading what `save_pretrained` writes, from folders and hub ids, and the `tiny` preset made on
the spot."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
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

from lfmim.schema import InputError, Modality, listed
from lfmim.storage import new_folder

# What a checkpoint lacks is told by `_check_complete`; a bar per model and worker is only noise.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

CJK = range(0x4E00, 0xA000)
PUNCTUATION = "，。！？、；：“”‘’（）《》…—"


def build_tiny_encoders(folder: Path, seed: int = 0) -> dict[Modality, Path]:
    """Write small encoders of the paper's architectures with seeded random weights; reuse them if
    they are there. Several processes may build one folder at once."""
    # A folder is complete or absent: it is written beside and renamed.
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
    # From the folder: BertTokenizer(vocab_file=...) of transformers 5 makes [UNK] of everything.
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
        # viewed as bytes, for numpy has no bfloat16
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


UNUSED = re.compile(r"(^|\.)(pooler\..*|masked_spec_embed|num_batches_tracked)$")
"""Tensors that do not reach the features: poolers, and what only training reads."""
NAMES_SHOWN = 20


def network_of(source: str, revision: str | None, families: Sequence[str]) -> Any:
    """transformers' class for the `model_type` in the source's config.json; of the first of
    `families` where there is none that can be read.

    Raises InputError if it is not one of them.
    """
    found = model_type(source, revision) or families[0]
    if found not in families:
        raise InputError(
            f"encoder {source!r}: is a {found!r} model; {_one_of(families)} is needed here"
        )
    return MODEL_MAPPING[CONFIG_MAPPING[found]]


def without_pooler(network: Any) -> dict[str, Any]:
    """What tells the class `network` to build no pooler, where it has one: of a checkpoint without
    one its random numbers would change the weights' hash, and no feature."""
    known = inspect.signature(network.__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def _one_of(families: Sequence[str]) -> str:
    return f"a {families[0]!r} one" if len(families) == 1 else f"one of {listed(families, most=20)}"


def from_pretrained(
    loader: Any,
    source: str,
    revision: str | None,
    *,
    families: Sequence[str] = (),
    **kwargs: Any,
) -> Any:
    """`loader.from_pretrained` for a folder or hub id. `families`: the `model_type`s whose
    checkpoints a network is in, where that is not its own alone.

    Raises InputError if it cannot be loaded, or if a tensor that the features depend on is not in
    the checkpoint or has another shape there: transformers would fill it with random numbers,
    others at each load.
    """
    if not source:
        raise InputError(
            f"encoders: {loader.__name__} has weights to load; name its folder or hub id beside "
            "the family (--encoders.text, --encoders.audio or --encoders.vision)"
        )

    local = Path(source).is_dir()
    network = issubclass(loader, nn.Module)
    # Asked before loading: transformers loads a checkpoint of another kind with no more than a
    # warning, and fills what it does not find there with random numbers.
    if network:
        found, expected = model_type(source, revision), (loader.config_class.model_type, *families)
        if found not in ("", *expected):
            raise InputError(
                f"encoder {source!r}: is a {found!r} model; {_one_of(expected)} is needed here"
            )

    info: dict[str, Any] = {}
    try:
        # tensors of another shape come back in `info`, to be named with those that are missing
        if network:
            kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded = loader.from_pretrained(
            source, revision=revision or "main", local_files_only=local, **kwargs
        )
        if network:
            loaded, info = loaded
    # damaged files raise many kinds: safetensors', pickle's, torch's
    except Exception as error:
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
    """Raise InputError for tensors missing or misshapen in what transformers has loaded; unused
    ones become 0."""
    missing = sorted(set(info["missing_keys"]))
    misshapen = sorted(
        (name, tuple(there), tuple(here)) for name, there, here in info["mismatched_keys"]
    )

    # Random, as transformers leaves them, they would change the weights' hash at each load.
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
        f"{tensor_count(len(names))} {what} ({listed(names, most=NAMES_SHOWN)})"
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


def tensor_count(n: int) -> str:
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
    # The cache's folder has the commit's name. (transformers 5 sets no _commit_hash on a model that
    # comes from the cache, and a branch's name was recorded in its place.)
    return Path(found).parent.name


def model_type(source: str, revision: str | None) -> str:
    """The `model_type` in the config.json of a folder, or of a hub model at a commit that is in the
    local cache; "" where there is none that can be read."""
    if Path(source).exists():
        config: Any = Path(source, "config.json") if source else None
    else:
        try:
            config = huggingface_hub.try_to_load_from_cache(
                source, "config.json", revision=revision or "main"
            )
        except ValueError:  # no hub id
            return ""

    try:
        found = json.loads(Path(config).read_text(encoding="utf-8"))
        # what timm writes has no model_type
        return str(found.get("model_type", "timm_wrapper" if "pretrained_cfg" in found else ""))
    # no path, no file, no JSON, no object in it: loading the model says which
    except (OSError, ValueError, TypeError, AttributeError):
        return ""
