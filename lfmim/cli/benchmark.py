"""Which fusion is best on my data: every system of the paper x seeds, chosen on validation, tested
once.

    lfmim benchmark --store features --report benchmark
    lfmim benchmark --store features --systems lfmim,pmr,strong --seeds 5
    lfmim benchmark --store features --folds 5 --seeds 1
    lfmim benchmark --store features --sizes 300,600,1200 --subsets 5 --seeds 1
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lfmim.cli.arguments import PRESETS, parse
from lfmim.distributed import session
from lfmim.experiments.systems import BenchmarkConfig
from lfmim.storage import as_path, input_path, output_folder

if TYPE_CHECKING:
    from torch import Tensor

COMMON = (
    "store",
    "report",
    "systems",
    "seeds",
    "folds",
    "sizes",
    "subsets",
    "at_once",
    "model.task",
    "train.epochs",
    "tracking.uri",
)


def main(args: list[str]) -> int:
    config = parse(BenchmarkConfig, args, prog="lfmim benchmark", about=__doc__, common=COMMON)
    input_path(config.store, "--store")
    folder = output_folder(config.report, "--report", files=("results.json", "index.html"))
    session.check_shared(store=config.store, report=config.report)

    # Here, not at the top: MLflow and what the report needs take seconds to import, for which
    # neither a mistyped option nor --help should wait.
    from pathlib import Path

    from lfmim import tracking
    from lfmim.experiments.comparison_report import about_folds, summary, write_comparison
    from lfmim.experiments.systems import load_presets, system_names
    from lfmim.metrics import not_learned
    from lfmim.progress import share

    names = system_names(config)
    presets = load_presets(names, PRESETS)
    _check(config, presets)

    uri = tracking.tracking_uri(config.tracking, config.report)
    tracking.prepare(uri, config.tracking)
    started = time.perf_counter()

    def say(done: int, total: int, result: dict[str, Any], left: float | None) -> None:
        time_left = (
            "done before"
            if left is None
            else f"{time.perf_counter() - started:5.0f} s, about {left:.0f} s left"
        )
        part = f" fold {k}" if (k := result.get("fold")) else ""
        if result.get("size"):
            part = f" size {result['size']} subset {result['subset']}"
        print(
            f"[{time_left}] {done}/{total} {result['system']} seed {result['seed']}{part}: "
            f"validation {result['valid_score']:.4f}, best epoch {result['best_epoch'] + 1} of "
            f"{result['epochs']}, {result['seconds']:.0f} s",
            flush=True,
        )
        if said := not_learned(result["history"][result["best_epoch"]]["valid"]):
            print(f"  {said}", flush=True)

    parts = f" x {config.folds} folds" if config.folds else ""
    if config.sizes:
        parts = f" x {len(config.sizes)} sizes x {config.subsets} subsets"
    what = (
        f"benchmark of {len(names)} systems x {config.seeds} seeds{parts}, "
        f"{share(config.cpus_per_run, config.gpus_per_run)} a run | {config.report}"
    )
    with session.ray_session(what, cpus=config.cpus_per_run, gpus=config.gpus_per_run):
        from lfmim.distributed.benchmark import run_benchmark

        results, failed = run_benchmark(config, presets, on_done=say)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if not results:
        return 1

    # they come as they end: the order of the command line makes two reports comparable
    order = {Path(system).stem: i for i, system in enumerate(names)}
    results.sort(key=lambda r: (order[r["system"]], r.get("size") or 0, r["seed"]))
    title = f"Systems compared on {config.store}"
    page = write_comparison(folder, results, failed, title=title, published=config.published)
    if results[0].get("folds"):
        print(about_folds(results[0]["folds"]))
    print(summary(results, config.published))
    run_id = tracking.log_comparison(uri, config, results, folder)
    print(f"report: {page}\nmlflow ui --backend-store-uri {uri}   # run {run_id}")
    return 1 if failed else 0


def _check(config: BenchmarkConfig, presets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError for bad input before a cluster is started, and before hours of runs: a
    system that needs all modalities, or a split without labels, would otherwise fail at its
    turn."""
    import torch

    from lfmim.data.loading import load_split
    from lfmim.data.splits import Fold, Subset, store_folds
    from lfmim.experiments.systems import benchmark_experiment, system_names
    from lfmim.schema import SPLITS, FeatureSpec
    from lfmim.training.loop import check_data

    store = as_path(config.store)
    spec = FeatureSpec.load(store)
    first = Fold(1, config.folds) if config.folds else None
    data = {s: load_split(store, s, config.model, config.train.cache, first) for s in SPLITS}
    if config.sizes:
        # Refused here, for the largest, what each run would refuse.
        Subset(config.sizes[-1], 0).rows(len(data["train"]))
    for system in system_names(config):
        check_data(benchmark_experiment(config, system, 0, presets).model, spec, *data.values())
    if first is None:
        for split, part in data.items():
            _check_labels(config, split, part.labels)
        return

    # One fold's splits are the whole store, so that its features are read once and not per fold.
    folds = store_folds(store, config.folds)
    row_of = {name: i for i, name in enumerate(n for part in data.values() for n in part.ids)}
    labels = torch.cat([part.labels for part in data.values()])
    for k in range(1, config.folds + 1):
        for split in SPLITS:
            rows = [row_of[name] for name in folds.ids(Fold(k, config.folds), split)]
            _check_labels(config, split, labels[rows], f" of fold {k}")


def _check_labels(config: BenchmarkConfig, split: str, labels: Tensor, of: str = "") -> None:
    """Raise InputError if `labels` [N, heads] of a split lack those that a benchmark reads."""
    from lfmim.schema import HEADS, IGNORE_LABEL, MULTIMODAL, InputError

    needed = {
        "valid": (config.train.selection, "by which the checkpoints are chosen"),
        "test": (MULTIMODAL, "by which the systems are compared"),
    }
    known = labels != IGNORE_LABEL
    if not bool(known.any()):
        raise InputError(
            f"{config.store}: split '{split}'{of} has no {config.model.task} label of any head"
        )
    if split in needed and not bool(known[:, HEADS.index(needed[split][0])].any()):
        head, why = needed[split]
        raise InputError(
            f"{config.store}: split '{split}'{of} has no {config.model.task} label of head "
            f"'{head}', {why}"
        )
