"""Systems x seeds as Ray tasks: each trained to the same budget, chosen on validation, tested once."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import ray
import torch

from lfmim.config import config_hash, experiment_from_dict, to_dict
from lfmim.data.batches import UtteranceTensors, load_split
from lfmim.distributed.trainer import data_fingerprint
from lfmim.evaluation.comparison import linear_cka
from lfmim.evaluation.report import write_text
from lfmim.models import EmotionNet
from lfmim.models.cost import flops_per_sample, parameter_count
from lfmim.schema import MODALITIES, MULTIMODAL, FeatureSpec
from lfmim.training.checkpoint import META, STATE, load_model
from lfmim.training.loop import EpochReport, evaluate, train
from lfmim.training.systems import BenchmarkConfig, benchmark_experiment, system_names

RESULT = "result.json"
TEST_BATCH = 256


def run_benchmark(
    config: BenchmarkConfig, presets: Mapping[str, Mapping[str, Any]], *,
    on_done: Callable[[int, int, dict[str, Any]], None] = lambda done, total, result: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all runs, and what failed ("system seed: reason"). Finished runs of the same config are reused, begun
    ones go on from their last epoch.

    `on_done(done, total, result)` is called as runs end. One failed run does not end the others.
    """
    store = Path(config.store).resolve()
    fingerprint = data_fingerprint(store)
    remote = ray.remote(_run).options(num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=2)
    runs = [  # seed by seed: an interrupted benchmark has all systems of the first seeds
        (system, seed, benchmark_experiment(config, system, seed, presets))
        for seed in range(config.seeds) for system in system_names(config)
    ]
    results: list[dict[str, Any]] = []
    waiting: dict[Any, str] = {}
    for system, seed, experiment in runs:
        with_curves = seed < config.curves
        key = config_hash(to_dict(experiment.model), to_dict(experiment.train), fingerprint, with_curves)
        folder = Path(config.report).resolve() / "runs" / f"{Path(system).stem}-{seed}-{key}"
        if (folder / RESULT).is_file():
            results.append(json.loads((folder / RESULT).read_text(encoding="utf-8")))
            on_done(len(results), len(runs), results[-1])
            continue
        task = remote.remote(to_dict(experiment), str(store), str(folder), Path(system).stem, seed, with_curves,
                             config.cpus_per_run)
        waiting[task] = f"{system} {seed}"
    failed: list[str] = []
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(ready)
        try:
            results.append(ray.get(ready))
            on_done(len(results) + len(failed), len(runs), results[-1])
        except ray.exceptions.RayError as error:
            failed.append(f"{name}: {str(error).strip().splitlines()[-1]}")
    return results, failed


def _run(
    raw: dict[str, Any], store: str, folder: str, system: str, seed: int, with_curves: bool, cpus: float
) -> dict[str, Any]:
    """One training run; continues from its last checkpoint and leaves `result.json`."""
    torch.set_num_threads(max(1, int(cpus)))
    started, home = time.perf_counter(), Path(folder)
    config, device = experiment_from_dict(raw), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    last, best, epochs = home / "last", home / "best", home / "epochs"

    def on_epoch(report: EpochReport, save: Callable[[Path], None]) -> None:
        if with_curves:
            save(epochs / str(report.epoch))
            (epochs / str(report.epoch) / STATE).unlink()
        if report.best:
            save(best)
        save(last)

    meta = train(
        config, FeatureSpec.load(Path(store)), load_split(Path(store), "train", config.model),
        load_split(Path(store), "valid", config.model), device=device, on_epoch=on_epoch,
        resume=last if (last / META).is_file() else None,
    )
    # From here on nothing is chosen any more: the only reading of the test split.
    test = load_split(Path(store), "test", config.model).to(device)
    model = load_model(best)[0].to(device)
    outputs, cka = _predictions(model, test)
    every = range(meta.epoch) if with_curves else ()
    curves = [_scores(load_model(epochs / str(e))[0].to(device), test) for e in every]
    sample = next(test.batches(8))
    result = {
        "system": system, "seed": seed, "config": raw, "epochs": meta.epoch, "best_epoch": meta.best_epoch,
        "valid_score": meta.best_score, "history": meta.history, "seconds": time.perf_counter() - started,
        "parameters": parameter_count(model), "flops": flops_per_sample(model, sample.features, sample.masks),
        "test": _scores(model, test), "test_curves": curves,
        "labels": test.labels.cpu().T.tolist(), "predictions": outputs, "cka": cka, "subsets": _subsets(model, test),
    }
    write_text(home / RESULT, json.dumps(result))
    for spent in (last, epochs):
        shutil.rmtree(spent, ignore_errors=True)
    return result


def _scores(model: EmotionNet, data: UtteranceTensors) -> dict[str, dict[str, Any]]:
    metrics = evaluate(model, data, batch_size=TEST_BATCH)
    return {h: vars(m) for h, m in metrics.items() if m.count and h in model.answers}


@torch.inference_mode()
def _predictions(model: EmotionNet, data: UtteranceTensors) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Per head in stored order the predicted class or sentiment score; linear CKA between the uni-modal
    representations, where there are."""
    logits: dict[str, list[torch.Tensor]] = {}
    pooled: dict[str, list[torch.Tensor]] = {}
    for batch in data.batches(TEST_BATCH):
        out = model(batch.features, batch.masks)
        for into, values in ((logits, out.logits), (pooled, out.pooled)):
            for h, x in values.items():
                into.setdefault(h, []).append(x.float().cpu())
    z = {h: torch.cat(x).numpy() for h, x in pooled.items()}
    whole = {h: torch.cat(x) for h, x in logits.items()}
    classes = not data.labels.is_floating_point()
    return ({h: (x.argmax(dim=1) if classes else x[:, 0]).tolist() for h, x in whole.items()},
            {f"{a}-{b}": linear_cka(z[a], z[b]) for a, b in combinations(MODALITIES, 2) if a in z and b in z})


def _subsets(model: EmotionNet, data: UtteranceTensors) -> dict[str, float]:
    """The multimodal head's accuracy (sentiment: minus its absolute error) from every subset of the modalities, for a
    model that accepts absent ones."""
    out = {}
    if model.accepts_absent:
        for size in range(1, len(MODALITIES) + 1):
            for kept in combinations(MODALITIES, size):
                lengths = {m: n if m in kept else torch.zeros_like(n) for m, n in data.lengths.items()}
                part = dataclasses.replace(data, lengths=lengths)
                out["+".join(kept)] = evaluate(model, part, batch_size=TEST_BATCH)[MULTIMODAL].score
    return out
