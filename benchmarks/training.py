"""Training speed side by side: (a) a straightforward loop over .npy files, (b) this project's, (c)
the machine's floor.

    python benchmarks/training.py [--device cpu] [--repeats 3] [--write docs/benchmarks.md]

Each system is measured in processes of its own, in turn, so that peak memory and time to first step
are its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from page import machine, report_file, write_section

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))


def measure_ours(
    folder: Path, size: str, device_name: str, cache: str = "auto"
) -> dict[str, float]:
    started = time.perf_counter()
    import torch
    from corpus import SIZES, wait

    from lfmim.config import to_dict  # noqa: F401  (what a run imports)
    from lfmim.data.loading import load_split
    from lfmim.metrics import HeadSums
    from lfmim.models import build_model
    from lfmim.training import loop
    from lfmim.training.step import TrainStep, build_optimizer

    device = torch.device(device_name)
    config, dims = SIZES[size]
    c = config.train
    data = load_split(folder / "store", "train", config.model, cache).to(device, cache)
    test = load_split(folder / "store", "valid", config.model, cache).to(device, cache)
    model = build_model(config.model, dims).to(device)
    train_step = TrainStep.of(config, model, build_optimizer(c, model), device)
    sums = HeadSums(data.label_spec.classes, device)

    def step(batch: Any) -> None:
        train_step(batch, sums)

    def epoch() -> None:
        for batch in data.batches(c.batch_size, shuffle_seed=(0, 1)):
            step(batch)
        sums.compute()

    first = next(data.batches(c.batch_size, shuffle_seed=(0, 0)))
    step(first)
    wait(device)
    out = {"first_step_s": time.perf_counter() - started}
    sums.compute()  # imports scikit-learn, once per process
    out |= timings(
        len(data),
        device,
        data=lambda: [None for _ in data.batches(c.batch_size, shuffle_seed=(0, 1))],
        step=lambda: step(first),
        batch=len(first.labels),
        epoch=epoch,
        evaluate=lambda: loop.evaluate(model, test, batch_size=256, autocast=train_step.autocast),
    )
    if cache == "auto":
        out["share"] = measured_in_turn(
            size, len(data), device, lambda: step(first), len(first.labels)
        )
    return out


def measure_reference(folder: Path, size: str, device_name: str, workers: int) -> dict[str, float]:
    started = time.perf_counter()
    import torch
    from corpus import SIZES, wait
    from reference import Reference

    config, dims = SIZES[size]
    device = torch.device(device_name)
    train, test = (
        Reference(
            config.model,
            dims,
            folder / s,
            batch_size=config.train.batch_size,
            workers=workers,
            device=device,
        )
        for s in ("train", "valid")
    )
    first = next(iter(train.batches()))
    train.step(first)
    wait(device)
    out = {"first_step_s": time.perf_counter() - started}

    def evaluate() -> None:
        train.evaluate()
        test.model = train.model
        test.evaluate()

    n = len(train.loader.dataset)  # type: ignore[arg-type]
    out |= timings(
        n,
        device,
        data=lambda: [None for _ in train.batches()],
        step=lambda: train.step(first),
        batch=len(first[2]),
        epoch=train.epoch,
        evaluate=evaluate,
    )
    return out


def timings(
    n: int, device: Any, *, data: Any, step: Any, batch: int, epoch: Any, evaluate: Any
) -> dict[str, float]:
    """Samples per second of each part (the whole: epoch and its evaluations), peak memory in MiB.
    Steps have warmed up before."""
    from corpus import seconds

    def several(f: Any, least: int) -> float:
        """Median of at least `least` runs, of a second's worth of what is shorter."""
        once = seconds(f, device=device, repeats=1, warm_up=False)
        more = min(200, max(least, round(1 / once))) - 1
        return seconds(f, device=device, repeats=more, warm_up=False) if more else once

    one_step, trained, evaluated = several(step, 3), several(epoch, 1), several(evaluate, 1)
    out = {
        "data": n / seconds(data, device=device, repeats=3),
        "step": batch / one_step,
        "epoch": n / trained,
        "whole": n / (trained + evaluated),
    }
    # ru_maxrss begins with the parent's
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    usage = int(status.split("VmHWM:")[1].split()[0]) / 1024
    if device.type == "cuda":
        import torch

        usage = torch.cuda.max_memory_allocated() / 2**20
    return {**out, "peak_mib": usage}


def floor_of(size: str, n: int) -> Any:
    """(c) from the measured rates: a function of `machine_floor`'s result that gives samples/s at
    the shapes' own rates, at the peak rate and of the data alone."""
    from corpus import SIZES, forward_flops, noise_corpus, training_flops

    from lfmim.models import build_model

    config, dims = SIZES[size]
    data = noise_corpus(n, size)
    flops, forward = training_flops(data, config.model) / n, forward_flops(data, config.model)
    share = forward["attention"] / sum(forward.values())
    weights = sum(p.nbytes for p in build_model(config.model, dims).parameters())
    # Read each real feature vector once; per step read weights twice, write and read gradients,
    # read and write weights.
    features = sum(float(data.lengths[m].sum()) * dims[m] * 2 for m in dims) / n
    moved = features + 6 * weights / config.train.batch_size

    def floor(rate: dict[str, float]) -> dict[str, float]:
        return {
            "flops": flops,
            **{f"{k}_rate": v for k, v in rate.items()},
            "peak": 1 / max(flops / rate["peak"], moved / rate["copy"]),
            "shapes": 1
            / (flops * (1 - share) / rate["linear"] + flops * share / rate["attention"]),
            "data": rate["copy"] / features,
        }

    return floor


def measure_rates(size: str, device: Any) -> dict[str, float]:
    import torch
    from corpus import SIZES, machine_floor

    from lfmim.training.step import micro_batch_size, resolve_precision

    config, _ = SIZES[size]
    dtype = torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32
    rows = min(config.train.batch_size, micro_batch_size(0, device, config.model)) * 180
    return machine_floor(config.model, device=device, dtype=dtype, rows=rows)


def measure_floor(size: str, n: int, device_name: str) -> dict[str, float]:
    import torch

    device = torch.device(device_name)
    return dict(floor_of(size, n)(measure_rates(size, device)))


def measured_in_turn(
    size: str, n: int, device: Any, step: Any, batch: int, rounds: int = 7
) -> float:
    """Share of the floor at the shapes' own rates that the step reaches: median of pairs, each
    within seconds."""
    from corpus import seconds

    floor, shares = floor_of(size, n), []
    for _ in range(rounds):
        took = seconds(step, device=device, repeats=1, warm_up=False)
        shares.append(batch / took / floor(measure_rates(size, device))["shapes"])
    return statistics.median(shares)


def prepare(folder: Path, size: str, n: int) -> None:
    from corpus import SIZES, STORED, feature_spec, noise_corpus
    from reference import write_files

    from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
    from lfmim.schema import FEATURE_COLUMNS, HEADS, LABEL_COLUMNS

    _, dims = SIZES[size]
    write_spec(folder / "store", feature_spec(dims))
    for split, count, seed in (("train", n, 0), ("valid", n // 3, 1)):
        data = noise_corpus(count, size, seed=seed, limits=STORED.get(size))
        write_files(data, folder / split)
        rows = [
            {
                "id": name,
                "split": split,
                **{
                    LABEL_COLUMNS[h]: data.label_spec.classes[int(data.labels[i, k])]
                    for k, h in enumerate(HEADS)
                },
                **{FEATURE_COLUMNS[m]: data.sequence(m, i).numpy() for m in dims},
            }
            for i, name in enumerate(data.ids)
        ]
        write_part(folder / "store", rows_to_table(rows, store_schema(dims), dims))


def run_part(
    what: str, folder: Path, size: str, n: int, device: str, workers: int
) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--part",
        what,
        "--folder",
        str(folder),
        "--sizes",
        size,
        "--utterances",
        str(n),
        "--device",
        device,
        "--workers",
        str(workers),
    ]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "LFMIM_CACHE": str(folder / "cache")},
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(
    size: str, n: int, device: str, workers: int, repeats: int
) -> dict[str, dict[str, float]]:
    """Medians over `repeats` rounds of a, b, c."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, size, n)
        rounds: dict[str, list[dict[str, float]]] = {"a": [], "b": [], "stream": [], "c": []}
        for i in range(repeats):
            for what, seen in rounds.items():
                print(f"{size}: round {i + 1} of {repeats}, {what}", file=sys.stderr, flush=True)
                seen.append(run_part(what, folder, size, n, device, workers))
    return {
        what: {k: statistics.median(r[k] for r in seen) for k in seen[0]}
        for what, seen in rounds.items()
    }


def page(results: dict[str, dict[str, dict[str, float]]], sizes: dict[str, int], where: str) -> str:
    lines = [f"Machine: {where}. Samples per second unless another unit is named; medians."]
    for size, r in results.items():
        a, b, c = r["a"], r["b"], r["c"]
        lines += [
            "",
            f"**{size}**, {sizes[size]} utterances, {c['flops'] / 1e9:.2f} GFLOP per sample "
            "(forward and backward, no padding)",
            "",
            "| | (a) plain | (b) ours | b / a | (c) floor | b / c |",
            "|---|---|---|---|---|---|",
        ]

        def row(label: str, key: str, floor: float | None = None, a: Any = a, b: Any = b) -> str:
            tail = f"{floor:,.0f} | {b[key] / floor:.0%}" if floor else "|"
            return f"| {label} | {a[key]:,.1f} | {b[key]:,.1f} | {b[key] / a[key]:.2f} | {tail} |"

        lines += [
            row("data alone", "data", c["data"]),
            row("step alone, floor at the shapes' own rates", "step", c["shapes"]),
            f"| the same, step and floor timed in turn in one process | | | | | {b['share']:.0%} |",
            row("step alone, floor at the peak rate", "step", c["peak"]),
            row("epoch", "epoch", c["shapes"]),
            row("epoch with its evaluations (a: train and test, b: validation)", "whole"),
            row("epoch with `train.cache: stream`", "epoch", c["shapes"], b=r["stream"]),
            f"| time to first step, s | {a['first_step_s']:.1f} | {b['first_step_s']:.1f} | | | |",
            f"| peak memory, MiB | {a['peak_mib']:,.0f} | {b['peak_mib']:,.0f} | | | |",
            f"| model FLOPs utilisation | {a['step'] * c['flops'] / c['peak_rate']:.0%} | "
            f"{b['step'] * c['flops'] / c['peak_rate']:.0%} | | | |",
            "",
            f"Rates measured: matmul peak {c['peak_rate'] / 1e9:,.0f} GFLOP/s, at the linear "
            f"layers' shapes {c['linear_rate'] / 1e9:,.0f}, at attention's "
            f"{c['attention_rate'] / 1e9:,.0f}; memory {c['copy_rate'] / 1e9:.0f} GB/s.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["paper", "small", "light", "fusion"])
    parser.add_argument(
        "--utterances", type=int, nargs="+", default=[192, 3000, 1500, 3000], help="one per size"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="DataLoader workers of (a)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=report_file, help="page whose training section is replaced")
    parser.add_argument("--part", choices=["a", "b", "stream", "c"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.part:
        result = (
            measure_reference(o.folder, o.sizes[0], o.device, o.workers)
            if o.part == "a"
            else measure_ours(o.folder, o.sizes[0], o.device)
            if o.part == "b"
            else measure_ours(o.folder, o.sizes[0], o.device, "stream")
            if o.part == "stream"
            else measure_floor(o.sizes[0], o.utterances[0], o.device)
        )
        print(json.dumps(result))
        return
    sizes = dict(zip(o.sizes, o.utterances, strict=True))
    results = {size: compare(size, n, o.device, o.workers, o.repeats) for size, n in sizes.items()}
    text = page(results, sizes, machine(o.device))
    print(text)
    if o.write:
        write_section(o.write, "training", text)


if __name__ == "__main__":
    main()
