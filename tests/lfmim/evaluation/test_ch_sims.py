"""The CH-SIMS path (Table 3): an MMSA pickle, imported, trained on, tested once, figures
recomputed."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from lfmim import tracking
from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig
from lfmim.data.importers.mmsa import import_mmsa
from lfmim.data.loading import load_split
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.predictor import Predictor
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    LABEL_COLUMNS,
    MODALITIES,
    SENTIMENT_COLUMNS,
    FeatureSpec,
)
from lfmim.training.loop import train
from tests.support.toy import DIMS, EMOTIONS, toy_rows

GRID = np.linspace(-1, 1, len(EMOTIONS))
RECIPE = TrainConfig(optimizer="adamw", lr=0.005, lr_scheduler="constant", epochs=8, batch_size=16)


@pytest.fixture
def store(tmp_path):
    """Three splits; a score per modality that its features show, the mean of the three as the
    multimodal one."""
    splits = {}
    for k, (split, count) in enumerate((("train", 80), ("valid", 30), ("test", 40))):
        rows = toy_rows(count, k, split=split)
        scores = np.array(
            [
                [round(5 * GRID[EMOTIONS.index(row[LABEL_COLUMNS[m]])]) / 5 for m in MODALITIES]
                for row in rows
            ]
        )
        part = {
            "id": [f"{split}$_${i:04d}" for i in range(count)],
            "raw_text": ["好"] * count,
            "regression_labels": np.round(5 * scores.mean(axis=1)) / 5,
        }
        for i, m in enumerate(MODALITIES):
            part[f"regression_labels_{m[0].upper()}"] = scores[:, i].copy()
            sequences = [row[FEATURE_COLUMNS[m]] for row in rows]
            lengths = np.array([len(x) for x in sequences])
            part[m.value] = np.zeros((count, lengths.max(), DIMS[m]), np.float32)
            for padded, x in zip(part[m.value], sequences, strict=True):
                padded[: len(x)] = x
            if m == "text":
                mask = np.arange(lengths.max()) < lengths[:, None]
                part["text_bert"] = np.stack([mask * 7, mask, mask * 0], axis=1)
            else:
                part[f"{m}_lengths"] = lengths
        part["regression_labels_A"][0] = np.nan
        splits[split] = part
    (tmp_path / "unaligned.pkl").write_bytes(pickle.dumps(splits, 4))
    import_mmsa(tmp_path / "unaligned.pkl", tmp_path / "sims")
    return tmp_path / "sims"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["lfmim", "mlf-dnn", "mlmf", "mtfn"])
def test_table_3_systems(store, tmp_path, name):
    model = ModelConfig(
        name=name,
        task="sentiment",
        d_model=16,
        num_heads=2,
        num_layers=2,
        max_text=9,
        max_audio=9,
        max_vision=9,
        dropout_attention=0,
        dropout_ffn=0,
        dropout_embedding=0,
    )
    config = ExperimentConfig(store=str(store), model=model, train=RECIPE)
    splits = [load_split(store, s, model) for s in ("train", "valid")]

    def on_epoch(report, save):
        if report.best:
            save(tmp_path / "best")

    meta = train(config, FeatureSpec.load(store), *splits, on_epoch=on_epoch)
    errors = [e["valid"]["multimodal"]["mae"] for e in meta.history]
    assert meta.best_epoch == int(np.argmin(errors))
    assert meta.best_score == -min(errors)
    y_valid = splits[1].labels[:, HEADS.index("text")].numpy()
    assert (
        meta.history[meta.best_epoch]["valid"]["text"]["mae"]
        < 0.7 * np.abs(y_valid - np.median(y_valid)).mean()
    )

    predictor = Predictor.from_checkpoint(tmp_path / "best")
    report = evaluate_store(predictor, store)
    test = load_split(store, "test", model)
    scores = predictor.predict(
        {m: [test.sequence(m, i).numpy() for i in range(len(test))] for m in MODALITIES}
    )
    for i, head in enumerate(HEADS):
        y, p = test.labels[:, i].numpy(), scores[head][:, 0]
        keep = y != -100
        y, p, got = y[keep], p[keep], report["heads"][head]
        assert got["count"] == len(y) == 40 - (head == "audio")
        assert got["accuracy_2"] == pytest.approx(np.mean((y > 0) == (p > 0)))
        assert got["weighted_f1"] == pytest.approx(f1_score(y > 0, p > 0, average="weighted"))
        assert got["accuracy_2_nonzero"] == pytest.approx(
            np.mean((y > 0)[y != 0] == (p > 0)[y != 0])
        )
        for k, edges in ((3, [-0.1, 0.1]), (5, [-0.7, -0.1, 0.1, 0.7])):
            same = np.digitize(y, edges, right=True) == np.digitize(p, edges, right=True)
            assert got[f"accuracy_{k}"] == pytest.approx(same.mean())
        assert got["mae"] == pytest.approx(np.abs(y - p).mean(), abs=1e-6)
        assert got["pearson"] == pytest.approx(pearsonr(y, p)[0], abs=1e-4)
    page = write_report(tmp_path / "report", report, predictor, title="CH-SIMS").read_text()
    assert "Acc-2 without zeros" in page
    assert page.count("data:image/png;base64,") == len(HEADS) + 1
    assert "Worst confusions of the multimodal head" in page


@pytest.mark.integration
def test_a_registered_sentiment_model_gives_scores(store, tmp_path):
    model = ModelConfig(
        task="sentiment",
        d_model=16,
        num_heads=2,
        num_layers=1,
        max_text=9,
        max_audio=9,
        max_vision=9,
    )
    config = ExperimentConfig(
        store=str(store), model=model, train=dataclasses.replace(RECIPE, epochs=1)
    )
    uri = tracking.tracking_uri(config.tracking, str(tmp_path))
    run_id = tracking.start_run(config, FeatureSpec.load(store), uri=uri, run_name="s", tags={})

    def on_epoch(report, save):
        tracking.log_epoch(uri, run_id, report)
        save(tmp_path / "last")

    data = load_split(store, "valid", model)
    tracking.finish_run(
        uri, run_id, train(config, FeatureSpec.load(store), data, data, on_epoch=on_epoch)
    )
    frame = pd.DataFrame(
        {FEATURE_COLUMNS[m]: [torch.randn(3, d).tolist(), None] for m, d in DIMS.items()}
    )
    registered = tracking.register(
        uri,
        run_id,
        tmp_path / "last",
        model_name="sims",
        example=frame.iloc[:1],
        data_fingerprint="d",
    )
    import mlflow

    out = mlflow.pyfunc.load_model(registered.uri).predict(frame)
    assert list(out.columns) == list(SENTIMENT_COLUMNS.values())
    assert out.iloc[0].between(-1, 1).all()
    assert out.iloc[1].isna().all()
