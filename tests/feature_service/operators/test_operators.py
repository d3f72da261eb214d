"""Operators on clips made here; the real clips are in test_media.py."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.resnet import ResNetEncoder, load_resnet
from feature_service.encoders.wav2vec2 import CHUNK, Wav2Vec2Encoder
from feature_service.encoders.weights import build_tiny_encoders
from feature_service.operators.decode import ClipError, decode_clip, sample_frame_indices
from feature_service.operators.face import FaceCropper
from lfmim.data.demo_corpus import make_clip
from lfmim.schema import InputError

LABELS = {"text": "sadness", "audio": "anger", "vision": "happiness"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    return build_tiny_encoders(tmp_path_factory.mktemp("cache") / "tiny")


@given(st.integers(1, 500), st.integers(1, 9), st.integers(1, 9))
def test_frame_sampling(frames, segments, per_segment):
    index = sample_frame_indices(frames, segments=segments, frames_per_segment=per_segment, key="k")
    assert len(index) == segments * per_segment
    assert (np.diff(index) >= 0).all()
    assert 0 <= index[0] <= index[-1] < frames
    if frames >= segments * (per_segment + 1):  # enough frames in every segment: none twice
        assert len(set(index.tolist())) == len(index)
        counts = np.histogram(index, np.linspace(0, frames, segments + 1).astype(int))[0]
        assert (counts == per_segment).all()


def test_frame_sampling_depends_on_the_id_alone():
    assert (sample_frame_indices(300, key="a") == sample_frame_indices(300, key="a")).all()
    assert (sample_frame_indices(300, key="a") != sample_frame_indices(300, key="b")).any()


def test_demo_clip_is_h264_and_aac_and_decodes(tmp_path):
    path = tmp_path / "c.mp4"
    text = make_clip(path, LABELS, key="k")
    with av.open(str(path)) as container:
        assert [s.codec_context.name for s in container.streams] == ["h264", "aac"]
    clip = decode_clip(path, key="k")
    assert clip.frames.shape == (64, 256, 256, 3)
    assert abs(len(clip.waveform) / clip.sample_rate - 2.0) < 0.06
    assert text.endswith("。")
    again = tmp_path / "d.mp4"
    make_clip(again, LABELS, key="k")
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_files_that_are_no_media(tmp_path, content):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(ClipError):
        decode_clip(path, key="k")


def test_truncated_clip(tmp_path):
    make_clip(tmp_path / "c.mp4", LABELS, key="k")
    whole = (tmp_path / "c.mp4").read_bytes()
    (tmp_path / "t.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ClipError):
        decode_clip(tmp_path / "t.mp4", key="k")


@pytest.mark.parametrize(
    "size", [(640, 24), (16, 16), (24, 640), (4096, 16), (2, 2), (320, 19), (20, 20), (21, 400)]
)
def test_frames_too_narrow_for_a_face_have_none(size):
    frames = np.random.default_rng(0).integers(0, 255, (3, size[1], size[0], 3), dtype=np.uint8)
    found = FaceCropper()(frames)
    assert found.crops is None
    assert not found.face_found.any()


def test_text_features_have_their_true_length(tiny):
    encode = BertEncoder(str(tiny["text"]))
    short, long = encode(["今天真高兴", "好" * 200])
    assert short.shape == (7, 64)
    assert long.shape == (80, 64)
    assert short.dtype == np.float16
    assert encode.tokenizer.unk_token_id not in encode.tokenizer("今天真高兴，abc")["input_ids"]
    np.testing.assert_array_equal(encode(["x", "今天真高兴"])[1], short)


def test_audio_features_follow_the_20_ms_grid_also_when_chunked(tiny):
    encode = Wav2Vec2Encoder(str(tiny["audio"]))
    rng = np.random.default_rng(0)
    for samples in (10, 400, 719, 720, 16_000, CHUNK + 5000):
        (x,) = encode([rng.normal(size=samples).astype(np.float32)])
        assert x.shape == ((max(samples, 400) - 400) // 320 + 1, 64)
        assert np.isfinite(x).all()


def test_vision_features_do_not_depend_on_the_batch(tiny):
    rng = np.random.default_rng(0)
    crops = [rng.integers(0, 255, (n, 64, 64, 3), dtype=np.uint8) for n in (3, 5)]
    crops[1][2] = crops[1][1]
    together = ResNetEncoder(str(tiny["vision"]), batch_size=3)(crops)
    for x, crop in zip(together, crops, strict=True):
        np.testing.assert_allclose(
            x, ResNetEncoder(str(tiny["vision"]))([crop])[0], rtol=2e-3, atol=2e-3
        )
    np.testing.assert_array_equal(together[1][1], together[1][2])


@pytest.mark.parametrize(
    ("prefix", "nest", "classes"), [("", None, 1000), ("module.", "state_dict", 7)]
)
def test_torchvision_resnet18_checkpoints_give_the_same_features(tmp_path, prefix, nest, classes):
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=classes).eval()
    state = {prefix + k: v for k, v in theirs.state_dict().items()}
    torch.save({nest: state} if nest else state, tmp_path / "r.pth")
    theirs.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        ours = load_resnet(str(tmp_path / "r.pth"), None).eval()(x).pooler_output.flatten(1)
        torch.testing.assert_close(ours, theirs(x), atol=1e-5, rtol=1e-5)


def test_wrong_encoders_are_named(tmp_path):
    torch.save(torchvision.models.resnet34().state_dict(), tmp_path / "r34.pth")
    with pytest.raises(InputError, match=r"r34\.pth: not a ResNet-18"):
        load_resnet(str(tmp_path / "r34.pth"), None)
    with pytest.raises(InputError, match="cannot be loaded"):
        BertEncoder(str(tmp_path))


@pytest.mark.parametrize("budget", [0, 100])
def test_text_features_are_the_same_bytes_in_any_company_and_order(tiny, budget):
    encode = BertEncoder(str(tiny["text"]), budget=budget)
    texts = ["好" * n for n in (1, 3, 14, 15, 30, 90)] + ["今天真高兴"]
    alone = [encode([t])[0] for t in texts]
    for x, y in zip(alone, encode(texts), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(alone[::-1], encode(texts[::-1]), strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(alone, BertEncoder(str(tiny["text"]), budget=0)(texts), strict=True):
        np.testing.assert_allclose(x, y, atol=4e-3)  # padding is masked


def test_vision_features_are_the_same_bytes_in_any_company_and_order(tiny):
    encode = ResNetEncoder(str(tiny["vision"]))
    crops = [
        np.random.default_rng(n).integers(0, 255, (n, 64, 64, 3), dtype=np.uint8)
        for n in (1, 3, 7, 9)
    ]
    alone = [encode([c])[0] for c in crops]
    for x, y in zip(alone[::-1], encode(crops[::-1]), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("wrap", "nest"),
    [
        ("backbone", "model"),
        ("sequential", "net"),
        ("backbone", "model_state_dict"),
    ],
)
def test_rafdb_layouts(tmp_path, wrap, nest):
    theirs = torchvision.models.resnet18(num_classes=7)
    state = {f"module.backbone.{k}": v for k, v in theirs.state_dict().items()}
    if wrap == "sequential":
        body = torch.nn.Sequential(*list(theirs.children())[:-1])
        state = {f"module.features.{k}": v for k, v in body.state_dict().items()}
    torch.save({nest: state, "epoch": 3}, tmp_path / "r.pth")
    ours = load_resnet(str(tmp_path / "r.pth"), None).state_dict()
    torch.testing.assert_close(
        ours["encoder.stages.3.layers.1.layer.1.convolution.weight"],
        theirs.layer4[1].conv2.weight.detach(),
    )


def test_other_architectures_are_named(tmp_path, tiny):
    for build, name in (
        (torchvision.models.resnet50, "ResNet-50"),
        (torchvision.models.vgg11, "VGG"),
    ):
        with torch.device("meta"):
            state = {k: v.shape for k, v in build().state_dict().items()}
        torch.save({k: torch.zeros(()).expand(s) for k, s in state.items()}, tmp_path / "x.pth")
        with pytest.raises(InputError, match=f"looks like {name}"):
            load_resnet(str(tmp_path / "x.pth"), None)
    with pytest.raises(InputError, match="'wav2vec2' model; one of bert, "):
        BertEncoder(str(tiny["audio"]))
