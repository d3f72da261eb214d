"""Tables and p-values over runs with known answers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lfmim.evaluation.comparison import linear_cka, paired_p_value, table_2, table_4, write_comparison
from lfmim.metrics import C, HeadMetrics
from lfmim.schema import EMOTIONS, HEADS, MULTIMODAL, REPORT_ORDER


def result(system: str, seed: int, share_right: float, heads=HEADS, n: int = 400) -> dict:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, C, (len(HEADS), n))
    rng = np.random.default_rng([seed, sum(map(ord, system))])
    predictions, test = {}, {}
    for i, head in enumerate(HEADS):
        if head not in heads:
            continue
        right = rng.random(n) < share_right
        predictions[head] = np.where(right, labels[i], (labels[i] + 1) % C)
        confusion = np.zeros((C, C))
        np.add.at(confusion, (labels[i], predictions[head]), 1)
        test[head] = vars(HeadMetrics.from_confusion(confusion))
        predictions[head] = predictions[head].tolist()
    history = [{"epoch": 0, "train": {h: {"loss": 1.0, "accuracy": 0.5} for h in HEADS},
                "valid": {h: {"loss": 1.0, "accuracy": 0.5} for h in HEADS}}]
    pairs = ("text-audio", "text-vision", "audio-vision")
    return {"system": system, "seed": seed, "labels": labels.tolist(), "predictions": predictions, "test": test,
            "history": history, "parameters": 1000, "flops": 2_000_000,
            "cka": dict.fromkeys(pairs, 0.1) if len(heads) > 1 else {}}


RUNS = [result(s, k, p, h) for s, p, h in (("eft", 0.5, (MULTIMODAL,)), ("lfmim", 0.6, HEADS)) for k in range(3)]


def test_mean_and_deviation_over_seeds():
    accuracy = [100 * r["test"][MULTIMODAL]["accuracy"] for r in RUNS[3:]]
    assert table_2(RUNS).loc["lfmim", "accuracy"] == f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}"
    assert tuple(table_2(RUNS).columns[: len(EMOTIONS)]) == REPORT_ORDER
    assert list(table_4(RUNS).index) == [f"lfmim {h}" for h in HEADS]


def test_p_values_tell_a_difference_from_none():
    assert paired_p_value(RUNS, "lfmim", "eft") < 0.01
    assert paired_p_value(RUNS, "lfmim", "lfmim") == 1.0
    alike = [result("lfmim", k, 0.5) for k in range(3)] + [result("pmr", k, 0.5) for k in range(3)]
    assert paired_p_value(alike, "lfmim", "pmr") > 0.05


def test_cka_knows_rotations_and_independence():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, rng.normal(size=(3000, 5))) < 0.01


def test_all_files_are_written(tmp_path):
    page = write_comparison(tmp_path, RUNS, ["pmr 0: it broke <here>"], title="t").read_text(encoding="utf-8")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"index.html", "results.json", "figure_3.png", "confusion.png", "figure_4c.png", "figure_2b.png",
                     *(f"table_{k}.{end}" for k in (2, 4) for end in ("csv", "md", "tex"))}
    assert "it broke &lt;here&gt;" in page
    assert not re.search(r'src="(?!data:)', page)
    assert r"$\pm$" in (tmp_path / "table_2.tex").read_text(encoding="utf-8")
