"""Systems x seeds as Ray tasks: each trained to the same budget, chosen on validation, tested
once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import ray
import torch

from lfmim.config import config_hash, experiment_from_dict, hash_parts, to_dict
from lfmim.data.batches import UtteranceTensors
from lfmim.data.loading import load_split
from lfmim.data.splits import Fold, StoreFolds, store_folds
from lfmim.distributed import at_work, ops
from lfmim.distributed.driver import run_epochs
from lfmim.distributed.trainer import data_fingerprint
from lfmim.experiments.comparison import linear_cka
from lfmim.experiments.folds import merge_folds
from lfmim.experiments.systems import BenchmarkConfig, benchmark_experiment, system_names
from lfmim.models import MODELS, EmotionNet
from lfmim.models.cost import flops_per_sample, parameter_count
from lfmim.progress import at
from lfmim.schema import MODALITIES, MULTIMODAL
from lfmim.storage import StorageError, WriteError, as_path, write_text
from lfmim.training.checkpoint import (
    STATE,
    CheckpointMeta,
    epoch_folder,
    load_model,
    remove_checkpoints,
)
from lfmim.training.loop import EpochReport
from lfmim.training.passes import evaluate

RESULT = "result.json"
TEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Run:
    """One system and seed (of a fold), and the folder its checkpoints and `result.json` go to."""

    system: str
    seed: int
    config: dict[str, Any]
    folder: str
    with_curves: bool
    fold: Fold | None = None

    @property
    def of_fold(self) -> str:
        """For messages, behind the seed: " fold 2"."""
        return f" fold {self.fold.number}" if self.fold else ""


def run_benchmark(
    config: BenchmarkConfig,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    on_done: Callable[
        [int, int, dict[str, Any], bool], None
    ] = lambda done, total, result, reused: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all runs, and what failed ("system seed: reason"). Finished runs of the same
    config are reused, begun ones go on from their last epoch. With `config.folds` a system and seed
    has a run per fold, and one result of them all, if none failed.

    `on_done(done, total, result, reused)` is called as runs end. One failed run does not end the
    others; a full disk does, as WriteError. Raises InputError for a store without such folds.
    """
    store = as_path(config.store).resolve()
    # A run whose process or node dies is called again by Ray, and goes on from its last epoch.
    remote = ray.remote(_train_run).options(
        num_cpus=config.cpus_per_run, num_gpus=config.gpus_per_run, max_retries=2
    )
    folds = store_folds(store, config.folds) if config.folds else None
    runs = _runs(config, presets, data_fingerprint(store), folds)

    results: list[dict[str, Any]] = []
    failed: list[str] = []
    todo = []
    for run in runs:
        if (as_path(run.folder) / RESULT).is_file():
            results.append(json.loads((as_path(run.folder) / RESULT).read_text(encoding="utf-8")))
            on_done(len(results), len(runs), results[-1], True)
        else:
            todo.append(run)

    waiting = {remote.remote(run, str(store), config.cpus_per_run): run for run in todo}
    with at_work.say_when_stuck("benchmark", "step", config.stuck_minutes):
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(ready)
            try:
                result = ray.get(ready)
            except ray.exceptions.RayError as error:
                # Ray raises a task's error as one of its own class and the task's at once. A full
                # disk would fail every run.
                if isinstance(error, StorageError):
                    kind = WriteError if isinstance(error, WriteError) else StorageError
                    raise kind(error.path, error.reason) from error
                reason = str(error).strip().splitlines()[-1]
                failed.append(f"{run.system} {run.seed}{run.of_fold}: {reason}")
                continue
            results.append(result)
            on_done(len(results) + len(failed), len(runs), result, False)

    return (merge_folds(results, folds) if folds else results), failed


def _runs(
    config: BenchmarkConfig,
    presets: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    folds: StoreFolds | None,
) -> list[Run]:
    """Seed by seed: an interrupted benchmark has all systems of the first seeds. Within a seed fold
    by fold: a process that has loaded a fold trains its systems in turn."""
    numbers = range(1, config.folds + 1)
    every: list[Fold | None] = [Fold(k, config.folds) for k in numbers] or [None]
    # Neither the column nor the speakers are in the data's fingerprint.
    parts = config_hash(folds.parts) if folds else ""

    out = []
    for seed, fold in product(range(config.seeds), every):
        for system in system_names(config):
            # Nothing in it is drawn: every seed would give the same figures.
            if seed and system in MODELS and MODELS[system].fitted:
                continue
            experiment = benchmark_experiment(config, system, seed, presets)
            # Curves are shown of one training: of the first fold.
            with_curves = seed < config.curves and (fold is None or fold.number == 1)
            # With curves or without are two runs: the latter kept no weights of its epochs.
            key = [*hash_parts(experiment).values(), fingerprint, with_curves]

            name = Path(system).stem
            title = f"{name}-{seed}"
            if fold:
                key += [fold.number, parts]
                title += f"-fold{fold.number}"
            folder = as_path(config.report).resolve() / "runs" / f"{title}-{config_hash(*key)}"
            out.append(Run(name, seed, to_dict(experiment), str(folder), with_curves, fold))
    return out


def _train_run(run: Run, store: str, cpus: float) -> dict[str, Any]:
    """One training run, from its last checkpoint where there is one. Leaves a `result.json`."""
    torch.set_num_threads(max(1, int(cpus)))
    name = f"{run.system} seed {run.seed}{run.of_fold}"
    at_work.begin(name, name)
    started, home = time.perf_counter(), as_path(run.folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = experiment_from_dict(run.config, stored=True)

    def after_epoch(report: EpochReport) -> None:
        ops.log_epoch("benchmark", run.system, f"{run.seed}{run.of_fold}", report)
        # Of an epoch that is behind, only the weights are read again; AdamW's state is twice
        # their size.
        (epoch_folder(home, report.epoch - 1) / STATE).unlink(missing_ok=True)

    meta = run_epochs(
        config,
        as_path(store),
        home,
        device=device,
        keep=None if run.with_curves else 1,
        # Ray gives a process that has ended a run the next one.
        hold=True,
        fold=run.fold,
        after_epoch=after_epoch,
    )
    seconds = time.perf_counter() - started

    # From here on nothing is chosen any more: the only reading of the test split.
    at("test")
    test = load_split(as_path(store), "test", config.model, config.train.cache, run.fold)
    result = _result(run, meta, test.to(device), seconds)
    at("")
    return result


def _result(
    run: Run, meta: CheckpointMeta, test: UtteranceTensors, seconds: float
) -> dict[str, Any]:
    home, device = as_path(run.folder), test.labels.device
    best = epoch_folder(home, meta.best_epoch)
    model = load_model(best)[0].to(device)
    outputs, cka = _predictions(model, test)

    # After the choice of the epoch: the curves show the test split and choose nothing.
    every = range(meta.epoch) if run.with_curves else ()
    curves = [_scores(load_model(epoch_folder(home, e))[0].to(device), test) for e in every]

    sample = next(test.batches(8))
    result = {
        "system": run.system,
        "seed": run.seed,
        "fold": run.fold.number if run.fold else None,
        "label_spec": meta.labels.to_dict(),
        "config": run.config,
        "epochs": meta.epoch,
        "best_epoch": meta.best_epoch,
        "valid_score": meta.best_score,
        "history": meta.history,
        "seconds": seconds,
        "parameters": parameter_count(model),
        "flops": flops_per_sample(model, sample.features, sample.masks),
        "test": _scores(model, test),
        "test_curves": curves,
        "ids": test.ids,
        "labels": test.labels.cpu().T.tolist(),
        "predictions": outputs,
        "cka": cka,
        "subsets": _subsets(model, test),
    }

    write_text(home / RESULT, json.dumps(result))
    # After the result is written: until then a rerun goes on from them.
    remove_checkpoints(home, keep={best})
    return result


def _scores(model: EmotionNet, data: UtteranceTensors) -> dict[str, dict[str, Any]]:
    metrics = evaluate(model, data, batch_size=TEST_BATCH)
    # A head that the model lacks would score as if it were always wrong.
    return {h: vars(m) for h, m in metrics.items() if m.count and h in model.answers}


@torch.inference_mode()
def _predictions(
    model: EmotionNet, data: UtteranceTensors
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Per head in stored order the predicted class or sentiment score; linear CKA between the
    uni-modal representations, where there are."""
    logits: dict[str, list[torch.Tensor]] = {}
    pooled: dict[str, list[torch.Tensor]] = {}
    for batch in data.batches(TEST_BATCH):
        out = model(batch.features, batch.masks)
        for into, values in ((logits, out.logits), (pooled, out.pooled)):
            for h, x in values.items():
                into.setdefault(h, []).append(x.float().cpu())

    z = {h: torch.cat(x).numpy() for h, x in pooled.items()}
    whole = {h: torch.cat(x) for h, x in logits.items()}
    pairs = [(a, b) for a, b in combinations(MODALITIES, 2) if a in z and b in z]
    # What a fitted model reads is the features as they are: nothing of it was learned.
    cka = {f"{a}-{b}": linear_cka(z[a], z[b]) for a, b in pairs if not model.fitted}

    classes = not data.labels.is_floating_point()
    predicted = {h: x.argmax(dim=1) if classes else x[:, 0] for h, x in whole.items()}
    return {h: x.tolist() for h, x in predicted.items()}, cka


def _subsets(model: EmotionNet, data: UtteranceTensors) -> dict[str, float]:
    """The multimodal head's accuracy (sentiment: minus its absolute error) from every subset of the
    modalities, for a model that accepts absent ones."""
    if not model.accepts_absent:
        return {}

    out = {}
    # A corpus may have one or two of them.
    there = [m for m in MODALITIES if m in data.lengths]
    for size in range(1, len(there) + 1):
        for kept in combinations(there, size):
            # Absent is length 0: nothing of the modality is valid, so it is masked, not zeroed.
            lengths = {m: n if m in kept else torch.zeros_like(n) for m, n in data.lengths.items()}
            part = dataclasses.replace(data, lengths=lengths)
            out["+".join(kept)] = evaluate(model, part, batch_size=TEST_BATCH)[MULTIMODAL].score
    return out
