"""DDP on this machine with 1, 2 and 4 workers (gloo), and the efficiency to expect at 8, 64 and 256
GPUs.

    python benchmarks/scaling.py [--size paper] [--steps 6]
        [--write docs/benchmarks.md --plot docs/scaling.png]

Strong scaling keeps the global batch, weak scaling the batch per worker. A worker has one thread;
workers beyond the cores only share them.

The projection: t(N) = max(t_c, t_f + t_r(N)) with t_c the compute of a step, t_f = t_c / 3 its
forward pass, in which nothing can be exchanged, and a ring all-reduce t_r(N) = 2 (N-1)/N · bytes /
bandwidth + 2 (N-1) · latency · buckets.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from corpus import SIZES, noise_corpus
from page import machine, report_file, write_section
from torch.nn.parallel import DistributedDataParallel

from lfmim.metrics import HeadSums
from lfmim.models import build_model
from lfmim.storage import new_file
from lfmim.training.step import DDP_OPTIONS, TrainStep, build_optimizer

PROJECTED = (1, 8, 64, 256)


def worker(rank: int, world: int, folder: str, size: str, batch_size: int, steps: int) -> None:
    """Median seconds of a step, written by rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
    )
    config, dims = SIZES[size]
    torch.manual_seed(0)
    model: torch.nn.Module = build_model(config.model, dims)

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        return DistributedDataParallel(model, **DDP_OPTIONS) if world > 1 else model

    device = torch.device("cpu")
    step = TrainStep.of(config, model, build_optimizer(config.train, model), device, wrap)
    data, times = noise_corpus(batch_size, size), []
    sums = HeadSums(data.label_spec.classes, device)
    for _ in range(steps + 1):
        for batch in data.batches(batch_size, rank=rank, world=world):
            dist.barrier()
            started = time.perf_counter()
            step(batch, sums)
            times.append(time.perf_counter() - started)
    if rank == 0:
        Path(folder, f"{world}-{batch_size}").write_text(
            str(statistics.median(times[1:])), encoding="utf-8"
        )
    dist.destroy_process_group()


def step_seconds(world: int, size: str, batch_size: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (world, folder, size, batch_size, steps), nprocs=world)
        return float(Path(folder, f"{world}-{batch_size}").read_text(encoding="utf-8"))


def step_model(
    n: int, compute_s: float, gradient_bytes: int, bandwidth: float, latency: float
) -> float:
    """Seconds of a step on `n` workers by the model in this file's docstring."""
    if n == 1:
        return compute_s
    buckets = max(1, round(gradient_bytes / (DDP_OPTIONS["bucket_cap_mb"] * 2**20)))
    reduce = 2 * (n - 1) / n * gradient_bytes / bandwidth + 2 * (n - 1) * latency * buckets
    return max(compute_s, compute_s / 3 + reduce)


def plot(
    path: Path,
    strong: dict[int, float],
    weak: dict[int, float],
    projected: dict[str, dict[int, float]],
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    one = min(strong)
    axes[0].plot(list(strong), [strong[one] / t for t in strong.values()], "o-")
    axes[0].set(title="strong scaling here", ylabel="speed-up")
    axes[1].plot(list(weak), [weak[one] / t for t in weak.values()], "o-")
    axes[1].set(title="weak scaling here", ylabel="efficiency")
    for name, values in projected.items():
        axes[2].plot(list(values), list(values.values()), "o-", label=name)
    axes[2].set(title="projected, GPUs", ylabel="efficiency", xscale="log")
    axes[2].legend(fontsize=8)
    for ax in axes:
        ax.set(xlabel="workers", ylim=(0, None))
    with new_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format=path.suffix[1:] or "png")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="paper")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument(
        "--batch",
        type=int,
        default=48,
        help="global batch; weak scaling gives each worker a quarter",
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument(
        "--gpu-step-ms",
        type=float,
        default=8.55,
        help="compute of a step of 96 on one GPU: an H200's, captured, its layers compiled",
    )
    parser.add_argument("--write", type=report_file)
    parser.add_argument("--plot", type=report_file)
    o = parser.parse_args()
    strong = {w: step_seconds(w, o.size, o.batch, o.steps) for w in o.workers}
    weak = {w: step_seconds(w, o.size, o.batch // 4 * w, o.steps) for w in o.workers}
    config, dims = SIZES[o.size]
    gradient = sum(p.nbytes for p in build_model(config.model, dims).parameters())
    networks = {
        "NVLink 300 GB/s, 5 µs": (300e9, 5e-6),
        "InfiniBand 25 GB/s, 10 µs": (25e9, 10e-6),
        "Ethernet 1.25 GB/s, 50 µs": (1.25e9, 50e-6),
    }
    compute = o.gpu_step_ms / 1e3
    projected = {
        name: {n: compute / step_model(n, compute, gradient, *net) for n in PROJECTED}
        for name, net in networks.items()
    }
    lines = [
        f"Machine: {machine('cpu')}. Size {o.size}; a step on one worker and {o.batch} samples "
        f"takes {strong[min(strong)]:.2f} s, one thread per worker; {gradient / 1e6:.1f} MB of "
        "gradients are exchanged.",
        "",
        "| workers | strong: s/step | speed-up | weak: s/step | efficiency |",
        "|---|---|---|---|---|",
    ]
    one = min(o.workers)
    lines += [
        f"| {w} | {strong[w]:.2f} | {strong[one] / strong[w]:.2f} | {weak[w]:.2f} | "
        f"{weak[one] / weak[w]:.0%} |"
        for w in o.workers
    ]
    lines += [
        "",
        f"Projected weak-scaling efficiency with {o.gpu_step_ms:g} ms of compute per step and GPU "
        "(batch 96 each; measured on one H200 with the step captured and its layers compiled; the "
        "steps of several workers are not captured yet, so this is what they could reach):",
        "",
        "| network | " + " | ".join(f"{n} GPUs" for n in PROJECTED[1:]) + " |",
        "|---" * len(PROJECTED) + "|",
    ]
    lines += [
        f"| {name} | " + " | ".join(f"{e[n]:.0%}" for n in PROJECTED[1:]) + " |"
        for name, e in projected.items()
    ]
    lines += [
        "",
        "t(N) = max(t_c, t_c/3 + t_r), t_r = 2(N-1)/N · bytes/bandwidth + 2(N-1) · latency · "
        "buckets: a ring all-reduce in buckets of 4 MB that overlaps with the backward pass.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if o.plot:
        plot(o.plot, strong, weak, projected)
    if o.write:
        write_section(o.write, "scaling", text)


if __name__ == "__main__":
    main()
