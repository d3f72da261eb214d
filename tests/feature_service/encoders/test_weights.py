"""Encoders whose weights are not what they seem: incomplete folders, other bytes on a worker, a
moving branch."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from feature_service.encoders.bert import BertEncoder
from feature_service.encoders.resnet import ResNetEncoder
from feature_service.encoders.wav2vec2 import Wav2Vec2Encoder
from feature_service.encoders.weights import build_tiny_encoders
from feature_service.pipeline.stages import build_feature_spec, build_stage
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.schema import InputError, Modality

KINDS = {
    Modality.TEXT: BertEncoder,
    Modality.AUDIO: Wav2Vec2Encoder,
    Modality.VISION: ResNetEncoder,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[Modality, Path]:
    return build_tiny_encoders(tmp_path_factory.mktemp("encoders") / "tiny")


def changed(source: Path, folder: Path, change) -> Path:
    """A copy of the encoder with `change(name, tensor)` -> (name, tensor), or None to leave it out,
    done to each."""
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    pairs = [change(name, tensor) for name, tensor in load_file(path).items()]
    save_file(
        {name: x.contiguous() for name, x in filter(None, pairs)}, path, metadata={"format": "pt"}
    )
    return folder


def without(part: str):
    return lambda name, x: None if part in name else (name, x)


LACKING = [
    (Modality.TEXT, "encoder.layer.1.output.dense.bias"),
    (Modality.TEXT, "embeddings.token_type_embeddings.weight"),
    (Modality.AUDIO, "feature_projection.layer_norm.weight"),
    (Modality.AUDIO, "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (Modality.VISION, "encoder.stages.2.layers.0.shortcut.convolution.weight"),
    (Modality.VISION, "embedder.embedder.normalization.running_var"),
]


@pytest.mark.parametrize(("modality", "name"), LACKING, ids=lambda x: str(x))
def test_a_folder_that_lacks_a_tensor_is_refused_by_its_name(tiny, tmp_path, modality, name):
    folder = changed(tiny[modality], tmp_path / "lacking", without(name))
    with pytest.raises(InputError) as refused:
        KINDS[modality](str(folder))
    assert str(folder) in str(refused.value)
    assert f"1 tensor missing ({name})" in str(refused.value)


@pytest.mark.parametrize(("modality", "name"), LACKING[::2], ids=lambda x: str(x))
def test_a_misshapen_tensor_is_refused_with_both_shapes(tiny, tmp_path, modality, name):
    folder = changed(tiny[modality], tmp_path / "cut", lambda n, x: (n, x[:-1] if n == name else x))
    with pytest.raises(InputError, match="1 tensor of another shape") as refused:
        KINDS[modality](str(folder))
    full = load_file(tiny[modality] / "model.safetensors")[name].shape
    there, here = ("x".join(map(str, shape)) for shape in ((full[0] - 1, *full[1:]), full))
    assert f"{name}: {there}, not {here}" in str(refused.value)


def test_a_folder_without_any_of_the_encoders_tensors_is_refused(tiny, tmp_path):
    folder = changed(tiny[Modality.TEXT], tmp_path / "wrapped", lambda n, x: (f"module.{n}", x))
    with pytest.raises(InputError, match=r"37 tensors missing \(.* and 17 more\)"):
        BertEncoder(str(folder))


@pytest.mark.parametrize(
    ("modality", "part"),
    [
        (Modality.TEXT, "pooler"),
        (Modality.AUDIO, "masked_spec_embed"),
        (Modality.VISION, "num_batches_tracked"),
    ],
)
def test_what_the_features_do_not_depend_on_may_be_absent_and_the_hash_stays(
    tiny, tmp_path, modality, part
):
    folder = changed(tiny[modality], tmp_path / "headless", without(part))
    assert (
        load_file(folder / "model.safetensors").keys()
        < load_file(tiny[modality] / "model.safetensors").keys()
    )
    torch.manual_seed(1)
    first = KINDS[modality](str(folder)).spec.weights_sha256
    torch.manual_seed(2)
    assert KINDS[modality](str(folder)).spec.weights_sha256 == first


def test_checkpoints_of_a_whole_task_model_with_old_names_load(tiny, tmp_path):
    """As published: a prefix, heads, and the names of years ago; the weights are the same."""

    def bert(name: str, x: torch.Tensor):
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        return f"bert.{name}", x

    def wav2vec2(name: str, x: torch.Tensor):
        for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
            name = name.replace(f"parametrizations.weight.{new}", old)
        return f"wav2vec2.{name}", x

    for modality, change in ((Modality.TEXT, bert), (Modality.AUDIO, wav2vec2)):
        folder = changed(tiny[modality], tmp_path / modality, change)
        path = folder / "model.safetensors"
        save_file(
            {**load_file(path), "cls.predictions.bias": torch.zeros(3)},
            path,
            metadata={"format": "pt"},
        )
        mine, plain = KINDS[modality](str(folder)).spec, KINDS[modality](str(tiny[modality])).spec
        assert mine.weights_sha256 == plain.weights_sha256


@pytest.mark.parametrize("damage", ["truncated", "no json"])
def test_damaged_files_end_in_one_message(tiny, tmp_path, damage):
    folder = Path(shutil.copytree(tiny[Modality.TEXT], tmp_path / "damaged"))
    path = folder / ("model.safetensors" if damage == "truncated" else "config.json")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be loaded as BertModel"):
        BertEncoder(str(folder))


def config_of(tiny, **others) -> ExtractConfig:
    sources = {m.value: str(others.get(m, tiny[m])) for m in Modality}
    return ExtractConfig(manifest="m.csv", store="s", encoders=EncoderConfig(**sources))


def test_a_stage_that_loads_other_weights_than_the_spec_says_stops_with_both_hashes(tiny, tmp_path):
    spec = build_feature_spec(config_of(tiny))
    for modality in Modality:
        first = True

        def change(name: str, x: torch.Tensor):
            nonlocal first
            if first and x.is_floating_point() and name != "masked_spec_embed":
                first, x = False, x + 1e-3
            return name, x

        other = changed(tiny[modality], tmp_path / modality, change)
        with pytest.raises(InputError) as stopped:
            build_stage(modality.value, config_of(tiny, **{modality: other}), spec=spec)
        here = KINDS[modality](str(other)).spec.weights_sha256
        assert here != spec.encoders[modality].weights_sha256
        assert here in str(stopped.value)
        assert spec.encoders[modality].weights_sha256 in str(stopped.value)
        build_stage(modality.value, config_of(tiny), spec=spec)
