"""Training at CHERMA's size on one GPU: the plain loop, and each way this project computes a step;
one command, under six minutes.

    python benchmarks/gpu_training.py [--out FOLDER]    # default: $OUT, else benchmarks/out

Needs torch, numpy, pyarrow and safetensors. Features are noise of CHERMA's lengths, made on the
device; speed does not depend on what they say. Every stage is a process of its own: one that fails
is recorded and the others go on, and none has code that another compiled. After each one
`gpu_training.json` and `gpu_training.md` are rewritten, so a run that is cut off leaves what it
had.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from busy import Busy
from corpus import CHERMA, SIZES, feature_spec, machine_floor, noise_corpus, training_flops, wait
from page import machine, report_folder
from reference import Reference, write_files

from lfmim.schema import HEADS
from lfmim.storage import write_text
from lfmim.training.loop import train
from lfmim.training.step import resolve_precision
from lfmim.training.variant import Variant

STEPS = 50
"""Of the comparison of losses."""
SHORT = {"eager": 3, "eager fp32": 2, "compiled": 2}
"""Epochs of the slow ones; the others are trained for LONG."""
LONG = 6
AGREE = "agree: "
"""Before the name of a variant: losses of STEPS steps without dropout."""
RUN = "30 epochs, compile on, "
"""Before `cold` and `warm`: a whole run with its evaluations, code compiled now or kept."""


class Enough(Exception):
    """A stage has used its share of the time."""


class Stages:
    """What is measured, each in this process."""

    def __init__(self, o: argparse.Namespace) -> None:
        self.o, self.device = o, torch.device(o.device)
        self.config, self.dims = SIZES[o.size]
        self.train = noise_corpus(o.utterances * 6 // 10, o.size, device=o.device)
        self.valid = noise_corpus(o.utterances * 2 // 10, o.size, seed=1, device=o.device)
        self.steps = -(-len(self.train) // self.config.train.batch_size)

    def run(self, name: str) -> dict[str, Any]:
        """One stage's figures."""
        if name == "machine":
            return self.about()
        if name == "plain loop":
            return self.plain()
        if name.startswith(AGREE):
            return self.agree(name.removeprefix(AGREE))
        if name.startswith(RUN):
            return self.trained(None, self.o.epochs, compile="on")
        if name == "auto":
            return self.trained(None, min(5, self.o.epochs))
        kind, _, extra = name.partition(" ")
        epochs = SHORT.get(name, LONG)
        fields = {"fp32": {"precision": "fp32"}, "host": {"cache": "host"}}.get(extra, {})
        return self.trained(Variant(kind), epochs, **fields)

    def about(self) -> dict[str, Any]:
        """The machine, and what a step costs at least."""
        precision = resolve_precision("auto", self.device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model, rows = self.config.model, self.config.train.batch_size * 180
        return {
            "machine": machine(self.o.device),
            "precision": precision,
            "torch": torch.__version__,
            "train": len(self.train),
            "steps": self.steps,
            "flops": training_flops(self.train, model) / len(self.train),
            "floor": machine_floor(model, device=self.device, dtype=dtype, rows=rows),
        }

    def trained(self, variant: Variant | None, epochs: int, **fields: Any) -> dict[str, Any]:
        """A run with an evaluation after each epoch: seconds to the end of the first, of a later
        epoch and of its training, memory, how busy the GPU was in the later ones."""
        recipe = replace(self.config.train, epochs=epochs, **fields)
        config = replace(self.config, train=recipe)
        marks: list[float] = []
        training: list[float] = []
        busy = Busy(self.o.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() if self.device.type == "cuda" else 0
        started = time.perf_counter()

        def on_epoch(report: Any, save: Any) -> None:
            marks.append(time.perf_counter() - started)
            training.append(report.seconds)
            if len(marks) == 1:
                busy.__enter__()
            if marks[-1] > self.o.limit:
                raise Enough

        with contextlib.suppress(Enough):
            meta = train(
                config,
                feature_spec(self.dims),
                self.train,
                self.valid,
                device=self.device,
                on_epoch=on_epoch,
                variant=variant,
            )
        wait(self.device)
        if marks:
            busy.__exit__()
        later = range(1, len(marks)) if len(marks) > 1 else range(1)
        epoch_s = marks[-1] - marks[0] if len(marks) > 1 else marks[0]
        epoch_s /= len(later)
        training_s = sum(training[i] for i in later) / len(later)
        return {
            "epochs": len(marks),
            "whole": len(marks) == epochs,
            "variant": meta.variant if len(marks) == epochs else "",
            "wall_s": marks[-1],
            "epoch_s": epoch_s,
            "start_s": marks[0] - epoch_s,
            "train_rate": len(self.train) / training_s,
            "step_s": training_s / self.steps,
            "busy": busy.mean,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if held else None,
            "corpus_gib": held / 2**30 if held else None,
        }

    def agree(self, kind: str) -> dict[str, Any]:
        """The multimodal head's mean training loss over STEPS steps without dropout."""
        still = {f"dropout_{x}": 0.0 for x in ("attention", "ffn", "embedding")}
        batch = self.config.train.batch_size
        few = noise_corpus(min(STEPS * batch, len(self.train)), self.o.size, device=self.o.device)
        config = replace(
            self.config,
            model=replace(self.config.model, **still),
            train=replace(self.config.train, epochs=1),
        )
        meta = train(
            config,
            feature_spec(self.dims),
            few,
            few,
            device=self.device,
            variant=Variant(kind),
        )
        return {"loss": meta.history[0]["train"][HEADS[-1]]["loss"]}

    def plain(self) -> dict[str, Any]:
        """The plain loop over fewer utterances."""
        m = min(self.o.reference_utterances, len(self.train))
        with tempfile.TemporaryDirectory() as name:
            write_files(noise_corpus(m, self.o.size), Path(name))
            loop = Reference(
                self.config.model,
                self.dims,
                Path(name),
                batch_size=self.config.train.batch_size,
                workers=self.o.workers,
                device=self.device,
            )
            loop.epoch()
            times = []
            for f in (loop.epoch, loop.evaluate):
                begun = time.perf_counter()
                f()
                wait(self.device)
                times.append(time.perf_counter() - begun)
        return {"measured_on": m, "train_rate": m / times[0], "evaluate_rate": m / times[1]}


def page(r: dict[str, Any]) -> str:
    """The results so far as Markdown."""
    about, stages = r["stages"].get("machine", {}), r["stages"]
    if "flops" not in about:
        return f"The machine could not be measured: {about.get('error', 'not yet')}\n"
    flops, peak = about["flops"], about["floor"]["peak"]
    lines = [
        f"Machine: {about['machine']}, {about['precision']}, torch {about['torch']}. "
        f"{about['train']:,} utterances to train on, size {r['size']}, {about['steps']} steps an "
        f"epoch. {flops / 1e9:.2f} GFLOP per sample; matmul peak measured {peak / 1e12:.1f} "
        "TFLOP/s.",
        "",
        "| | samples/s | x eager | MFU | epoch with evaluation, s | before the first, s | GPU busy "
        "| peak memory, GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    eager = stages.get("eager", {}).get("train_rate")
    for name, s in stages.items():
        if name == "machine" or name.startswith(AGREE):
            continue
        if "error" in s:
            lines.append(f"| {name} | failed: {s['error']} | | | | | | |")
            continue
        rate = s["train_rate"]
        cells = [
            name,
            f"{rate:,.0f}",
            f"{rate / eager:.2f}" if eager else "",
            f"{rate * flops / peak:.1%}",
            f"{s['epoch_s']:.2f}" if "epoch_s" in s else "",
            f"{s['start_s']:.1f}" if "start_s" in s else "",
            f"{s['busy']:.0f} %" if s.get("busy") is not None else "",
            f"{s['peak_gib']:.2f}" if s.get("peak_gib") else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *_remarks(stages, eager)]) + "\n"


def _remarks(stages: dict[str, Any], eager: float | None) -> list[str]:
    lines = []
    plain = stages.get("plain loop", {}).get("train_rate")
    for name, s in stages.items():
        if name.startswith(RUN) and "wall_s" in s:
            against = f", {s['train_rate'] / plain:.1f}x the plain loop's rate" if plain else ""
            whole = "" if s["whole"] else ", cut off"
            lines += ["", f"{name}: {s['epochs']} epochs in {s['wall_s']:.1f} s{whole}{against}."]

    losses = {n.removeprefix(AGREE): s["loss"] for n, s in stages.items() if "loss" in s}
    if losses:
        told = ", ".join(f"{k} {v:.5f}" for k, v in losses.items())
        spread = (max(losses.values()) - min(losses.values())) / min(losses.values())
        lines += ["", f"Loss of {STEPS} steps without dropout: {told}; {spread:.1e} apart."]

    # The cheaper start against the faster step, from where on the latter has ended first.
    timed = {v: stages[v] for v in Variant if v.captured and "step_s" in stages.get(v, {})}
    for first, second in zip(timed, list(timed)[1:], strict=False):
        a, b = timed[first], timed[second]
        if a["step_s"] > b["step_s"]:
            steps = (b["start_s"] - a["start_s"]) / (a["step_s"] - b["step_s"])
            epochs = steps / stages["machine"]["steps"]
            lines += ["", f"{second} ends before {first} from {epochs:.0f} epochs on."]
    if "auto" in stages and "variant" in stages["auto"]:
        lines += ["", f"auto, {stages['auto']['epochs']} epochs: {stages['auto']['variant']}."]
    return lines


def names(device: str) -> list[str]:
    """The stages, in the order of their use."""
    return [
        "machine",
        "eager",
        "captured",
        "captured-layers",
        f"{RUN}cold",
        f"{RUN}warm",
        "plain loop",
        f"{AGREE}eager",
        f"{AGREE}captured",
        "compiled",
        "captured-model",
        "captured host",
        "auto",
        f"{AGREE}captured-layers",
        f"{AGREE}captured-model",
        *(["eager fp32"] if device == "cuda" else []),
    ]


def measure(o: argparse.Namespace, name: str, cache: Path) -> dict[str, Any]:
    """A stage in a process of its own, its compiled code in `cache`."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--stage", name, "--result", str(result)]
        for option in ("device", "size", "utterances", "epochs", "workers", "limit"):
            command += [f"--{option}", str(getattr(o, option))]
        command += ["--reference-utterances", str(o.reference_utterances)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        sys.stderr.write(done.stderr)
        if result.exists():
            return dict(json.loads(result.read_text(encoding="utf-8")))
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"error": said[-1][:300]}


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
    parser.add_argument("--epochs", type=int, default=30, help="of the whole run")
    parser.add_argument("--reference-utterances", type=int, default=2000)
    parser.add_argument(
        "--workers", type=int, default=8, help="DataLoader workers of the plain loop"
    )
    parser.add_argument("--limit", type=float, default=350, help="seconds for everything")
    parser.add_argument("--stages", nargs="*", help="these alone, by name")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.stage:
        write_text(o.result, json.dumps(Stages(o).run(o.stage)))
        return

    started = time.perf_counter()
    results: dict[str, Any] = {"size": o.size, "stages": {}}

    def left() -> float:
        return o.limit - (time.perf_counter() - started)

    with tempfile.TemporaryDirectory() as scratch:
        for name in o.stages or names(o.device):
            if left() <= 0:
                results["stages"][name] = {"error": "no time was left"}
            else:
                # Only the warm run has what another stage compiled, the cold one.
                kept = name if not name.startswith(RUN) else RUN
                cache = Path(scratch) / kept.replace(":", "").replace(" ", "-")
                results["stages"][name] = measure(o, name, cache)
            write_text(o.out / "gpu_training.json", json.dumps(results, indent=1))
            write_text(o.out / "gpu_training.md", page(results))
            spent = time.perf_counter() - started
            print(f"[{spent:.0f} s] {name}: {results['stages'][name]}", flush=True)
    print((o.out / "gpu_training.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
