"""Rows in batches of like lengths: a row's features are its own, whatever is beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel, BertTokenizer, Wav2Vec2FeatureExtractor

from feature_service.encoders import bert, wav2vec2
from feature_service.encoders.base import ENCODERS, Encoder, load_encoder, register_encoder
from feature_service.encoders.batches import passes
from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.face_expression import FOLDER, FaceExpressionEncoder
from feature_service.encoders.precision import computing, resolve_precision
from feature_service.encoders.resnet import ResNetEncoder
from feature_service.encoders.wav2vec2 import Wav2Vec2Encoder
from feature_service.encoders.weights import build_tiny_encoders, weights_sha256
from feature_service.encoders.whisper import WhisperEncoder
from feature_service.pipeline.stages import build_feature_spec
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import FeatureSpec, InputError, Modality

SPEECH = {
    **{name: (name, {}) for name in wav2vec2.FAMILIES},
    # the norms of wav2vec2-large, of a HuBERT with batch norm before its positions, and a stack of
    # convolutions as data2vec has five of
    "wav2vec2, layer norm": (
        "wav2vec2",
        {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    ),
    "hubert, batch norm": ("hubert", {"conv_pos_batch_norm": True}),
    "data2vec-audio, five": ("data2vec-audio", {"num_conv_pos_embeddings": 5}),
}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of b from a, as a share of a's norm."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """One of SPEECH -> folder of a random checkpoint, made once."""
    root = tmp_path_factory.mktemp("speech")

    def make(name: str) -> Path:
        folder = root / name.replace(", ", "-")
        if not folder.is_dir():
            family, more = SPEECH[name]
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "intermediate_size": 48, "conv_dim": (16,) * 7, "num_buckets": 16,
                     "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
                     "conv_pos_kernel_size": 3, "initializer_range": 0.2} | more  # fmt: skip
            torch.manual_seed(0)
            model = AutoModel.from_config(transformers.CONFIG_MAPPING[family](**sizes))
            for module in model.modules():
                # as after training: a shift that a padded row must not see
                if isinstance(module, nn.BatchNorm1d | nn.GroupNorm):
                    nn.init.uniform_(module.bias, 0.5, 1)
            model.save_pretrained(folder)
            Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[Modality, Path]:
    return build_tiny_encoders(tmp_path_factory.mktemp("encoders") / "tiny")


@given(lengths=st.lists(st.integers(1, 200), max_size=40), step=st.integers(1, 60),
       budget=st.integers(0, 500))  # fmt: skip
def test_the_shape_of_a_pass_follows_from_each_of_its_rows(lengths, step, budget):
    found = list(passes(lengths, step=step, budget=budget))
    assert sorted(i for one in found for i in one.members) == list(range(len(lengths)))
    for one in found:
        assert 0 < len(one.members) <= one.rows
        for i in one.members:
            (alone,) = passes([lengths[i]], step=step, budget=budget)
            assert (one.rows, one.length) == (alone.rows, alone.length)
            assert (lengths[i] < one.length) if budget else (lengths[i] == one.length)


@pytest.mark.parametrize("name", SPEECH)
def test_speech_in_batches_is_what_transformers_gives_a_waveform_alone(speech, name):
    folder = speech(name)
    rng = np.random.default_rng(0)
    # a frame less and more than a second's padding; not a whole frame at the end
    given = [
        rng.normal(0.1, 0.1, n).astype(np.float32) for n in (400, 719, 9000, 16_079, 16_080, 17_000)
    ]
    encoder = Wav2Vec2Encoder(str(folder), budget=200)
    family = AutoModel.from_pretrained(folder).eval()
    for wave, found in zip(given, encoder(given), strict=True):
        normed = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        with torch.inference_mode():
            alone = family(torch.from_numpy(normed)[None]).last_hidden_state[0].numpy()
        assert found.shape == alone.shape
        assert distance(alone, found) < 1e-3
    # the layers that hide the padding are no others, and the hash of the weights is the folder's
    plain = Wav2Vec2Encoder(str(folder))
    assert encoder.spec == plain.spec
    assert weights_sha256(encoder.model) == weights_sha256(plain.model)


def test_without_its_two_layers_padding_would_be_seen(speech):
    """What the test above would show, were they not there."""
    rng = np.random.default_rng(0)
    x_BS = torch.zeros(1, 16_080 + 8000)
    x_BS[0, :16_080] = torch.from_numpy(rng.normal(size=16_080))
    mask_BS = torch.arange(24_080)[None] < 16_080
    for name in ("wav2vec2", "hubert, batch norm", "data2vec-audio, five"):
        model = AutoModel.from_pretrained(speech(name)).eval()
        with torch.inference_mode():
            alone = model(x_BS[:, :16_080]).last_hidden_state[0].numpy()
            padded = model(x_BS, attention_mask=mask_BS).last_hidden_state[0, : len(alone)].numpy()
        assert distance(alone, padded) > 5e-3, name


def values_of(modality: Modality, sizes: list[int], seed: int) -> list:
    rng = np.random.default_rng(seed)
    if modality is Modality.TEXT:
        letters = np.array(list("天今真高兴abcxyz"))
        return ["".join(rng.choice(letters, n)) for n in sizes]
    if modality is Modality.AUDIO:
        return [rng.normal(0, 0.1, 311 * n).astype(np.float32) for n in sizes]
    return [rng.integers(0, 256, (1 + n % 7, 24, 24, 3), dtype=np.uint8) for n in sizes]


# of texts those that hide padding each in another way; test_families.py has them all
FAMILIES = ["bert", "deberta-v2", "modernbert", "mpnet", *SPEECH]
FAMILIES += ["whisper", "resnet", "face_expression_net"]


@pytest.fixture(scope="module")
def batching(speech, tiny, tmp_path_factory):
    """One of FAMILIES -> an encoder with passes of several rows, made once."""
    root, made = tmp_path_factory.mktemp("others"), {}

    def build(name: str) -> Encoder:
        if name in SPEECH:
            return Wav2Vec2Encoder(str(speech(name)), budget=200)
        if name == "resnet":
            return ResNetEncoder(str(tiny[Modality.VISION]), batch_size=5)
        if name == "face_expression_net":
            return FaceExpressionEncoder(str(FOLDER), batch_size=5)
        torch.manual_seed(0)
        if name == "whisper":
            config = transformers.WhisperConfig(
                d_model=16, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=64,
                pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
                init_std=0.3,
            )  # fmt: skip
            transformers.WhisperModel(config).save_pretrained(root / name)
            transformers.WhisperFeatureExtractor().save_pretrained(root / name)
            return WhisperEncoder(str(root / name), batch_size=3)
        tokenizer = BertTokenizer.from_pretrained(tiny[Modality.TEXT])
        plain = transformers.CONFIG_MAPPING[name]()
        sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2,
                 "num_attention_heads": 2, "intermediate_size": 48, "embedding_size": 32,
                 "max_position_embeddings": 130, "pad_token_id": 0,
                 "initializer_range": 0.2}  # fmt: skip
        config = type(plain)(**{k: v for k, v in sizes.items() if hasattr(plain, k)})
        AutoModel.from_config(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        return BertEncoder(str(root / name), budget=100)

    return lambda name: (
        made.setdefault(name, None) or made.__setitem__(name, build(name)) or made[name]
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_has_the_same_bytes_in_any_company(batching, name):
    encoder = batching(name)
    few = name == "whisper"  # every window is 30 s

    @settings(max_examples=2 if few else 5)
    @given(sizes=st.lists(st.integers(2, 90), min_size=1, max_size=2),
           others=st.lists(st.integers(2, 90), max_size=2 if few else 7),
           seed=st.integers(0, 99), data=st.data())  # fmt: skip
    def holds(sizes, others, seed, data):
        mine = values_of(encoder.modality, sizes, seed)
        theirs = values_of(encoder.modality, others, seed + 1)
        order = data.draw(st.permutations(range(len(mine) + len(theirs))))
        together = encoder([[*mine, *theirs][i] for i in order])
        for i, value in enumerate(mine):
            np.testing.assert_array_equal(together[order.index(i)], encoder([value])[0])

    holds()


def test_rows_that_fill_a_pass_to_the_last_token_are_what_they_are_alone(batching):
    """Then no padding row is left, and all are of one length: transformers would drop the mask, and
    compute without."""
    encoder = batching("bert")
    texts = values_of(Modality.TEXT, [14] * 6, 0)  # and CLS and SEP: 16 tokens, LENGTH_STEP
    assert {encoder.count_tokens(text) for text in texts} == {bert.LENGTH_STEP}
    for text, found in zip(texts, encoder(texts), strict=True):
        np.testing.assert_array_equal(encoder([text])[0], found)


PRECISE = ["bert", "wav2vec2", "wavlm", "data2vec-audio", "whisper", "resnet"]


@pytest.mark.parametrize("name", PRECISE)
def test_bf16_is_near_float32_and_is_recorded(batching, name):
    encoder = batching(name)
    values = values_of(encoder.modality, [20, 60], 0)
    plain = encoder(values)
    encoder.precision = "bf16"
    try:
        found = encoder(values)
    finally:
        encoder.precision = "fp32"
    errors = [distance(a, b) for a, b in zip(plain, found, strict=True)]
    assert 1e-4 < max(errors) < 0.05
    assert np.isfinite(np.concatenate(found)).all()


def test_precision_by_device_and_by_what_was_measured():
    assert resolve_precision("auto", "cpu", measured="tf32") == "fp32"
    assert resolve_precision("auto", "cuda", measured="tf32") == "tf32"
    assert resolve_precision("auto", "cuda:1", measured="fp32") == "fp32"
    assert resolve_precision("bf16", "cpu", measured="tf32") == "bf16"
    assert resolve_precision("fp32", "cuda", measured="tf32") == "fp32"
    with pytest.raises(InputError, match=r"precision: tf32 is a GPU's; .*gpus_per_worker"):
        resolve_precision("tf32", "cpu", measured="tf32")


def test_tf32_is_for_the_families_that_it_was_measured_for(batching):
    names = ("bert", "wav2vec2", "whisper", "resnet", "data2vec-audio")
    found = {name: batching(name).precision_on("cuda") for name in names}
    assert found == dict.fromkeys(names, "tf32") | {"data2vec-audio": "fp32"}


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_set_for_the_pass_and_put_back_after_it(precision):
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()

    def fail() -> None:
        with computing(precision, "cpu"):
            assert flags() == (precision == "tf32",) * 2
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
            assert torch.is_inference_mode_enabled()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert flags() == before
    assert not torch.is_autocast_enabled("cpu")


def test_a_spec_tells_the_precision_and_does_not_compare_it(tiny):
    def spec(**given) -> FeatureSpec:
        sources = {m.value: str(tiny[m]) for m in (Modality.TEXT, Modality.VISION)}
        encoders = EncoderConfig(**sources, audio_family="mfcc_pitch")
        return build_feature_spec(
            ExtractConfig(manifest="m", store="s", encoders=encoders, **given)
        )

    plain, gpu, half = spec(), spec(gpus_per_worker=0.5), spec(precision="bf16")
    told = [{m: e.precision for m, e in x.encoders.items()} for x in (plain, gpu, half)]
    # no network, no other arithmetic
    assert told == [{"text": x, "audio": "fp32", "vision": x} for x in ("fp32", "tf32", "bf16")]
    for other in (gpu, half):
        assert plain.differences(other) == other.differences(plain) == []
        assert other.fingerprint == plain.fingerprint
        assert FeatureSpec.from_json(other.to_json()) == other
    # as stores of before there was a choice have it, and as their readers read it
    assert "precision" not in plain.to_json()
    with pytest.raises(InputError, match="tf32 is a GPU's"):
        spec(precision="tf32")
    with pytest.raises(InputError, match="precision"):
        spec(precision="fp8")


def test_an_encoder_that_computes_by_itself_has_fp32_alone(monkeypatch):
    monkeypatch.setattr(ENCODERS, "_found", dict(ENCODERS._found))

    @register_encoder("own-arithmetic", modality=Modality.AUDIO)
    class Own(Encoder):
        dim = 1

    found = load_encoder(Modality.AUDIO, "", family="own-arithmetic", precision="bf16")
    assert found.precision == "fp32"
