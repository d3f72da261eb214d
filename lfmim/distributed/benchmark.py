"""Systems x seeds as Ray tasks: each trained to the same budget, chosen on validation, tested once."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from torch.utils.flop_counter import FlopCounterMode

from lfmim.config import BenchmarkConfig, benchmark_experiment, config_hash, experiment_from_dict, to_dict
from lfmim.data.batches import UtteranceTensors, load_split
from lfmim.distributed.trainer import data_fingerprint
from lfmim.evaluation.comparison import linear_cka
from lfmim.models import EmotionNet
from lfmim.schema import MODALITIES, FeatureSpec
from lfmim.training.checkpoint import load_model
from lfmim.training.loop import EpochReport, evaluate, train

RESULT = "result.json"


def run_benchmark(
    config: BenchmarkConfig, *, on_done: Callable[[int, int, dict[str, Any]], None] = lambda done, total, result: None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all runs, and what failed ("system seed: reason"). Finished runs of the same config are reused.

    `on_done(done, total, result)` is called as runs end. One failed run does not end the others.
    """
    store = Path(config.store).resolve()
    fingerprint = data_fingerprint(store)
    remote = ray.remote(_run).options(num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=2)
    results: list[dict[str, Any]] = []
    waiting: dict[Any, str] = {}
    total = len(config.systems) * config.seeds
    for seed in range(config.seeds):  # seed by seed: an interrupted benchmark has all systems of the first seeds
        for system in config.systems:
            experiment = benchmark_experiment(config, system, seed)
            key = config_hash(to_dict(experiment.model), to_dict(experiment.train), fingerprint)
            folder = Path(config.report).resolve() / "runs" / f"{system}-{seed}-{key}"
            if (folder / RESULT).is_file():
                results.append(json.loads((folder / RESULT).read_text(encoding="utf-8")))
                on_done(len(results), total, results[-1])
                continue
            task = remote.remote(to_dict(experiment), str(store), str(folder), system, seed, config.cpus_per_run)
            waiting[task] = f"{system} {seed}"
    failed: list[str] = []
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        name = waiting.pop(ready)
        try:
            results.append(ray.get(ready))
            on_done(len(results) + len(failed), total, results[-1])
        except ray.exceptions.RayError as error:
            failed.append(f"{name}: {str(error).strip().splitlines()[-1]}")
    return results, failed


def _run(raw: dict[str, Any], store: str, folder: str, system: str, seed: int, cpus: float) -> dict[str, Any]:
    """One training run; continues from its last checkpoint and leaves `result.json`."""
    torch.set_num_threads(max(1, int(cpus)))
    started, home = time.perf_counter(), Path(folder)
    config, device = experiment_from_dict(raw), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    last, best = home / "last", home / "best"

    def on_epoch(report: EpochReport, save: Callable[[Path], None]) -> None:
        if report.best:
            save(best)
        save(last)

    meta = train(
        config, FeatureSpec.load(Path(store)), load_split(Path(store), "train", config.model),
        load_split(Path(store), "valid", config.model), device=device, on_epoch=on_epoch,
        resume=last if (last / "checkpoint.json").is_file() else None,
    )
    model, _ = load_model(best)
    model = model.to(device)
    test = load_split(Path(store), "test", config.model).to(device)
    metrics = evaluate(model, test, batch_size=256)
    predictions, cka = _predictions(model, test)
    result = {
        "system": system, "seed": seed, "epochs": meta.epoch, "best_epoch": meta.best_epoch,
        "valid_score": meta.best_score, "history": meta.history, "seconds": time.perf_counter() - started,
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "flops": _flops(model, test), "test": {h: vars(m) for h, m in metrics.items() if m.count},
        "labels": test.labels.cpu().T.tolist(), "predictions": predictions, "cka": cka,
    }
    temporary = home / f".{RESULT}.tmp"
    temporary.write_text(json.dumps(result), encoding="utf-8")
    os.replace(temporary, home / RESULT)
    shutil.rmtree(last, ignore_errors=True)
    return result


@torch.inference_mode()
def _predictions(model: EmotionNet, data: UtteranceTensors) -> tuple[dict[str, list[int]], dict[str, float]]:
    """Predicted class per head in stored order; linear CKA between the uni-modal representations, where there are."""
    logits: dict[str, list[torch.Tensor]] = {}
    pooled: dict[str, list[torch.Tensor]] = {}
    for batch in data.batches(256):
        out = model(batch.features, batch.masks)
        for into, values in ((logits, out.logits), (pooled, out.pooled)):
            for h, x in values.items():
                into.setdefault(h, []).append(x.float().cpu())
    z = {h: torch.cat(x).numpy() for h, x in pooled.items()}
    pairs = [(a, b) for i, a in enumerate(MODALITIES) for b in MODALITIES[i + 1 :] if a in z and b in z]
    return ({h: torch.cat(x).argmax(dim=1).tolist() for h, x in logits.items()},
            {f"{a}-{b}": linear_cka(z[a], z[b]) for a, b in pairs})


@torch.no_grad()
def _flops(model: EmotionNet, data: UtteranceTensors) -> int:
    """Forward FLOPs for one sample (multiply-add = 2) at this split's mean padded lengths of a batch of 8."""
    batch = next(data.batches(8))
    with FlopCounterMode(display=False) as counter:
        model(batch.features, batch.masks)
    return int(counter.get_total_flops() // len(batch.labels))
