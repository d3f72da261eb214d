"""Tables and p-values over runs with known answers."""

from __future__ import annotations

import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest

from lfmim.config import ExperimentConfig, TrainConfig, to_dict
from lfmim.experiments.comparison import (
    CLAIMS,
    claimed_gap,
    linear_cka,
    mean_cka,
    modality_deviation,
    table_2,
    table_3,
    table_4,
    table_claims,
    table_sizes,
    table_subsets,
)
from lfmim.experiments.comparison_report import write_comparison
from lfmim.experiments.difference import difference
from lfmim.metrics import SentimentMetrics
from lfmim.schema import HEADS, MODALITIES, MULTIMODAL
from tests.support.reports import benchmark_run
from tests.support.toy import EMOTIONS, REPORT_ORDER

RUNS = [
    benchmark_run(s, k, p, h)
    for s, p, h in (("eft", 0.5, (MULTIMODAL,)), ("lfmim", 0.6, HEADS))
    for k in range(3)
]


def test_mean_and_deviation_over_seeds():
    accuracy = [100 * r["test"][MULTIMODAL]["accuracy"] for r in RUNS[3:]]
    assert (
        table_2(RUNS).loc["lfmim", "accuracy"]
        == f"{np.mean(accuracy):.2f} ± {np.std(accuracy, ddof=1):.2f}"
    )
    assert tuple(table_2(RUNS).columns[3 : 3 + len(EMOTIONS)]) == REPORT_ORDER
    assert list(table_4(RUNS).index) == [f"lfmim {h}" for h in HEADS]


@pytest.mark.integration
def test_a_class_without_labels_is_a_dash_in_every_table(tmp_path):
    runs = [benchmark_run("lfmim", k, 0.6) for k in range(2)]
    for run in runs:
        for m in run["test"].values():
            m["confusion"][EMOTIONS.index("fear")] = [0] * len(EMOTIONS)
    assert table_2(runs).loc["lfmim", "fear"] == "–"
    assert (table_4(runs)["fear"] == "–").all()
    assert "–" not in table_2(runs).drop(columns="fear").to_string()
    deviation = dict(zip(REPORT_ORDER, modality_deviation(runs, "lfmim"), strict=True))
    assert [e for e, v in deviation.items() if np.isnan(v)] == ["fear"]
    page = write_comparison(tmp_path, runs, [], title="t").read_text(encoding="utf-8")
    assert "<td>–</td>" in page
    assert "| – |" in (tmp_path / "table_2.md").read_text(encoding="utf-8")
    assert "nan" not in (tmp_path / "table_4.csv").read_text(encoding="utf-8")


def test_claims_and_subsets():
    runs = [
        *RUNS,
        *(
            benchmark_run(s, k, p)
            for s, p in (("pmr", 0.6), ("lfmim-ml", 0.4), ("mult", 0.7))
            for k in range(3)
        ),
    ]
    claims = table_claims(runs)
    # 400 utterances cannot tell gaps of a point, whatever they show: 20 points between these.
    assert set(claims["verdict"]) == {"cannot be decided"}
    assert list(claims.index) == ["lfmim > pmr", "pmr > mult", "lfmim > lfmim-ml"]
    assert list(claims["gap"]) == ["1.01", "0.29", "0.75"]
    assert all(float(power) < 0.8 for power in claims["power"])
    needed = [int(n.replace(",", "")) for n in claims["test utterances for 0.8"]]
    assert needed[1] > 5 * needed[0] > 5 * 400
    subsets = table_subsets(runs)
    assert list(subsets.index) == ["eft", "lfmim", "pmr", "lfmim-ml"]
    assert subsets.loc["lfmim", "text"] == "30.00 ± 0.00"
    assert mean_cka(runs) == pytest.approx({"lfmim": 0.1, "pmr": 0.6, "lfmim-ml": 0.6, "mult": 0.6})
    f1 = np.array([[r["test"][m]["f1"][REPORT_ORDER[0]] for m in MODALITIES] for r in RUNS[3:]])
    assert modality_deviation(runs, "lfmim")[0] == pytest.approx(np.mean([np.std(x) for x in f1]))
    assert modality_deviation(runs, "eft") is None


def test_a_claim_holds_or_fails_where_the_data_could_have_told():
    """Systems that are right about the same 10,000 utterances but for a twentieth."""
    rng = np.random.default_rng(0)
    n, easy = 10_000, rng.random(10_000) < 0.65
    labels = [[0] * n] * len(HEADS)
    runs = []
    for system, share in (("lfmim", 0.75), ("lfmim-ml", 0.25), ("pmr", 0.75)):
        for _ in range(5):
            right = np.where(rng.random(n) < 0.05, rng.random(n) < share, easy)
            predictions = {MULTIMODAL: (~right).astype(int).tolist()}
            runs.append(
                {"system": system, "labels": labels, "test": {MULTIMODAL: {}}}
                | {"predictions": predictions, "subset": None, "size": None}
            )
    claims = table_claims(runs)
    assert claims["verdict"].to_dict() == {"lfmim > pmr": "fails", "lfmim > lfmim-ml": "holds"}
    assert all(float(power) >= 0.8 for power in claims["power"])
    alone = table_claims([r for i, r in enumerate(runs) if i % 5 == 0])
    assert set(alone["verdict"]) == {"cannot be decided"}
    assert set(alone["and seeds"]) == {"–"}


def test_the_claims_are_the_papers_order_and_its_gaps():
    order = ("lfmim", "pmr", "mult", "lft", "eft", "tfn", "lmf")
    assert {*pairwise(order), ("lfmim", "lfmim-ml")} <= set(CLAIMS)
    assert claimed_gap("mult", "lft") == 0.19
    assert claimed_gap("strong", "logistic") == 1.0


@pytest.mark.integration
def test_sizes_have_a_table_a_figure_and_a_claim_each(tmp_path):
    runs = [
        benchmark_run(system, 2 * k + s, share + n / 4000) | {"size": n, "subset": k}
        for system, share in (("lfmim", 0.5), ("pmr", 0.4))
        for n in (300, 600)
        for k in range(3)
        for s in range(2)
    ]
    accuracy = [100 * r["test"][MULTIMODAL]["accuracy"] for r in runs]
    first = np.mean(np.reshape(accuracy[:6], (3, 2)), axis=1)
    want = f"{first.mean():.2f} ± {first.std(ddof=1):.2f}"
    assert table_sizes(runs).loc["lfmim", "300"] == want
    assert list(table_claims(runs).index) == ["lfmim > pmr at 300", "lfmim > pmr at 600"]
    page = write_comparison(tmp_path, runs, [], title="t").read_text(encoding="utf-8")
    assert "Trained on 300, 600 training utterances, each 3 times" in page
    assert (tmp_path / "sizes.png").is_file()
    assert (tmp_path / "sizes.csv").is_file()
    # What is of one size is of the largest.
    assert "Multimodal head (Table 2), 600 training utterances" in page
    mean = f"{np.mean(accuracy[6:12]):.2f}"
    assert mean in (tmp_path / "table_2.csv").read_text(encoding="utf-8")


def sentiment(system: str, seed: int, noise: float) -> dict:
    rng = np.random.default_rng([seed, sum(map(ord, system))])
    labels = np.random.default_rng(1).uniform(-1, 1, 300)
    predictions = np.clip(labels + rng.normal(0, noise, 300), -1, 1)
    counts = {k: np.zeros((k, k)) for k in (2, 3, 5)}
    for k in counts:
        np.add.at(counts[k], ((labels > 0).astype(int), (predictions > 0).astype(int)), 1)
    y, p = labels, predictions
    moments = np.array([np.abs(y - p).sum(), y.sum(), p.sum(), y @ y, p @ p, y @ p])
    test = {MULTIMODAL: vars(SentimentMetrics.from_sums(counts, counts[2], moments, 1.0))}
    entry = {"epoch": 0, "train": test, "valid": test}
    return {
        "system": system,
        "seed": seed,
        "labels": [labels.tolist()] * 4,
        "predictions": {MULTIMODAL: p.tolist()},
        "test": test,
        "history": [entry],
        "parameters": 10,
        "flops": 10,
        "cka": {},
        "test_curves": [test],
        "subsets": {},
        "seconds": 1.0,
        "best_epoch": 0,
        "config": {},
    }


@pytest.mark.integration
def test_table_3_and_its_report(tmp_path):
    runs = [sentiment(s, k, n) for s, n in (("mtfn", 0.6), ("lfmim", 0.2)) for k in range(2)]
    table = table_3(runs)
    mae = [r["test"][MULTIMODAL]["mae"] for r in runs[2:]]
    assert table.loc["lfmim", "MAE"] == f"{np.mean(mae):.2f} ± {np.std(mae, ddof=1):.2f}"
    assert list(table.columns[:4]) == ["Acc-2", "Acc-3", "Acc-5", "F1"]
    assert difference(runs, "lfmim", "mtfn").mean == pytest.approx(
        np.mean([r["test"][MULTIMODAL]["mae"] for r in runs[:2]]) - np.mean(mae)
    )
    page = write_comparison(tmp_path, runs, [], title="t").read_text(encoding="utf-8")
    assert "Table 3" in page
    assert (tmp_path / "table_3.csv").is_file()
    assert not (tmp_path / "table_2.csv").exists()


def test_cka_knows_rotations_and_independence():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert linear_cka(x, 3 * x @ rotation + 1) == pytest.approx(1)
    assert linear_cka(x, rng.normal(size=(3000, 5))) < 0.01


@pytest.mark.integration
def test_all_files_are_written(tmp_path):
    page = write_comparison(tmp_path, RUNS, ["pmr 0: it broke <here>"], title="t").read_text(
        encoding="utf-8"
    )
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "index.html",
        "results.json",
        "figure_3.png",
        "figure_3c.png",
        "confusion.png",
        "figure_4c.png",
        "figure_2b.png",
        *(
            f"{t}.{end}"
            for t in ("table_2", "table_4", "subsets", "optimism")
            for end in ("csv", "md", "tex")
        ),
    }
    assert "it broke &lt;here&gt;" in page
    assert not re.search(r'src="(?!data:)', page)
    assert r"$\pm$" in (tmp_path / "table_2.tex").read_text(encoding="utf-8")


def test_every_system_and_head_stands_beside_the_baseline():
    runs = [benchmark_run("logistic", 0, 0.7), *RUNS]
    table = table_2(runs)
    assert table.index[0] == "logistic"
    assert table.loc["logistic", "vs logistic"] == ""
    # 0.5 and 0.6 against 0.7: both are marked, with p-values of a difference that large.
    for system in ("eft", "lfmim"):
        assert table.loc[system, "vs logistic"].endswith("↓")
        assert table.loc[system, "p vs logistic"] == "< 0.001"
    both = table_2([benchmark_run("logistic", 0, 0.2), benchmark_run("stacking", 0, 0.7), *RUNS])
    assert both.loc["lfmim", "vs stacking"].endswith("↓")
    assert both.loc["lfmim", "vs logistic"].startswith("+")
    assert both.loc["stacking", "vs logistic"].startswith("+")
    assert both.loc["logistic", "vs stacking"] == both.loc["stacking", "vs stacking"] == ""
    heads = table_4([benchmark_run("logistic", 0, 0.2), benchmark_run("stacking", 0, 0.7), *RUNS])
    # Only the multimodal head stands against it, and "nan" is no answer.
    assert heads.loc["lfmim audio", "vs stacking"] == ""
    assert heads.loc["lfmim multimodal", "vs stacking"].endswith("↓")
    better = heads.loc["lfmim audio", "vs logistic"]
    assert better.startswith("+")
    assert not better.endswith("↓")
    assert "vs logistic" not in table_2(RUNS).columns


def test_the_budget_of_a_recipe_is_stated():
    """61 samples in batches of 16 are 4 steps; inverse_epoch gives 0.1 and 0.05, momentum stays
    beside the sum."""
    config = ExperimentConfig(
        store="s", train=TrainConfig(lr=0.1, epochs=2, batch_size=16, momentum=0.9)
    )
    run = benchmark_run("lfmim", 0, 0.5)
    for entry in run["history"]:
        for m in entry["train"].values():
            m["count"] = 61
    run |= {
        "config": to_dict(config),
        "history": [{**run["history"][0], "lr": lr} for lr in (0.1, 0.05)],
    }
    row = table_2([run]).loc["lfmim"]
    assert (row["steps"], row["Σ lr"]) == ("8", "0.6 (sgd, momentum 0.9)")
    warm = to_dict(dataclasses.replace(config.train, warmup_epochs=1))
    run["config"]["train"] = warm
    # 1/4, 2/4, 3/4 and 4/4 of 0.1, then four steps of 0.05
    assert table_2([run]).loc["lfmim", "Σ lr"].startswith("0.45 ")
    assert table_2(RUNS).loc["lfmim", "steps"] == ""
