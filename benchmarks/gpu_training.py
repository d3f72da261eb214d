"""Training at CHERMA's size on one GPU: one run, the plain loop; one command,
under ten minutes.

    python benchmarks/gpu_training.py [--out FOLDER]    # default: $OUT, else benchmarks/out

Needs torch, numpy, pyarrow and safetensors. Features are noise of CHERMA's lengths, made on the
device; speed does not depend on what they say. After each stage `gpu_training.json` and
`gpu_training.md` are rewritten, so a run that is cut off leaves what it had. Stages that would pass
the time limit train fewer epochs, and say so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from corpus import CHERMA, SIZES, feature_spec, machine_floor, noise_corpus, training_flops
from page import machine, report_folder
from reference import Reference, write_files

from lfmim.schema import HEADS
from lfmim.storage import write_text
from lfmim.training.loop import train
from lfmim.training.step import resolve_precision


class Enough(Exception):
    """A stage has used its share of the time."""


def timed(run: Callable[[Callable[[], None]], Any], limit_s: float) -> dict[str, float]:
    """Run a training; `run` gets a function to call after every epoch. Wall seconds, epochs
    reached, seconds per epoch after the first (which holds compilation and warm-up)."""
    started = time.perf_counter()
    marks: list[float] = []

    def mark() -> None:
        marks.append(time.perf_counter() - started)
        if marks[-1] > limit_s:
            raise Enough

    with contextlib.suppress(Enough):
        run(mark)
    later = (marks[-1] - marks[0]) / (len(marks) - 1) if len(marks) > 1 else marks[0]
    return {"wall_s": marks[-1], "epochs": len(marks), "first_epoch_s": marks[0], "epoch_s": later}


def page(r: dict[str, Any]) -> str:
    """The results so far as Markdown."""
    lines = [
        f"Machine: {r['machine']}, {r['precision']}, torch {r['torch']}. {r['utterances']:,} "
        f"utterances ({r['train']:,} to train on), size {r['size']}, {r['epochs']} epochs wanted. "
        f"{r['flops'] / 1e9:.2f} GFLOP per sample; matmul peak measured "
        f"{r['floor']['peak'] / 1e12:.1f} TFLOP/s.",
        "",
        "| | wall, s | epochs | s/epoch after the first | samples/s | MFU |",
        "|---|---|---|---|---|---|",
    ]
    for name, s in r["stages"].items():
        if "error" in s:
            lines.append(f"| {name} | failed: {s['error']} | | | | |")
        elif "epoch_s" in s:
            rate = s["runs"] * r["train"] / s["epoch_s"]
            lines.append(
                f"| {name} | {s['wall_s']:.1f} | {s['epochs']} | {s['epoch_s']:.3f} | {rate:,.0f} "
                f"| {rate * r['flops'] / r['floor']['peak']:.1%} |"
            )
    a, one = (r["stages"].get(k, {}) for k in ("plain loop", "one run"))
    if "train_rate" in a:
        lines += [
            "",
            f"Plain loop, measured on {a['measured_on']} utterances and scaled: "
            f"{a['train_rate']:,.0f} samples/s training, {a['evaluate_rate']:,.0f} evaluating; "
            f"{a['wall_s']:,.0f} s for {r['epochs']} epochs with its evaluations of the train and "
            "test splits.",
        ]
    if "epoch_s" in one:
        whole = one["first_epoch_s"] + (r["epochs"] - 1) * one["epoch_s"]
        lines += [
            "",
            f"One run of {r['epochs']} epochs: {whole:.1f} s"
            + (
                f", {a['wall_s'] / whole:.1f}x faster than the plain loop."
                if "wall_s" in a
                else "."
            ),
        ]
    if "losses" in r:
        lines += [
            "",
            "First epoch's training loss (multimodal head): "
            + ", ".join(f"{k} {v:.4f}" for k, v in r["losses"].items())
            + ".",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=report_folder, default=os.environ.get("OUT") or "benchmarks/out"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=sorted(SIZES), default="paper")
    parser.add_argument("--utterances", type=int, default=CHERMA)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--reference-utterances", type=int, default=2000)
    parser.add_argument(
        "--workers", type=int, default=8, help="DataLoader workers of the plain loop"
    )
    parser.add_argument("--limit", type=float, default=540, help="seconds for everything")
    o = parser.parse_args()
    started = time.perf_counter()
    device = torch.device(o.device)
    config, dims = SIZES[o.size]
    config = replace(config, train=replace(config.train, epochs=o.epochs))
    spec = feature_spec(dims)
    n = o.utterances * 6 // 10
    data = noise_corpus(n, o.size, device=o.device)
    valid = noise_corpus(o.utterances * 2 // 10, o.size, seed=1, device=o.device)
    precision = resolve_precision("auto", device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rows = config.train.batch_size * 180
    results: dict[str, Any] = {
        "machine": machine(o.device),
        "precision": precision,
        "torch": torch.__version__,
        "utterances": o.utterances,
        "train": n,
        "size": o.size,
        "epochs": o.epochs,
        "flops": training_flops(data, config.model) / n,
        "floor": machine_floor(config.model, device=device, dtype=dtype, rows=rows),
        "stages": {},
        "losses": {},
    }

    def keep() -> None:
        write_text(o.out / "gpu_training.json", json.dumps(results, indent=1))
        write_text(o.out / "gpu_training.md", page(results))

    def stage(name: str, run: Callable[[float], dict[str, Any]], share: float) -> None:
        """`share` of the time that is left; a stage that fails is recorded and the others go on."""
        left = o.limit - (time.perf_counter() - started)
        try:
            results["stages"][name] = run(max(left * share, 1.0))
        except Exception as error:
            traceback.print_exc()
            results["stages"][name] = {
                "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            }
        if device.type == "cuda":
            torch.cuda.empty_cache()
        keep()
        print(
            f"[{time.perf_counter() - started:.0f} s] {name}: {results['stages'][name]}", flush=True
        )

    def single(limit: float, **fields: Any) -> dict[str, Any]:
        c = replace(config, train=replace(config.train, **fields))

        def run(mark: Callable[[], None]) -> None:
            def on_epoch(report: Any, save: Any) -> None:
                if report.epoch == 0:
                    label = ", ".join(f"{k} {v}" for k, v in fields.items()) or "defaults"
                    results["losses"][label] = report.train[HEADS[-1]].loss
                mark()

            train(c, spec, data, valid, device=device, on_epoch=on_epoch)

        return {"runs": 1, **timed(run, limit)}

    def plain(limit: float) -> dict[str, Any]:
        m = min(o.reference_utterances, n)
        with tempfile.TemporaryDirectory() as name:
            write_files(noise_corpus(m, o.size), Path(name))
            loop = Reference(
                config.model,
                dims,
                Path(name),
                batch_size=config.train.batch_size,
                workers=o.workers,
                device=device,
            )
            loop.epoch()
            times = []
            for f in (loop.epoch, loop.evaluate):
                begun = time.perf_counter()
                f()
                times.append(time.perf_counter() - begun)
        rates = {"train_rate": m / times[0], "evaluate_rate": m / times[1]}
        epoch = n / rates["train_rate"] + (n + o.utterances * 2 // 10) / rates["evaluate_rate"]
        return {**rates, "measured_on": m, "wall_s": epoch * o.epochs}

    short = {"epochs": 2}
    stage("eager, 2 epochs", lambda limit: single(limit, compile="off", **short), 0.15)
    stage("compiled, 2 epochs", lambda limit: single(limit, compile="on", **short), 0.25)
    stage(
        "eager float32, 2 epochs",
        lambda limit: single(limit, compile="off", precision="fp32", **short),
        0.15,
    )
    stage("plain loop", plain, 1)
    stage("one run", lambda limit: single(limit), 0.95)
    print((o.out / "gpu_training.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
