"""Systems x seeds as Ray tasks: each trained to the same budget, chosen on validation, tested
once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import combinations, product
from pathlib import Path
from typing import Any

import ray
import torch

from lfmim.config import config_hash, experiment_from_dict, hash_parts, to_dict
from lfmim.data.batches import UtteranceTensors
from lfmim.data.loading import load_split
from lfmim.data.splits import Fold, StoreFolds, Subset, groups_of, store_folds
from lfmim.distributed import at_work, ops
from lfmim.distributed.driver import run_epochs
from lfmim.distributed.trainer import data_fingerprint
from lfmim.experiments.comparison import linear_cka
from lfmim.experiments.folds import merge_folds
from lfmim.experiments.schedule import seconds_left
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
SECONDS = "seconds.txt"
"""What a run has taken until its last whole epoch, for the process that goes on with it."""
TEST_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Run:
    """One system and seed (of a fold or a subset), and the folder its checkpoints and
    `result.json` go to."""

    system: str
    seed: int
    config: dict[str, Any]
    folder: str
    with_curves: bool
    fold: Fold | None = None
    subset: Subset | None = None

    @property
    def name(self) -> str:
        """For messages: "lfmim seed 3 fold 2"."""
        fold = f" fold {self.fold.number}" if self.fold else ""
        subset = f" size {self.subset.size} subset {self.subset.number}" if self.subset else ""
        return f"{self.system} seed {self.seed}{fold}{subset}"


def run_benchmark(
    config: BenchmarkConfig,
    presets: Mapping[str, Mapping[str, Any]],
    *,
    on_done: Callable[[int, int, dict[str, Any], float | None], None] = lambda *said: None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Results of all runs, and what failed ("system seed 0: reason"). Finished runs of the same
    config are reused, begun ones go on from their last epoch. With `config.folds` a system and seed
    has a run per fold, and one result of them all, if none failed.

    `on_done(done, total, result, left)` is called as runs end; `left` are the seconds that the
    others will take, None for a result that was there before. One failed run does not end the
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
    taken: dict[str, list[float]] = {}
    todo: deque[Run] = deque()

    def add(result: dict[str, Any]) -> None:
        results.append(result)
        taken.setdefault(result["system"], []).append(result["seconds"])

    for run in runs:
        if (as_path(run.folder) / RESULT).is_file():
            add(json.loads((as_path(run.folder) / RESULT).read_text(encoding="utf-8")))
            on_done(len(results), len(runs), results[-1], None)
        else:
            todo.append(run)

    # Without a limit Ray has all of them at once: it begins what there is room for, and a cluster
    # that can grow sees what is wanted.
    limit = config.at_once or len(todo)
    waiting: dict[Any, Run] = {}
    with at_work.say_when_stuck("benchmark", "step", config.stuck_minutes):
        while todo or waiting:
            while todo and len(waiting) < limit:
                run = todo.popleft()
                waiting[remote.remote(run, str(store), config.cpus_per_run)] = run

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
                failed.append(f"{run.name}: {reason}")
                continue
            add(result)
            ahead = [r.system for r in (*waiting.values(), *todo)]
            left = seconds_left(ahead, taken, min(limit, _room(config)))
            on_done(len(results) + len(failed), len(runs), result, left)

    whole = merge_folds(results, folds) if folds else results
    if not whole:
        return [], failed
    # Of all folds together: one of them may have too few speakers.
    groups = groups_of(store, whole[0]["ids"])
    return [{**r, "groups": groups.names, "grouped_by": groups.unit} for r in whole], failed


def _room(config: BenchmarkConfig) -> int:
    """How many runs the cluster has room for as it is."""
    ray_untyped: Any = ray
    have = ray_untyped.cluster_resources()
    needs = {"CPU": config.cpus_per_run, "GPU": config.gpus_per_run}
    return max(1, min(int(have.get(name, 0) / need) for name, need in needs.items() if need))


def _runs(
    config: BenchmarkConfig,
    presets: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
    folds: StoreFolds | None,
) -> list[Run]:
    """Seed by seed: an interrupted benchmark has all systems of the first seeds. Within a seed part
    by part: a process that has loaded a fold trains its systems in turn."""
    every: list[Fold | None] = [Fold(k, config.folds) for k in range(1, config.folds + 1)] or [None]
    # Neither the column nor the speakers are in the data's fingerprint.
    parts = config_hash(folds.parts) if folds else ""

    out = []
    for number, k in product(range(config.subsets), range(config.seeds)):
        # Every subset has seeds of its own, or all would begin at the same weights.
        seed = number * config.seeds + k
        subsets: list[Subset | None] = [Subset(n, number) for n in config.sizes] or [None]
        for fold, subset, system in product(every, subsets, system_names(config)):
            # Nothing in it is drawn: every seed would give the same figures.
            if k and system in MODELS and MODELS[system].fitted:
                continue
            experiment = benchmark_experiment(config, system, seed, presets)
            # Curves are shown of one training: of the first fold.
            with_curves = (k < config.curves or config.curves < 0) and (
                fold is None or fold.number == 1
            )
            # With curves or without are two runs: the latter kept no weights of its epochs.
            key = [*hash_parts(experiment).values(), fingerprint, with_curves]

            name = Path(system).stem
            title = f"{name}-{seed}"
            if fold:
                key += [fold.number, parts]
                title += f"-fold{fold.number}"
            if subset:
                key += [subset.size, subset.number]
                title += f"-{subset.size}-{subset.number}"
            folder = as_path(config.report).resolve() / "runs" / f"{title}-{config_hash(*key)}"
            raw = to_dict(experiment)
            out.append(Run(name, seed, raw, str(folder), with_curves, fold, subset))
    return out


def _train_run(run: Run, store: str, cpus: float) -> dict[str, Any]:
    """One training run, from its last checkpoint where there is one. Leaves a `result.json`."""
    torch.set_num_threads(max(1, int(cpus)))
    at_work.begin(run.name, run.name)
    home, kept = as_path(run.folder), as_path(run.folder) / SECONDS
    # What an earlier process of this run took is part of what the run takes.
    started = time.perf_counter() - (float(kept.read_text()) if kept.is_file() else 0.0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = experiment_from_dict(run.config, stored=True)

    def after_epoch(report: EpochReport) -> None:
        ops.log_epoch("benchmark", run.system, run.name.removeprefix(f"{run.system} seed "), report)
        write_text(kept, str(time.perf_counter() - started))
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
        subset=run.subset,
        after_epoch=after_epoch,
    )

    # From here on nothing is chosen any more: the only reading of the test split.
    at("test")
    test = load_split(as_path(store), "test", config.model, config.train.cache, run.fold)
    result = _result(run, meta, test.to(device))
    result["seconds"] = time.perf_counter() - started
    write_text(home / RESULT, json.dumps(result))
    # After the result is written: until then a rerun goes on from them.
    remove_checkpoints(home, keep={epoch_folder(home, meta.best_epoch)})
    kept.unlink(missing_ok=True)
    at("")
    return result


def _result(run: Run, meta: CheckpointMeta, test: UtteranceTensors) -> dict[str, Any]:
    """What `result.json` holds, but for `seconds`."""
    home, device = as_path(run.folder), test.labels.device
    model = load_model(epoch_folder(home, meta.best_epoch))[0].to(device)
    outputs, cka = _predictions(model, test)

    # After the choice of the epoch: the curves show the test split and choose nothing.
    every = range(meta.epoch) if run.with_curves else ()
    curves = [_scores(load_model(epoch_folder(home, e))[0].to(device), test) for e in every]

    sample = next(test.batches(8))
    return {
        "system": run.system,
        "seed": run.seed,
        "fold": run.fold.number if run.fold else None,
        "size": run.subset.size if run.subset else None,
        "subset": run.subset.number if run.subset else None,
        "label_spec": meta.labels.to_dict(),
        "config": run.config,
        "epochs": meta.epoch,
        "best_epoch": meta.best_epoch,
        "valid_score": meta.best_score,
        "history": meta.history,
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
