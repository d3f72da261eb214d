"""Batch prediction: every row comes out once, with its probabilities or its reason, also after
interruptions."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_service.pipeline.predict import predict_clip
from feature_service.pipeline.predict_store import predict_store, predict_table
from lfmim.config import ExperimentConfig, ExtractConfig, ModelConfig
from lfmim.data.store import ERROR_SCHEMA, rows_to_table, store_schema, write_part, write_spec
from lfmim.models import build_model
from lfmim.predictor import Predictor
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    SENTIMENT_COLUMNS,
    FeatureSpec,
    InputError,
    Modality,
)
from lfmim.training.checkpoint import CheckpointMeta
from tests.support.toy import DIMS, SPEC, toy_rows


def predictor(name: str = "lfmim", spec: FeatureSpec = SPEC, **sizes) -> Predictor:
    config = ExperimentConfig(
        store="s", model=ModelConfig(name=name, d_model=16, num_heads=2, num_layers=1, **sizes)
    )
    return Predictor(
        build_model(config.model, spec.dims),
        CheckpointMeta(
            config=config, spec=spec, epoch=0, history=[], best_epoch=-1, best_score=-math.inf
        ),
    )


def table(rows: list[dict]) -> pa.Table:
    return rows_to_table(rows, store_schema(DIMS), DIMS)


def test_a_row_the_model_cannot_take_does_not_spoil_its_neighbours():
    rows = toy_rows(5)
    rows[1][FEATURE_COLUMNS[Modality.AUDIO]] = np.full(
        (3, DIMS[Modality.AUDIO]), np.nan, np.float16
    )
    rows[3][FEATURE_COLUMNS[Modality.TEXT]] = np.empty((0, DIMS[Modality.TEXT]), np.float16)
    p = predictor()
    out = predict_table(p, table(rows)).to_pylist()
    assert [r["id"] for r in out] == [r["id"] for r in rows]
    assert "audio_features: holds NaN" in out[1]["error"]
    assert "text_features: shape (0," in out[3]["error"]
    alone = predict_table(p, table([rows[2]])).to_pylist()[0]
    assert out[2]["label_multimodal"] == alone["label_multimodal"]
    np.testing.assert_allclose(
        out[2]["probabilities_audio"], alone["probabilities_audio"], rtol=1e-5
    )
    for i in (0, 2, 4):
        assert out[i]["error"] == ""
        assert sum(out[i]["probabilities_multimodal"]) == pytest.approx(1, abs=1e-5)


def test_models_that_need_every_modality_say_which_is_absent():
    rows = toy_rows(2)
    rows[0][FEATURE_COLUMNS[Modality.VISION]] = None
    needy, tolerant = (
        predict_table(predictor(name), table(rows)).to_pylist() for name in ("tfn", "lfmim")
    )
    assert needy[0]["error"].startswith("vision_features: absent")
    assert (needy[0]["stage"], needy[0]["label_multimodal"]) == ("predict", None)
    assert needy[1]["error"] == tolerant[0]["error"] == ""
    assert tolerant[0]["label_vision"] is None is tolerant[0]["probabilities_vision"]


def test_sentiment_models_give_scores():
    rows = predict_table(predictor(task="sentiment"), table(toy_rows(3, absent=0.5))).to_pylist()
    for row in rows:
        assert -1 <= row[SENTIMENT_COLUMNS["multimodal"]] <= 1
        assert not any(name.startswith("label_") for name in row)


def test_a_store_without_a_modality():
    spec = dataclasses.replace(
        SPEC, encoders={m: e for m, e in SPEC.encoders.items() if m != "audio"}
    )
    rows = predict_table(
        predictor(spec=spec), table(toy_rows(3)).drop_columns(["audio_features"])
    ).to_pylist()
    for row in rows:
        assert row["error"] == ""
        assert row["label_audio"] is None
        assert row["label_text"]


def test_other_features_are_refused_and_nothing_is_written(tmp_path):
    store = tmp_path / "store"
    write_spec(store, dataclasses.replace(SPEC, sampling={"seed": 9}))
    write_part(store, table(toy_rows(3)))
    with pytest.raises(InputError, match=r"sampling\.seed"):
        predict_store(predictor(), store, tmp_path / "p.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


@pytest.mark.ray
def test_a_store_is_predicted_once_and_an_interrupted_run_continues(ray_cluster, tmp_path):
    store, output = tmp_path / "store", tmp_path / "p.jsonl"
    write_spec(store, SPEC)
    rows = toy_rows(150, absent=0.2)
    rows[7][FEATURE_COLUMNS[Modality.TEXT]] = np.empty((0, DIMS[Modality.TEXT]), np.float16)
    for start in range(0, 150, 30):
        write_part(store, table(rows[start : start + 30]))
    write_part(
        store / "errors",
        pa.Table.from_pylist(
            [{"id": "lost", "video": "v.mp4", "stage": "decode", "error": "truncated"}],
            schema=ERROR_SCHEMA,
        ),
    )
    p, seen = predictor(), 0

    def interrupt(figures, step):
        nonlocal seen
        seen = step
        raise KeyboardInterrupt  # as SIGTERM does in a job

    with pytest.raises(KeyboardInterrupt):
        predict_store(p, store, output, log=interrupt)
    assert 0 < seen < 150
    assert not output.exists()
    with pytest.raises(InputError, match="another model"):
        predict_store(predictor(), store, output)
    summary = predict_store(p, store, output, workers=2)
    assert (summary.rows_in, summary.already_done, summary.predicted) == (151, seen, 149)
    assert sum(summary.nodes.values()) == 150 - seen
    assert sum(summary.quarantined.values()) == 2
    out = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["id"] for r in out] == sorted([*(r["id"] for r in rows), "lost"])
    assert {r["id"]: (r["stage"], r["error"]) for r in out}["lost"] == ("decode", "truncated")
    assert not list(tmp_path.glob("*.parts"))
    direct = {r["id"]: r for r in predict_table(p, table(rows)).to_pylist()}
    for r in out:
        if not r["error"]:
            for head in HEADS:
                assert r[f"label_{head}"] == direct[r["id"]][f"label_{head}"]
    some = {rows[0]["id"], rows[149]["id"], "lost"}
    predict_store(p, store, tmp_path / "some.parquet", only=some)
    assert set(pd.read_parquet(tmp_path / "some.parquet")["id"]) == some


def test_a_model_of_given_arrays_says_that_it_cannot_predict_a_video():
    vision = dataclasses.replace(SPEC.encoders["vision"], name="arrays:openface")
    spec = dataclasses.replace(SPEC, encoders={**SPEC.encoders, "vision": vision})
    config = ExtractConfig(manifest="-", store="s")
    with pytest.raises(
        InputError, match=r"vision \(openface\), which cannot be computed from a video"
    ):
        predict_clip(predictor(spec=spec), config, video="clip.mp4", text="")
