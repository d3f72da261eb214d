"""Only what measures the same is compared, and nothing is measured without labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from lfmim.config import ExperimentConfig, ModelConfig
from lfmim.data.store import (
    read_table,
    rows_to_table,
    sequences,
    store_schema,
    write_part,
    write_spec,
)
from lfmim.evaluation.promotion import compare
from lfmim.evaluation.report import evaluate_store
from lfmim.evaluation.store_report import describe_store, write_store_report
from lfmim.models import build_model
from lfmim.predictor import Predictor
from lfmim.schema import FEATURE_COLUMNS, HEADS, LABEL_COLUMNS, SENTIMENT_COLUMNS, InputError
from lfmim.training.checkpoint import CheckpointMeta
from tests.support.toy import DIMS, SPEC, toy_rows

SIZES = {
    "d_model": 16,
    "num_heads": 2,
    "num_layers": 1,
    "max_text": 8,
    "max_audio": 8,
    "max_vision": 8,
}


def predictor(seed: int = 0, **fields) -> Predictor:
    torch.manual_seed(seed)
    config = ModelConfig(**SIZES, **fields)
    meta = CheckpointMeta.start(ExperimentConfig(store="s", model=config), SPEC)
    return Predictor(build_model(config, SPEC.dims), meta)


def make_store(folder, *, emotions=HEADS, sentiments=(), whole=()):
    """A store of which only these heads have labels, but for the emotions of splits `whole`."""
    write_spec(folder, SPEC)
    columns = [SENTIMENT_COLUMNS[h] for h in sentiments]
    for k, split in enumerate(("train", "valid", "test")):
        rows = toy_rows(30, k, split=split)
        for i, row in enumerate(rows):
            hidden = [h for h in HEADS if h not in emotions and split not in whole]
            row |= {LABEL_COLUMNS[h]: None for h in hidden}
            row |= dict.fromkeys(columns, -1 + (7 * i % 30) / 15)
        write_part(folder, rows_to_table(rows, store_schema(DIMS, columns), DIMS))
    return folder


def test_a_store_without_labels_of_the_task_or_the_models_heads_is_not_evaluated(tmp_path):
    emotion, sentiment, fused = predictor(), predictor(task="sentiment"), predictor(name="tfn")
    of_text = make_store(tmp_path / "sim", emotions=("text",))
    for split in ("test", "valid"):
        with pytest.raises(
            InputError, match=f"sim: split '{split}' has no sentiment label of any head"
        ):
            evaluate_store(sentiment, of_text, split)
    with pytest.raises(
        InputError, match=r"sim: split 'test' has no emotion label of a head that .* \(multimodal\)"
    ):
        evaluate_store(fused, of_text)
    assert evaluate_store(emotion, of_text)["heads"]["text"]["count"] == 30
    scores = make_store(tmp_path / "scores", emotions=(), sentiments=HEADS)
    with pytest.raises(InputError, match="scores: split 'test' has no emotion label of any head"):
        evaluate_store(emotion, scores)
    assert evaluate_store(sentiment, scores)["heads"]["text"]["count"] == 30


def test_models_of_different_tasks_or_without_the_head_are_not_compared(tmp_path):
    store = make_store(tmp_path / "both", sentiments=HEADS)
    emotion, sentiment, fused = predictor(), predictor(task="sentiment"), predictor(name="tfn")
    for pair in ((emotion, sentiment), (sentiment, emotion)):
        with pytest.raises(
            InputError, match=r"task, the challenger of the .* task, so they cannot be compared"
        ):
            compare(*pair, store, split="valid", head="multimodal")
    with pytest.raises(
        InputError, match="--head text: the champion has no such head; it has multimodal"
    ):
        compare(fused, emotion, store, split="valid", head="text")
    with pytest.raises(InputError, match="--head text: the challenger has no such head"):
        compare(emotion, fused, store, split="valid", head="text")
    for model, labels, task in (
        (sentiment, {}, "sentiment"),
        (emotion, {"emotions": ()}, "emotion"),
    ):
        bare = make_store(tmp_path / task, **labels)
        with pytest.raises(InputError, match=f"split 'valid' has no {task} label of any head"):
            compare(model, model, bare, split="valid", head="text")


def test_sentiment_models_are_compared_by_their_absolute_errors(tmp_path):
    store = make_store(tmp_path / "scores", emotions=(), sentiments=HEADS)
    models = [predictor(seed, task="sentiment") for seed in (0, 1)]
    with torch.no_grad():
        # closer to scores above 0.5, and below
        for model, answer in zip(models, (1.0, 0.0), strict=True):
            last = model.model.heads["text"][2]
            last.weight.zero_()
            last.bias.fill_(answer)
    table = read_table(store, [*FEATURE_COLUMNS.values(), SENTIMENT_COLUMNS["text"]], "valid")
    labels = np.array(table[SENTIMENT_COLUMNS["text"]])
    features = {m: sequences(table, m) for m in DIMS}
    far, near = (np.abs(p.predict(features)["text"][:, 0] - labels) for p in models)
    found = compare(*models, store, split="valid", head="text")
    assert (found.champion, found.challenger) == pytest.approx((far.mean(), near.mean()))
    assert (found.champion_only, found.challenger_only) == ((far < near).sum(), (near < far).sum())
    assert found.p_value == pytest.approx(binomtest(int((near < far).sum()), 30).pvalue)
    better, why = found.verdict(0.05)
    assert better
    assert "mean absolute error of the text head" in why
    worse, why = compare(*models[::-1], store, split="valid", head="text").verdict(0.05)
    assert not worse
    assert "it is not better" in why


def test_a_benchmark_asks_for_the_labels_it_chooses_and_compares_by(tmp_path):
    from lfmim.cli import benchmark

    for whole, split, why in (
        (("train",), "valid", "the checkpoints are chosen"),
        (("train", "valid"), "test", "the systems are compared"),
    ):
        store = make_store(tmp_path / split, emotions=("text",), whole=whole)
        args = ["--store", str(store), "--report", str(tmp_path / "report")]
        message = f"'{split}' has no emotion label of head 'multimodal', by which {why}"
        with pytest.raises(InputError, match=message):
            benchmark.main(args)
    assert not (tmp_path / "report").exists()


def test_a_label_report_without_labels_is_refused_and_a_stores_page_says_so(tmp_path):
    from lfmim.cli import labels

    store = make_store(tmp_path / "scores", emotions=(), sentiments=HEADS)
    for split, said in (
        ("", "scores: no emotion label of any head"),
        ("test", "scores: split 'test' has no emotion label of any head"),
    ):
        with pytest.raises(InputError, match=said):
            labels.report(source=str(store), report=str(tmp_path / "labels"), split=split)
    assert not (tmp_path / "labels").exists()
    page = write_store_report(tmp_path / "p.html", store, describe_store(store), []).read_text(
        encoding="utf-8"
    )
    assert "No emotion label of any head" in page
