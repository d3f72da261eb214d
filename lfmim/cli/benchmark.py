"""Which fusion is best on my data: every system of the paper x seeds, chosen on validation, tested
once.

    lfmim benchmark --store features --report benchmark
    lfmim benchmark --store features --systems [lfmim,pmr,strong] --seeds 5
"""

from __future__ import annotations

import sys
import time
from typing import Any

from lfmim.cli.arguments import PRESETS, parse
from lfmim.distributed import session
from lfmim.experiments.systems import BenchmarkConfig
from lfmim.storage import local_path, output_folder

COMMON = ("store", "report", "systems", "seeds", "model.task", "train.epochs", "tracking.uri")


def main(args: list[str]) -> int:
    config = parse(BenchmarkConfig, args, prog="lfmim benchmark", about=__doc__, common=COMMON)
    local_path(config.store, "--store")
    output_folder(config.report, "--report", files=("results.json", "index.html"))
    session.check_shared(store=config.store, report=config.report)

    # Here, not at the top: MLflow and what the report needs take seconds to import, for which
    # neither a mistyped option nor --help should wait.
    from pathlib import Path

    from lfmim import tracking
    from lfmim.data.loading import load_split
    from lfmim.experiments.comparison_report import summary, write_comparison
    from lfmim.experiments.systems import benchmark_experiment, load_presets, system_names
    from lfmim.progress import share
    from lfmim.schema import HEADS, IGNORE_LABEL, MULTIMODAL, FeatureSpec, InputError
    from lfmim.training.loop import check_data

    # Bad input is told before a cluster is started, and before hours of runs: a system that needs
    # all modalities, or a split without labels, would otherwise fail at its turn.
    store = Path(config.store)
    names = system_names(config)
    presets = load_presets(names, PRESETS)
    splits = [
        load_split(store, split, config.model, config.train.cache)
        for split in ("train", "valid", "test")
    ]
    for system in names:
        check_data(
            benchmark_experiment(config, system, 0, presets).model, FeatureSpec.load(store), *splits
        )
    for split, data, head, why in (
        ("valid", splits[1], config.train.selection, "checkpoints are chosen"),
        ("test", splits[2], MULTIMODAL, "systems are compared"),
    ):
        if bool((data.labels[:, HEADS.index(head)] == IGNORE_LABEL).all()):
            raise InputError(
                f"{store}: split '{split}' has no {config.model.task} label of head '{head}', by "
                f"which the {why}"
            )
    # Each run loads its own. `data`, too: the loop's variable still holds the last split.
    del splits, data

    uri = tracking.tracking_uri(config.tracking, config.report)
    tracking.prepare(uri, config.tracking)
    started, before = time.perf_counter(), 0

    def say(done: int, total: int, result: dict[str, Any], reused: bool) -> None:
        nonlocal before
        before += reused
        # runs of an earlier, interrupted benchmark took no time now, and are not in the rate
        passed = time.perf_counter() - started
        left = (
            "done before"
            if reused
            else (f"{passed:5.0f} s, about {passed / (done - before) * (total - done):.0f} s left")
        )
        print(
            f"[{left}] {done}/{total} {result['system']} seed {result['seed']}: validation "
            f"{result['valid_score']:.4f}, best epoch {result['best_epoch'] + 1} of "
            f"{result['epochs']}, {result['seconds']:.0f} s",
            flush=True,
        )

    what = (
        f"benchmark of {len(names)} systems x {config.seeds} seeds, "
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
    results.sort(key=lambda r: (order[r["system"]], r["seed"]))
    page = write_comparison(
        Path(config.report), results, failed, title=f"Systems compared on {config.store}"
    )
    print(summary(results))
    run_id = tracking.log_comparison(uri, config, results, Path(config.report))
    print(f"report: {page}\nmlflow ui --backend-store-uri {uri}   # run {run_id}")
    return 1 if failed else 0
