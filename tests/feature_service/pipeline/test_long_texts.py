"""A text that the encoder cannot read whole is cut, and that is said, with its length."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from feature_service.pipeline.predict import predict_clip
from feature_service.pipeline.stages import (
    UNCUT_TOKENS,
    build_feature_spec,
    build_stage,
    new_row,
)
from lfmim.config import ExperimentConfig, ExtractConfig, ModelConfig
from lfmim.data.store import read_table, sequences
from lfmim.models import build_model
from lfmim.predictor import Predictor
from lfmim.schema import Modality
from lfmim.training.checkpoint import CheckpointMeta

LIMIT = 80
TEXTS = [
    "短",
    "好" * (LIMIT - 2),
    "好" * (LIMIT - 1),
    "好" * 200,
    "",
]  # CLS and SEP are tokens, too
TOKENS = [None, None, LIMIT + 1, 202, None]


@pytest.fixture(scope="module")
def spec():
    return build_feature_spec(ExtractConfig(manifest="-", store="-"))


def test_the_stage_counts_what_it_does_not_read(spec):
    rows = build_stage("text", ExtractConfig(manifest="-", store="-"))(
        [new_row({"id": str(i), "video": "", "text": t}) for i, t in enumerate(TEXTS)]
    )
    assert [row.get(UNCUT_TOKENS) for row in rows] == TOKENS


def test_one_clip(spec, caplog):
    config = ExperimentConfig(store="s", model=ModelConfig(d_model=16, num_heads=2, num_layers=1))
    predictor = Predictor(
        build_model(config.model, spec.dims),
        CheckpointMeta(
            config=config, spec=spec, epoch=0, history=[], best_epoch=-1, best_score=-math.inf
        ),
    )
    for text, said in zip(TEXTS[1:4], (None, 81, 202), strict=True):
        caplog.clear()
        predict_clip(predictor, ExtractConfig(manifest="-", store="-"), video="", text=text)
        lines = [m for m in caplog.messages if "tokens" in m]
        assert lines == (
            [f"the text has {said} tokens; only the first 80 are read"] if said else []
        )
    predict_clip(predictor, ExtractConfig(manifest="-", store="-"), video="", text="half \ud83d")


@pytest.mark.ray
def test_a_whole_extraction(ray_cluster, tmp_path, capfd):
    from feature_service.pipeline.extract import extract_features

    manifest, figures = tmp_path / "m.csv", []
    pd.DataFrame({"id": list("abcd"), "video": "", "text": TEXTS[:4]}).to_csv(manifest, index=False)
    summary = extract_features(
        ExtractConfig(manifest=str(manifest), store=str(tmp_path / "store")),
        log=lambda values, step: figures.append(dict(values)),
    )
    assert (summary.stored, summary.texts_cut, summary.longest_text) == (4, 2, 202)
    assert (
        "  2 texts cut: they have more tokens than the text encoder reads; the longest has 202"
        in str(summary)
    )
    assert (figures[-1]["texts_cut"], figures[-1]["longest_text_tokens"]) == (2, 202)
    assert "2 texts cut" in capfd.readouterr().err
    table = read_table(tmp_path / "store")
    assert [len(x) for x in sequences(table, Modality.TEXT)] == [3, LIMIT, LIMIT, LIMIT]
    assert UNCUT_TOKENS not in table.column_names
