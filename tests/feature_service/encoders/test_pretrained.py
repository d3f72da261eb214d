"""Encoders as users have them: full-size local checkpoints through the whole job, and pinned hub
models offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
)

from feature_service.encoders.weights import build_tiny_encoders
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.demo_corpus import make_clip
from lfmim.data.store import read_table, sequences
from lfmim.schema import DURATION, FeatureSpec, InputError, Modality
from tests.support.toy import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = "今天真高兴"


@pytest.fixture
def paper(tmp_path) -> EncoderConfig:
    """Checkpoints of the paper's sizes with random weights; the ResNet as RAF-DB training scripts
    save it."""
    tiny = build_tiny_encoders(tmp_path / "tiny")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=21128)).save_pretrained(tmp_path / "bert")
    BertTokenizer.from_pretrained(tiny[Modality.TEXT]).save_pretrained(tmp_path / "bert")
    Wav2Vec2Model(Wav2Vec2Config()).save_pretrained(tmp_path / "wav2vec2")
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(tmp_path / "wav2vec2")
    resnet = torch.nn.DataParallel(torchvision.models.resnet18(num_classes=7))
    torch.save({"epoch": 3, "model_state_dict": resnet.state_dict()}, tmp_path / "rafdb.pth")
    return EncoderConfig(
        preset="paper",
        text=str(tmp_path / "bert"),
        audio=str(tmp_path / "wav2vec2"),
        vision=str(tmp_path / "rafdb.pth"),
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_paper_preset_end_to_end_at_full_size(ray_cluster, paper, tmp_path):
    from feature_service.pipeline.extract import extract_features

    make_clip(tmp_path / "a.mp4", dict.fromkeys(("text", "audio", "vision"), "anger"), key="a")
    pd.DataFrame({"id": ["a", "b"], "video": ["a.mp4", ""], "text": TEXT}).to_csv(
        tmp_path / "m.csv", index=False
    )
    config = ExtractConfig(
        manifest=str(tmp_path / "m.csv"), store=str(tmp_path / "store"), encoders=paper
    )
    assert extract_features(config).stored == 2
    spec = FeatureSpec.load(tmp_path / "store")
    assert spec.dims == {Modality.TEXT: 768, Modality.AUDIO: 768, Modality.VISION: 512}
    assert len({e.weights_sha256 for e in spec.encoders.values()}) == 3
    table = read_table(tmp_path / "store")
    found = {m: sequences(table, m) for m in Modality}
    assert all(np.isfinite(x).all() for values in found.values() for x in values if x is not None)
    assert found[Modality.AUDIO][1] is None
    assert found[Modality.VISION][0].shape == (64, 512)
    seconds = table[DURATION].to_pylist()[0]
    assert len(found[Modality.AUDIO][0]) == pytest.approx(seconds / 0.02, abs=2)

    bert = BertModel.from_pretrained(paper.text).eval()
    tokens = BertTokenizer.from_pretrained(paper.text)(TEXT, return_tensors="pt")
    with torch.inference_mode():
        expected = bert(**tokens).last_hidden_state[0].numpy()
    for row in found[Modality.TEXT]:
        np.testing.assert_allclose(row, expected, atol=0.01)

    # the tiny encoders into the same store
    other = ExtractConfig(manifest=config.manifest, store=config.store)
    with pytest.raises(InputError, match=r"text\.weights_sha256"):
        extract_features(other)


LOAD = """
import sys
from feature_service.encoders.weights import resolved_revision
from feature_service.encoders.bert import BertEncoder
from lfmim.schema import InputError
for revision in sys.argv[1:]:
    try:
        BertEncoder("team/bert", revision=revision)
        print(resolved_revision("team/bert", revision))
    except InputError as error:
        print(error)
"""


@pytest.mark.integration
def test_a_hub_model_offline_is_the_pinned_commit_or_one_message(tmp_path):
    tiny = build_tiny_encoders(tmp_path / "tiny")
    model = tmp_path / "hub" / "models--team--bert"
    shutil.copytree(tiny[Modality.TEXT], model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "v1").write_text(COMMIT)
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "PYTHONPATH": str(ROOT),
    }

    # In a process of its own: the library reads the variables when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, COMMIT, "v1", "f" * 40],
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pinned, named, said = done.stdout.splitlines()
    assert pinned == named == COMMIT
    assert "HF_HUB_OFFLINE is set and team/bert at revision " + "f" * 40 in said
    assert "download it first" in said
    assert (
        json.loads((model / "snapshots" / COMMIT / "config.json").read_text())["model_type"]
        == "bert"
    )
