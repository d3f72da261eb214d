"""Tiny random checkpoints of every family: they load, and a row's features are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModel, BertTokenizer, Wav2Vec2FeatureExtractor

from feature_service.encoders import bert, face_expression, vit, wav2vec2
from feature_service.encoders.base import ENCODERS, load_encoder
from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.vit import VisionTransformerEncoder
from feature_service.encoders.weights import build_tiny_encoders
from feature_service.encoders.whisper import WhisperEncoder
from feature_service.operators.crop import Crop
from feature_service.pipeline.stages import WAVEFORM, build_feature_spec, build_stage, new_row
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.demo_corpus import make_clip
from lfmim.data.store import read_table, stored_ids
from lfmim.schema import FEATURE_COLUMNS, ID, FeatureSpec, InputError, Modality
from tests.support.toy import ROOT

TEXTS = [
    "今天真高兴",
    "no",
    "a longer sentence, of many more tokens than the others!",
    "天天天天天天",
]
TEXT_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 130,
    "embedding_size": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SPEECH_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "conv_pos_kernel_size": 3,
    "num_buckets": 16,
    "initializer_range": 0.2,
}
PICTURE_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.2,
}
PYRAMID_SIZES = {
    "swin": {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2],
             "window_size": 4, "initializer_range": 0.2},
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4, "initializer_range": 0.2},
}  # fmt: skip


def config_of(family: str, sizes: dict) -> transformers.PretrainedConfig:
    """The family's config, with those of the sizes that it has a place for."""
    config = transformers.CONFIG_MAPPING[family]()
    known = {k: v for k, v in sizes.items() if hasattr(config, k)}
    return transformers.CONFIG_MAPPING[family](**known)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """family -> folder of a random checkpoint, made once."""
    root = tmp_path_factory.mktemp("families")
    tiny = build_tiny_encoders(root / "tiny")

    def make(family: str) -> Path:
        folder = root / family
        if folder.is_dir():
            return folder
        torch.manual_seed(0)
        if family in bert.FAMILIES:
            tokenizer = BertTokenizer.from_pretrained(tiny[Modality.TEXT])
            sizes = {**TEXT_SIZES, "vocab_size": len(tokenizer)}
            AutoModel.from_config(config_of(family, sizes)).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        elif family in wav2vec2.FAMILIES:
            AutoModel.from_config(config_of(family, SPEECH_SIZES)).save_pretrained(folder)
            Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
        elif family == "whisper":
            config = transformers.WhisperConfig(
                d_model=32, encoder_layers=4, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=64,
                pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
                init_std=0.3,
            )  # fmt: skip
            transformers.WhisperModel(config).save_pretrained(folder)
            transformers.WhisperFeatureExtractor().save_pretrained(folder)
        elif family == "clip":
            vision = config_of("clip_vision_model", PICTURE_SIZES).to_dict()
            text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1,
                    "intermediate_size": 8, "vocab_size": 9}  # fmt: skip
            config = transformers.CLIPConfig(vision_config=vision, text_config=text)
            transformers.CLIPModel(config).save_pretrained(folder)
        else:
            sizes = PYRAMID_SIZES.get(family, PICTURE_SIZES)
            AutoModel.from_config(config_of(family, sizes)).save_pretrained(folder)
        return folder

    return make


def waves(*samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(scale=0.1, size=n).astype(np.float32) for n in samples]


def pictures(*frames: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for n in frames]


def check_rows_are_their_own(encoder, values: list) -> list[np.ndarray]:
    """The same bytes for a row whatever its neighbours and its place among them."""
    together = encoder(values)
    for value, found in zip(values, together, strict=True):
        assert found.dtype == np.float16
        assert found.shape[1] == encoder.dim
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(encoder([value])[0], found)
    for a, b in zip(encoder(values[::-1])[::-1], together, strict=True):
        np.testing.assert_array_equal(a, b)
    # not the same for all: what is tested would be true of constants, too
    assert len({found.tobytes() for found in together}) == len(values)
    return together


@pytest.mark.parametrize("family", bert.FAMILIES)
def test_text_families(checkpoint, family):
    folder = str(checkpoint(family))
    for budget in (0, 100):
        encoder = BertEncoder(folder, budget=budget)
        together = check_rows_are_their_own(encoder, TEXTS)
        tokens = [encoder.count_tokens(text) for text in TEXTS]
        assert [len(x) for x in together] == tokens

    # in a pass of several, padded, what the text alone gives without any padding
    ids = encoder.tokenizer(TEXTS[1], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        alone = encoder.model(input_ids=ids).last_hidden_state[0]
    np.testing.assert_allclose(together[1], alone.numpy(), atol=5e-3)


@pytest.mark.parametrize("family", wav2vec2.FAMILIES)
def test_speech_families(checkpoint, family):
    encoder = load_encoder(Modality.AUDIO, str(checkpoint(family)))
    together = check_rows_are_their_own(encoder, waves(3000, 400, 9000))
    assert [len(x) for x in together] == [9, 1, 27]


@pytest.mark.parametrize("family", sorted(set(vit.FAMILIES) - {"timm_wrapper"}))
def test_vision_families(checkpoint, family):
    encoder = load_encoder(Modality.VISION, str(checkpoint(family)))
    # its config names no size but the usual one
    assert encoder.crop == Crop("aligned", 224 if family == "convnext" else 32)
    encoder.batch_size = 4
    together = check_rows_are_their_own(encoder, pictures(3, 1, 6))
    assert [len(x) for x in together] == [3, 1, 6]


def test_timm_folders(tmp_path):
    timm = pytest.importorskip("timm")
    folder = tmp_path / "timm"
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    args = {"img_size": 32, "embed_dim": 24, "depth": 1}
    cfg = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg, "model_args": args,
              "num_classes": 1000}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(Modality.VISION, str(folder))
    assert (encoder.dim, encoder.crop) == (24, Crop("aligned", 32))
    assert encoder.settings == {"mean": [0.5] * 3, "std": [0.5] * 3}
    check_rows_are_their_own(encoder, pictures(2, 3))


def test_clip_gives_the_same_alone_and_within_the_whole(checkpoint):
    whole = load_encoder(Modality.VISION, str(checkpoint("clip")))
    inside = transformers.CLIPModel.from_pretrained(checkpoint("clip")).vision_model.eval()
    (crops,) = pictures(8)
    x = torch.from_numpy(crops).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = inside((x - whole.mean) / whole.std).pooler_output
    np.testing.assert_allclose(whole([crops])[0], expected.numpy(), atol=5e-3)


def test_the_images_are_what_the_preprocessor_file_says(checkpoint, tmp_path):
    folder = checkpoint("dinov2")
    plain = VisionTransformerEncoder(str(folder))
    other = tmp_path / "dinov2"
    other.symlink_to(folder, target_is_directory=True)
    given = {
        "crop_size": {"height": 24, "width": 24},
        "image_mean": [0.5] * 3,
        "image_std": [1] * 3,
    }
    try:
        (folder / "preprocessor_config.json").write_text(json.dumps(given))
        found = VisionTransformerEncoder(str(folder))
    finally:
        (folder / "preprocessor_config.json").unlink()
    assert (plain.crop.size, found.crop.size) == (32, 24)
    # of two means the features are two, with the same weights
    assert found.spec.weights_sha256 == plain.spec.weights_sha256
    assert found.spec.settings != plain.spec.settings


def test_whisper_windows_and_vectors(checkpoint):
    folder = str(checkpoint("whisper"))
    second = 16_000
    given = waves(30 * second + 5 * second, 100, 2 * second)
    alone = WhisperEncoder(folder)
    together = check_rows_are_their_own(alone, given)
    # ten a second, of the clip's own frames
    assert [len(x) for x in together] == [350, 1, 20]
    assert alone.settings == {"layer": "2", "frames_per_vector": 5, "window_s": 30}

    # what is beyond 30 s is a window of its own
    head, tail = alone([given[0][: 30 * second], given[0][30 * second :]])
    np.testing.assert_array_equal(together[0], np.concatenate([head, tail]))

    for size in (1, 3):
        some = WhisperEncoder(folder, batch_size=size)
        check_rows_are_their_own(some, given[1:])
        np.testing.assert_allclose(some(given[1:])[1], together[2], atol=5e-3, rtol=2e-3)

    # transformers' own, of the whole model: the middle block, five frames a vector
    model = transformers.WhisperModel.from_pretrained(folder).eval()
    mel = alone.mel(given[2], sampling_rate=second, return_tensors="pt").input_features
    with torch.inference_mode():
        states = model.encoder(mel, output_hidden_states=True).hidden_states
    expected = states[2][0, :100].view(20, 5, -1).mean(dim=1)
    np.testing.assert_allclose(together[2], expected.numpy(), atol=5e-3, rtol=2e-3)


@pytest.mark.parametrize("family", ["bert", "roberta", "hubert", "whisper"])
def test_a_layer_or_a_mean_over_layers(checkpoint, family):
    folder = str(checkpoint(family))
    modality = ENCODERS[family].modality
    value = waves(6400)[0] if modality is Modality.AUDIO else TEXTS[0]

    def features(layer: str) -> np.ndarray:
        return load_encoder(modality, folder, layer=layer)([value])[0].astype(np.float32)

    one, two, three, both = (features(layer) for layer in ("1", "2", "3", "1-3"))
    np.testing.assert_allclose(both, (one + two + three) / 3, atol=5e-3, rtol=2e-3)
    assert not np.allclose(one, two, atol=0.05)
    specs = [load_encoder(modality, folder, layer=layer).spec for layer in ("1", "2", "1-3")]
    assert [s.settings["layer"] for s in specs] == ["1", "2", "1-3"]
    # the layer that the family takes anyway, named, is the same encoder
    usual = "2" if family == "whisper" else "3"
    assert load_encoder(modality, folder, layer=usual).spec == load_encoder(modality, folder).spec
    with pytest.raises(InputError, match=rf"encoders\.{modality}_layer: '9' is not in this model"):
        load_encoder(modality, folder, layer="9")


def test_a_layer_of_a_family_without_any_is_refused():
    with pytest.raises(InputError, match=r"encoders\.audio_layer: the family 'mfcc_pitch' has no"):
        load_encoder(Modality.AUDIO, "", family="mfcc_pitch", layer="3")


def test_hand_crafted_speech_features():
    encoder = load_encoder(Modality.AUDIO, "", family="mfcc_pitch")
    time = np.arange(32_000) / 16_000
    tones = [np.sin(2 * np.pi * f * time).astype(np.float32) / 4 for f in (100, 200)]
    low, high, short = check_rows_are_their_own(encoder, [*tones, waves(50)[0]])
    assert [len(x) for x in (low, high, short)] == [100, 100, 12]
    # log2 of the pitch over 100 Hz
    assert np.median(low[:, 20]) == pytest.approx(0, abs=0.05)
    assert np.median(high[:, 20]) == pytest.approx(1, abs=0.05)
    # a tone of amplitude 1/4: a mean square of 1/32
    assert np.median(low[:, 21]) == pytest.approx(np.log10(1 / 32), abs=0.01)


def test_settings_are_in_the_spec_and_set_two_encoders_apart(checkpoint, tmp_path):
    tiny = build_tiny_encoders(tmp_path / "tiny")

    def spec(**given):
        sources = {m.value: str(tiny[m]) for m in Modality} | given
        return build_feature_spec(
            ExtractConfig(manifest="m", store="s", encoders=EncoderConfig(**sources))
        )

    plain = spec()
    assert [e.settings for e in plain.encoders.values()] == [{}, {}, {}]
    assert plain.sampling["crop_size"] == 224
    loose, first = spec(vision_crop="loose"), spec(text_layer="1")
    assert plain.differences(loose) == ["vision.crop: None vs loose"]
    assert plain.differences(first) == ["text.layer: None vs 1"]
    assert len({s.fingerprint for s in (plain, loose, first)}) == 3
    assert Crop.of(loose) == Crop("loose", 224)
    small = spec(vision=str(checkpoint("vit")))
    assert (Crop.of(small), small.sampling["crop_size"]) == (Crop("aligned", 32), 32)


def test_a_stage_takes_the_layer_from_the_settings(checkpoint):
    encoders = EncoderConfig(audio=str(checkpoint("wavlm")), audio_layer="1")
    config = ExtractConfig(manifest="m", store="s", encoders=encoders)
    (wave,) = waves(4000)
    (row,) = build_stage("audio", config)(
        [{**new_row({"id": "a", "video": "", "text": ""}), WAVEFORM: wave}]
    )
    expected = load_encoder(Modality.AUDIO, encoders.audio, layer="1")([wave])[0]
    np.testing.assert_array_equal(row[FEATURE_COLUMNS[Modality.AUDIO]], expected)


def test_code_in_a_checkpoint_is_never_run(checkpoint, tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    for file in checkpoint("bert").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "mine.py").write_text("raise SystemExit('run')")
    for name in ("config.json", "tokenizer_config.json"):
        raw = json.loads((folder / name).read_text())
        raw["auto_map"] = {"AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
        (folder / name).write_text(json.dumps(raw))
    encoder = load_encoder(Modality.TEXT, str(folder))
    assert encoder.spec.weights_sha256 == BertEncoder(str(checkpoint("bert"))).spec.weights_sha256


TEXT_NAMES = sorted(bert.FAMILIES)
AUDIO_NAMES = [*sorted(wav2vec2.FAMILIES), "whisper", "mfcc_pitch"]
VISION_NAMES = [
    "resnet",
    "vit",
    "deit",
    "dinov2",
    "swin",
    "convnext",
    "clip",
    "face_expression_net",
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    labels = {"text": "anger", "audio": "anger", "vision": "sadness"}
    rows = ["id,video,text"]
    for n in range(3):
        text = make_clip(folder / f"{n}.mp4", labels, key=str(n), seed=n)
        rows.append(f"{n},{n}.mp4,{text}")
    (folder / "m.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("turn", range(len(TEXT_NAMES)), ids=TEXT_NAMES)
def test_an_extraction_with_each_family_killed_and_resumed(
    ray_cluster, checkpoint, clips, tmp_path, turn
):
    """All families in as many jobs as text has: a job that is killed after its first part and run
    again has the store of an undisturbed one, to the byte."""
    import ray

    text = TEXT_NAMES[turn]
    audio, vision = (names[turn % len(names)] for names in (AUDIO_NAMES, VISION_NAMES))
    options = ["--encoders.text", str(checkpoint(text))]
    for modality, family in (("audio", audio), ("vision", vision)):
        if family == "mfcc_pitch":
            options += ["--encoders.audio_family", family]
        elif family == "face_expression_net":
            options += ["--encoders.vision", str(face_expression.FOLDER)]
        elif family == "resnet":
            options += ["--encoders.vision", str(build_tiny_encoders(tmp_path / "t")["vision"])]
        else:
            options += [f"--encoders.{modality}", str(checkpoint(family))]

    def extract(store: Path) -> subprocess.Popen:
        words = ["-m", "lfmim", "extract", "--manifest", clips / "m.csv", "--store", store]
        words += ["--rows_per_part", 1, "--storage", tmp_path / "runs", *options]
        address = ray.get_runtime_context().gcs_address
        env = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, *map(str, words)], env=env, stderr=subprocess.PIPE, text=True
        )

    def finish(store: Path) -> None:
        job = extract(store)
        _, said = job.communicate(timeout=240)
        assert job.returncode == 0, said

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(whole)
    job = extract(broken)
    while not list(broken.glob("part-*")):
        assert job.poll() is None, job.communicate()
        time.sleep(0.02)
    job.kill()
    job.wait()
    assert len(stored_ids(broken)) < 3
    finish(broken)

    columns = [ID, *FEATURE_COLUMNS.values()]
    assert read_table(whole).num_rows == 3
    assert read_table(whole, columns).equals(read_table(broken, columns))
    assert FeatureSpec.load(whole) == FeatureSpec.load(broken)
