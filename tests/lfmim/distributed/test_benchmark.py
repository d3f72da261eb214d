"""A benchmark on a real Ray: failures stay with their run, reruns do what is missing, MLflow has it
all once."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import pytest
from mlflow.tracking import MlflowClient

from lfmim import tracking
from lfmim.config import ModelConfig, TrainConfig
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.experiments.comparison_report import summary, write_comparison
from lfmim.experiments.systems import BASELINES, BenchmarkConfig
from lfmim.schema import HEADS, MULTIMODAL
from tests.support.toy import DIMS, SPEC, toy_rows


@pytest.mark.ray
def test_a_benchmark_from_store_to_report(ray_cluster, toy_store, tmp_path):
    from lfmim.distributed.benchmark import run_benchmark

    # lmf needs every modality
    presets = {
        "broken": {"model": {"name": "lmf"}, "train": {"modality_dropout": 0.5}},
        "mine": {"model": {}, "train": {"ema_decay": 0.9, "optimizer": "adamw"}},
    }
    config = BenchmarkConfig(
        store=str(toy_store),
        report=str(tmp_path / "report"),
        systems=["lmf", "lfmim", "mine", "broken"],
        seeds=1,
        model=ModelConfig(
            d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8
        ),
        train=TrainConfig(optimizer="adamw", epochs=2, batch_size=16),
        cpus_per_run=1,
    )
    told: list[tuple[int, int, bool]] = []
    results, failed = run_benchmark(
        config,
        presets,
        on_done=lambda done, total, _, left: told.append((done, total, left is None)),
    )
    names = ["lfmim", "lmf", "logistic", "mine", "stacking"]
    assert sorted(r["system"] for r in results) == names
    assert len(failed) == 1
    assert failed[0].startswith("broken seed 0: ")
    assert "modality_dropout" in failed[0]
    assert told[-1][1:] == (6, False)
    by_name = {r["system"]: r for r in results}
    assert set(by_name["lfmim"]["test"]) == set(HEADS)
    assert set(by_name["lmf"]["test"]) == {MULTIMODAL}
    assert len(by_name["lfmim"]["subsets"]) == 7
    assert by_name["lmf"]["subsets"] == {}
    for r in results:  # the chosen epoch's curve point is the test result
        assert r["test_curves"][r["best_epoch"]] == r["test"]
        assert len(r["test_curves"]) == (1 if r["system"] in BASELINES else 2)
        assert (
            r["subsets"].get("text+audio+vision", r["test"][MULTIMODAL]["accuracy"])
            == (r["test"][MULTIMODAL]["accuracy"])
        )
    runs = tmp_path / "report" / "runs"
    stamps = {p: p.stat().st_mtime_ns for p in runs.glob("*/result.json")}
    # Of a run that ended only the chosen epoch is left.
    left = {p.parent.name: [*p.parent.glob("epoch_*")] for p in runs.glob("*/result.json")}
    assert [len(epochs) for epochs in left.values()] == [1] * len(names)
    again, _ = run_benchmark(dataclasses.replace(config, systems=["lmf", "lfmim", "mine"]), presets)
    assert {p: p.stat().st_mtime_ns for p in runs.glob("*/result.json")} == stamps
    assert sorted(json.dumps(r, sort_keys=True) for r in again) == sorted(
        json.dumps(r, sort_keys=True) for r in json.loads(json.dumps(results))
    )

    page = write_comparison(tmp_path / "report", results, failed, title="t")
    assert "broken seed 0" in page.read_text(encoding="utf-8")
    assert "lmf" in summary(results)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run_id = tracking.log_comparison(uri, config, results, tmp_path / "report")
    assert tracking.log_comparison(uri, config, results, tmp_path / "report") == run_id
    client = MlflowClient(uri)
    children = client.search_runs(
        [client.get_run(run_id).info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'"
    )
    assert {c.data.tags["system"] for c in children} == set(names)
    child = next(c for c in children if c.data.tags["system"] == "lfmim")
    assert child.data.metrics["test/text/accuracy"] == by_name["lfmim"]["test"]["text"]["accuracy"]
    assert len(client.get_metric_history(child.info.run_id, "valid/multimodal/accuracy")) == 2
    assert {f.path for f in client.list_artifacts(run_id, "report")} >= {
        "report/index.html",
        "report/table_2.csv",
    }


@pytest.mark.ray
def test_folds_answer_every_utterance_once_and_go_on(ray_cluster, tmp_path):
    from lfmim.distributed.benchmark import SECONDS, run_benchmark

    rows = [row | {"speaker": f"s{i % 6}"} for i, row in enumerate(toy_rows(60))]
    write_spec(tmp_path / "store", SPEC)
    write_part(tmp_path / "store", rows_to_table(rows, store_schema(DIMS), DIMS))
    config = BenchmarkConfig(
        store=str(tmp_path / "store"),
        report=str(tmp_path / "report"),
        systems=["lfmim"],
        seeds=1,
        folds=3,
        at_once=1,
        model=ModelConfig(
            d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8
        ),
        train=TrainConfig(optimizer="adamw", epochs=1, batch_size=16),
    )
    results, failed = run_benchmark(config, {})
    assert not failed
    assert {r["system"] for r in results} == {*BASELINES, "lfmim"}
    for r in results:
        assert r["ids"] == [row["id"] for row in rows]
        assert r["test"][MULTIMODAL]["count"] == 60 == sum(r["folds"]["counts"])
    runs = list((tmp_path / "report" / "runs").glob("*/result.json"))
    assert len(runs) == 9

    # One after the other, as asked for: each began when the one before had ended.
    spans = sorted((p.stat().st_mtime - json.loads(p.read_text())["seconds"], p) for p in runs)
    for (_, before), (begun, _) in pairwise(spans):
        assert begun >= before.stat().st_mtime - 0.05

    # One that is gone is made again, alone, and takes what it took before as well.
    stamps = {p: p.stat().st_mtime_ns for p in runs}
    runs[0].unlink()
    (runs[0].parent / SECONDS).write_text("1000")
    again, _ = run_benchmark(config, {})
    assert {p for p in runs if p.stat().st_mtime_ns != stamps[p]} == {runs[0]}
    assert max(r["seconds"] for r in again) > 1000
    assert {r["system"]: r["test"] for r in again} == {r["system"]: r["test"] for r in results}


@pytest.mark.ray
def test_sizes_and_what_reads_the_test_split_choose_nothing(ray_cluster, toy_store, tmp_path):
    from lfmim.distributed.benchmark import run_benchmark

    config = BenchmarkConfig(
        store=str(toy_store),
        report=str(tmp_path / "report"),
        systems=["lfmim"],
        seeds=1,
        sizes=[20, 40],
        subsets=2,
        model=ModelConfig(
            d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8
        ),
        train=TrainConfig(optimizer="adamw", epochs=3, batch_size=16),
    )
    results, failed = run_benchmark(config, {})
    assert not failed
    assert {(r["system"], r["size"], r["subset"], r["seed"]) for r in results} == {
        (s, n, k, k) for s in (*BASELINES, "lfmim") for n in (20, 40) for k in (0, 1)
    }
    for r in results:
        assert max(m["count"] for m in r["history"][0]["train"].values()) == r["size"]

    # Without a look at the test split during the epochs every figure is the same.
    blind, _ = run_benchmark(dataclasses.replace(config, curves=0), {})
    assert all(not r["test_curves"] for r in blind)
    assert all(r["test_curves"] for r in results)

    def told(runs: list[dict]) -> list[str]:
        timed = ("seconds", "samples_per_second", "test_curves", "history")
        epochs = [[e["valid"] for e in r["history"]] for r in runs]
        return sorted(
            json.dumps([{k: v for k, v in r.items() if k not in timed}, e], sort_keys=True)
            for r, e in zip(runs, epochs, strict=True)
        )

    assert told(blind) == told(results)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_that_diverges_is_named_and_the_others_go_on(ray_cluster, toy_store, tmp_path):
    from lfmim.distributed.benchmark import run_benchmark

    config = BenchmarkConfig(
        store=str(toy_store),
        report=str(tmp_path / "alone"),
        systems=["lfmim", "averaged", "wild"],
        seeds=2,
        model=ModelConfig(
            d_model=16, num_heads=2, num_layers=1, max_text=8, max_audio=8, max_vision=8
        ),
        train=TrainConfig(optimizer="adamw", epochs=2, batch_size=16, warmup_epochs=1),
    )
    presets = {
        "averaged": {"model": {}, "train": {"ema_decay": 0.9, "optimizer": "adamw"}},
        "wild": {"model": {}, "train": {"optimizer": "sgd", "lr": 1e30}},
    }
    results, failed = run_benchmark(config, presets)
    assert {f.split(":")[0] for f in failed} == {"wild seed 0", "wild seed 1"}
    assert all("not finite" in f for f in failed)
    want = {(s, k) for s in ("lfmim", "averaged") for k in (0, 1)} | {(b, 0) for b in BASELINES}
    assert {(r["system"], r["seed"]) for r in results} == want
    trained = [r for r in results if r["system"] not in BASELINES]
    assert all(len(r["test_curves"]) == 2 for r in trained)
