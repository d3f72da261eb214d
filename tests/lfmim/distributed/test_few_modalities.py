"""Corpora of one or two modalities go through training, evaluation, prediction and every report."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from feature_service.pipeline.predict_store import predict_table
from lfmim.config import ExperimentConfig, ModelConfig, TrainConfig, to_dict
from lfmim.data.loading import load_split
from lfmim.data.store import read_table
from lfmim.distributed.benchmark import Run, _result
from lfmim.distributed.driver import run_epochs
from lfmim.evaluation.model_card import model_card
from lfmim.evaluation.promotion import compare
from lfmim.evaluation.report import evaluate_store, write_report
from lfmim.evaluation.store_report import describe_store, write_store_report
from lfmim.experiments.comparison_report import summary, write_comparison
from lfmim.predictor import Predictor
from lfmim.schema import MODALITIES, Modality
from lfmim.training.calibration import calibrate
from lfmim.training.checkpoint import epoch_folder
from tests.support.toy import DIMS, write_toy_store

SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 1}


@pytest.mark.parametrize(
    ("modalities", "empty"),
    [("text", ""), ("audio", ""), ("vision", ""), ("text audio", ""), ("text audio", "audio")],
)
def test_a_corpus_of_few_modalities_runs_every_job(tmp_path, modalities, empty):
    """`empty`: the store has the column, and no row of it, as extraction of texts alone leaves
    it."""
    dims = {m: d for m, d in DIMS.items() if m in modalities.split()}
    there = [m.value for m in dims if m not in empty.split()]
    store = write_toy_store(tmp_path / "store", dims=dims, empty=[*map(Modality, empty.split())])

    results = []
    for name in ("lfmim", "eft", "logistic"):
        config = ExperimentConfig(
            store=str(store), model=ModelConfig(name=name, **SIZES), train=TrainConfig(epochs=1)
        )
        home = tmp_path / name
        meta = run_epochs(config, store, home, device=torch.device("cpu"), keep=None)
        best = epoch_folder(home, meta.best_epoch)
        calibrate(best, functools.partial(load_split, store, "valid", config.model))
        predictor = Predictor.from_checkpoint(epoch_folder(home, meta.best_epoch))
        test = load_split(store, "test", config.model)
        run = Run(name, 0, to_dict(config), str(home), True)
        results.append({**_result(run, meta, test), "seconds": 1.0})

        found = evaluate_store(predictor, store)
        labelled = {h for h, m in found["heads"].items() if m["count"]}
        assert labelled == {"multimodal", *(there if name != "eft" else ())}
        page = write_report(tmp_path / f"report-{name}", found, predictor, title=name)
        assert "nan" not in page.read_text(encoding="utf-8").split("<img")[0]
        assert json.loads((page.parent / "report.json").read_text())["rows"] == 20

        rows = predict_table(predictor, read_table(store, split="test")).to_pylist()
        assert not any(row["error"] for row in rows)
        answered = {m for m in MODALITIES if rows[0][f"label_{m}"]}
        assert answered == set(there if name != "eft" else ())
        assert all(row["label_multimodal"] for row in rows)
        same = compare(predictor, predictor, store, split="valid", head="multimodal")
        assert same.p_value == 1
        tags = {"feature_spec": "f", "data": "d"}
        assert "Figures on validation" in model_card(meta, name=name, run_id="r", tags=tags)

    assert set(results[0]["subsets"]) >= {*there}
    assert write_comparison(tmp_path / "compared", results, [], title="x").is_file()
    assert "lfmim" in summary(results)
    page = write_store_report(tmp_path / "store.html", store, describe_store(store), [])
    assert "Figure 1" in page.read_text(encoding="utf-8")
