"""A family of encoders in one file: found by its checkpoint or its name, visible in the spec."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchaudio
import torchvision

from feature_service.encoders.base import ENCODERS, Encoder, load_encoder, register_encoder
from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.resnet import ResNetEncoder
from feature_service.encoders.weights import build_tiny_encoders
from feature_service.operators.decode import decode_clip
from feature_service.pipeline.stages import (
    ERROR,
    STAGE,
    UNCUT_TOKENS,
    WAVEFORM,
    build_feature_spec,
    build_stage,
    new_row,
)
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.store import read_table, sequences
from lfmim.registry import PLUGINS, load_plugin
from lfmim.schema import FEATURE_COLUMNS, FeatureSpec, InputError, Modality
from tests.support.clips import heard, write_clip
from tests.support.toy import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
(MFCC,) = (x for x in re.findall(r"```python\n(.*?)```", PAGE, flags=re.S) if "Encoder" in x)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[Modality, Path]:
    return build_tiny_encoders(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def mfcc(tmp_path_factory) -> Path:
    """The encoder of docs/extending.md, loaded as a plug-in."""
    file = tmp_path_factory.mktemp("plugin") / "mfcc.py"
    file.write_text(MFCC)
    load_plugin(file)
    return file


@pytest.fixture(autouse=True)
def only_here(mfcc, monkeypatch):
    """Families that a test registers are gone after it."""
    assert set(ENCODERS) >= {"bert", "wav2vec2", "resnet", "mfcc"}
    monkeypatch.setattr(ENCODERS, "_found", dict(ENCODERS._found))


def config_of(tiny, **given: str) -> ExtractConfig:
    sources = {m.value: str(tiny[m]) for m in Modality if f"{m}_family" not in given}
    return ExtractConfig(manifest="m", store="s", encoders=EncoderConfig(**{**sources, **given}))


def waves(*samples: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(scale=0.1, size=n).astype(np.float32) for n in samples]


def run(stage: str, config: ExtractConfig, column: str, values: list) -> list[dict]:
    rows = [new_row({"id": str(i), "video": "", "text": ""}) for i in range(len(values))]
    return build_stage(stage, config)(
        [{**row, column: value} for row, value in zip(rows, values, strict=True)]
    )


def test_the_encoder_of_the_page_makes_the_features_and_the_spec(tiny):
    config = config_of(tiny, audio_family="mfcc")
    spec, plain = build_feature_spec(config), build_feature_spec(config_of(tiny))
    audio = spec.encoders["audio"]
    assert (audio.name, audio.revision, audio.dim, audio.max_length) == ("mfcc", "", 20, 0)
    assert [line.split(":")[0] for line in plain.differences(spec)] == [
        "audio.weights_sha256",
        "audio.dim",
    ]
    given = waves(16_000, 100, 5000)
    rows = run("audio", config, WAVEFORM, given)
    assert [row[ERROR] for row in rows] == [""] * 3
    features = [row[FEATURE_COLUMNS[Modality.AUDIO]] for row in rows]
    assert [(x.dtype, x.shape) for x in features] == [
        (np.float16, (n // 320 + 1, 20)) for n in (16_000, 400, 5000)
    ]
    theirs = torchaudio.transforms.MFCC(
        16_000, n_mfcc=20, melkwargs={"n_fft": 400, "hop_length": 320, "n_mels": 40}
    )(torch.from_numpy(given[0]))
    np.testing.assert_allclose(features[0], theirs.T.numpy(), rtol=2e-3, atol=2e-2)
    (alone,) = run("audio", config, WAVEFORM, given[2:])
    np.testing.assert_array_equal(alone[FEATURE_COLUMNS[Modality.AUDIO]], features[2])


def test_a_checkpoint_finds_its_family_by_itself(tiny, tmp_path):
    @register_encoder("toy-family", modality=Modality.AUDIO)
    class Toy(Encoder):
        dim = 3

        def digest(self) -> str:
            return "d" * 64

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy-family"}))
    found = load_encoder(Modality.AUDIO, str(tmp_path))
    assert type(found) is Toy
    assert (found.spec.name, found.spec.weights_sha256) == (str(tmp_path), "d" * 64)
    assert type(load_encoder(Modality.TEXT, str(tiny[Modality.TEXT]))) is BertEncoder


def test_a_file_that_names_no_family_has_the_papers(tmp_path):
    path = str(tmp_path / "r.pth")
    torch.save(torchvision.models.resnet18(num_classes=7).state_dict(), path)
    found = load_encoder(Modality.VISION, path)
    assert type(found) is ResNetEncoder
    assert found.spec.name == path
    assert load_encoder(Modality.VISION, path, family="resnet").spec == found.spec


def test_the_same_weights_by_another_family_are_another_encoder(tiny):
    """And by their own, named or not, the same one."""

    @register_encoder("bert-negated", modality=Modality.TEXT)
    class Negated(BertEncoder):
        def __call__(self, texts):
            return [-x for x in super().__call__(texts)]

    source = str(tiny[Modality.TEXT])
    plain = build_feature_spec(config_of(tiny))
    named = build_feature_spec(config_of(tiny, text=source, text_family="bert"))
    assert named == plain
    other = build_feature_spec(config_of(tiny, text=source, text_family="bert-negated"))
    assert other.encoders["text"].name == f"bert-negated:{source}"
    (line,) = plain.differences(other)
    assert line.startswith("text.weights_sha256: ")
    assert f"(bert-negated:{source})" in line
    with pytest.raises(InputError, match="loaded other weights than the job began with"):
        build_stage("text", config_of(tiny, text=source, text_family="bert-negated"), spec=plain)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"audio_family": "mfc"},
            r"encoders\.audio_family: the family 'mfc' is not known; known for audio: "
            r".*mfcc, .*wav2vec2.*\. .*--plugin FILE",
        ),
        (
            {"text_family": "mfcc"},
            r"encoders\.text_family: the family 'mfcc' encodes audio; known for text: .*bert, ",
        ),
        (
            {"audio": "vision"},
            r"encoders\.audio: '.*vision': the family 'resnet' encodes vision; known for audio: ",
        ),
        (
            {"vision": "unheard-of"},
            r"encoders\.vision: '.*': the family 'unheard-of' is not known; .*, resnet, ",
        ),
        (
            {"audio_family": "wav2vec2"},
            r"Wav2Vec2FeatureExtractor has weights to load; name its folder or hub id beside the "
            r"family \(.*--encoders\.audio",
        ),
        (
            {"text": "audio", "text_family": "bert"},
            r"encoder '.*audio': is a 'wav2vec2' model; one of bert, .* is needed here",
        ),
    ],
    ids=lambda x: "-".join(x.values()) if isinstance(x, dict) else "",
)
def test_a_family_that_will_not_do_is_one_message_with_those_that_would(
    tiny, tmp_path, given, said
):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "unheard-of"}))
    folders = {**{m.value: str(tiny[m]) for m in Modality}, "unheard-of": str(tmp_path)}
    given = {k: folders[v] if k in set(Modality) else v for k, v in given.items()}
    with pytest.raises(InputError, match=said):
        build_feature_spec(config_of(tiny, **given))


def test_features_of_another_shape_than_the_interfaces_quarantine_their_row(tiny):
    @register_encoder("wide", modality=Modality.AUDIO)
    class Wide(Encoder):
        dim = 3

        def digest(self) -> str:
            return ""

        def __call__(self, waveforms):
            kinds = {1: ((4, 3), np.float16), 2: ((4, 5), np.float16), 3: ((4, 3), np.float32)}
            return [np.zeros(*kinds[len(w)]) for w in waveforms]

    rows = run("audio", config_of(tiny, audio_family="wide"), WAVEFORM, waves(1, 2, 3))
    assert [row[STAGE] for row in rows] == ["", "audio", "audio"]
    assert [row[ERROR] for row in rows] == [
        "",
        "the encoder returned float16 [4, 5], not float16 [T, 3]",
        "the encoder returned float32 [4, 3], not float16 [T, 3]",
    ]


def test_a_text_family_that_counts_no_tokens_may_cut(tiny):
    @register_encoder("first-letters", modality=Modality.TEXT)
    class Letters(Encoder):
        dim, max_length = 1, 4

        def digest(self) -> str:
            return ""

        def __call__(self, texts):
            return [np.array([[ord(c) % 9] for c in t[:4]], np.float16) for t in texts]

    rows = run("text", config_of(tiny, text_family="first-letters"), "text", ["abc", "abcdefg"])
    assert [len(row[FEATURE_COLUMNS[Modality.TEXT]]) for row in rows] == [3, 4]
    assert [row.get(UNCUT_TOKENS) for row in rows] == [None, None]


@pytest.mark.integration
def test_a_plugin_with_the_name_of_a_built_in_family_is_told_so(tmp_path):
    """In a process that has not looked for the built-in ones yet."""
    (tmp_path / "mine.py").write_text(MFCC.replace('("mfcc"', '("wav2vec2"'))
    code = "from lfmim.registry import load_plugin\nload_plugin('mine.py')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "InputError: --plugin mine.py: ValueError: encoder family 'wav2vec2' is registered already"
        in done.stderr
    )


@pytest.mark.integration
@pytest.mark.ray
@pytest.mark.slow
def test_a_family_of_a_plugin_file_extracts_by_the_command(mfcc, tmp_path):
    """The command of docs/extending.md: the workers find the family, too."""
    clip = write_clip(tmp_path / "c.mp4")
    pd.DataFrame({"id": ["c", "t"], "video": ["c.mp4", ""], "text": "今天真高兴"}).to_csv(
        tmp_path / "clips.csv", index=False
    )
    (command,) = re.findall(r"^    lfmim extract (.*\\\n.*)$", PAGE, flags=re.M)
    options = command.replace("\\\n", " ").split()
    assert options[options.index("--plugin") + 1] == "mfcc.py"
    command = [sys.executable, str(ROOT / "jobs" / "extract_features.py"), *options]
    given = {"capture_output": True, "text": True, "check": False, "cwd": tmp_path}
    given["env"] = {k: v for k, v in os.environ.items() if k != PLUGINS}
    absent = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "extract_features.py"), *options], **given
    )
    assert absent.returncode == 2, absent.stderr[-2000:]
    assert "--plugin mfcc.py: no such file" in absent.stderr
    (tmp_path / "mfcc.py").write_text(MFCC)
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "extract_features.py"), *options], **given
    )
    assert done.returncode == 0, done.stderr[-2000:]
    spec, table = FeatureSpec.load(tmp_path / "features"), read_table(tmp_path / "features")
    assert (spec.encoders["audio"].name, spec.dims[Modality.AUDIO]) == ("mfcc", 20)
    found = dict(zip(table["id"].to_pylist(), sequences(table, Modality.AUDIO), strict=True))
    assert found["t"] is None
    waveform = heard(decode_clip(clip, key="c"))
    (expected,) = load_encoder(Modality.AUDIO, "", family="mfcc")([waveform])
    np.testing.assert_allclose(found["c"], expected, atol=0.02)
