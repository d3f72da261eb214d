r"""What a change of the recipe is worth, by validation alone: systems x changes x seeds, and a
preset choice by choice.

    python benchmarks/recipes.py --store tuning --seeds 3 \
        --changes train.ema_decay=0.99 train.lr=0.002+train.warmup_epochs=2
    python benchmarks/recipes.py --store tuning --systems mult pmr \
        --changes train.lr=0.001 train.lr=0.002
    python benchmarks/recipes.py --store tuning --systems strong    # without each of its choices

A system is trained under the benchmark's common recipe and under it with each change (fields joined
by +). A preset is trained as it is and with each field in which it differs from the common recipe
put back. With --size N, seed k trains on N utterances, the benchmark's subset k. The test split is
never read. Every run is kept in --output, so a rerun does only what is missing. Prints and writes a
Markdown table.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import yaml
from page import report_folder

from lfmim.config import (
    ExperimentConfig,
    config_hash,
    experiment_from_dict,
    hash_parts,
    to_dict,
)
from lfmim.data.loading import load_split
from lfmim.data.splits import Subset
from lfmim.distributed.trainer import data_fingerprint
from lfmim.evaluation.page import markdown_table
from lfmim.experiments.search import searchable, with_params
from lfmim.experiments.systems import BenchmarkConfig, benchmark_experiment, load_presets
from lfmim.former_names import say_renamed, translate
from lfmim.processes import process_pool
from lfmim.schema import FeatureSpec, InputError
from lfmim.storage import write_text
from lfmim.text_files import read_yaml
from lfmim.training.loop import NonFiniteLossError, train


def positive(text: str) -> int:
    """As a type of argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1 is needed")
    return int(text)


def of_type(change: str, field: str, value: Any, current: Any) -> Any:
    """`value`, refused where a number is needed and it is none."""
    number = isinstance(current, int | float) and not isinstance(current, bool)
    if number and not isinstance(value, int | float):
        raise InputError(f"--changes {change}: {field}: {value!r} is no number")
    return value


def value_of(change: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--changes {change}: {text!r} is no value") from error


def plan(
    benchmark: BenchmarkConfig, systems: list[str], changes: list[str]
) -> dict[tuple[str, str], ExperimentConfig]:
    """(system, what is changed) -> config."""
    presets = load_presets(systems, ROOT / "lfmim" / "configs")
    common = searchable(benchmark_experiment(benchmark, "lfmim", 0, {}))
    rows = {}
    for system in systems:
        base = benchmark_experiment(benchmark, system, 0, presets)
        rows[system, ""] = base
        for change in changes:
            items = [item.split("=", 1) for item in change.split("+")]
            if bare := [item[0] for item in items if len(item) == 1]:
                raise InputError(
                    f"--changes {change}: {bare[0]!r} has no value; write FIELD=VALUE, several "
                    "joined by +"
                )
            fields, renamed = translate(
                {k: value_of(change, v) for k, v in items}, d_model=base.model.d_model
            )
            if unknown := sorted(set(fields) - set(common)):
                near = difflib.get_close_matches(unknown[0], common, n=1)
                raise InputError(
                    f"--changes {change}: no field {unknown[0]!r}"
                    + (f"; did you mean {near[0]}?" if near else "; fields are model.* and train.*")
                )
            say_renamed(renamed, "--changes")
            fields = {k: of_type(change, k, v, common[k]) for k, v in fields.items()}
            rows[system, change.replace("+", ", ")] = with_params(base, fields)
        if system in presets:
            for field, value in searchable(base).items():
                before = common[field]
                if before != value:
                    rows[system, f"{field} {value} -> {before}"] = with_params(
                        base, {field: before}
                    )
    return rows


def validation_score(
    config: ExperimentConfig, seed: int, size: int, output: Path, fingerprint: str
) -> float:
    """Best validation score of one run, on `size` training utterances (0: all)."""
    config = with_params(config, {"train.seed": seed})
    key = [*hash_parts(config).values(), fingerprint, *([size] if size else [])]
    path = output / f"{config_hash(*key)}.json"
    if not path.is_file():
        store = Path(config.store)
        data = [load_split(store, split, config.model) for split in ("train", "valid")]
        if size:
            data[0] = data[0].take(Subset(size, seed).rows(len(data[0])))
        meta = train(config, FeatureSpec.load(store), *data)
        found = {"config": to_dict(config), "score": meta.best_score, "best_epoch": meta.best_epoch}
        write_text(path, json.dumps(found))
    return float(json.loads(path.read_text(encoding="utf-8"))["score"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--systems", nargs="+", default=["lfmim"])
    parser.add_argument("--changes", nargs="*", default=[])
    parser.add_argument(
        "--common",
        default=str(ROOT / "lfmim/configs/benchmark.yaml"),
        help="sizes and common recipe",
    )
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--size", type=positive, default=0, help="training utterances of each run")
    parser.add_argument("--output", type=report_folder, default="recipes")
    parser.add_argument(
        "--jobs", type=positive, default=os.cpu_count(), help="runs at a time, a thread each"
    )
    o = parser.parse_args()
    # Of a benchmark's config: its other settings are of the benchmark itself.
    raw = read_yaml(Path(o.common)) or {}
    known = [field.name for field in dataclasses.fields(BenchmarkConfig)]
    if not isinstance(raw, dict) or (unknown := [k for k in raw if k not in known]):
        what = f"no setting {unknown[0]!r}" if isinstance(raw, dict) else "no settings in it"
        raise InputError(f"--common {o.common}: {what}; a benchmark has {', '.join(known)}")
    common = experiment_from_dict(
        {"store": o.store, **{part: raw.get(part) or {} for part in ("model", "train")}}
    )
    rows = plan(
        BenchmarkConfig(store=o.store, model=common.model, train=common.train), o.systems, o.changes
    )
    fingerprint = data_fingerprint(Path(o.store))
    todo = [(name, seed) for seed in range(o.seeds) for name in rows]
    scores: dict[tuple[str, str], list[float]] = {name: [] for name in rows}
    with process_pool(o.jobs, torch.set_num_threads, 1) as pool:
        waiting = [
            pool.submit(validation_score, rows[name], seed, o.size, o.output, fingerprint)
            for name, seed in todo
        ]
        for i, ((name, seed), score) in enumerate(zip(todo, waiting, strict=True), start=1):
            scores[name].append(100 * score.result())
            print(
                f"{i}/{len(todo)} {' '.join(name)} seed {seed}: {scores[name][-1]:.2f}",
                file=sys.stderr,
                flush=True,
            )
    table = []
    for (system, change), values in scores.items():
        x = np.array(values)
        delta = x - np.array(scores[system, ""])
        spread = f" ± {x.std(ddof=1):.2f}" if len(x) > 1 else ""
        table.append(
            [
                system,
                change or "as it is",
                f"{x.mean():.2f}{spread}",
                ""
                if not change
                else f"{delta.mean():+.2f} ({', '.join(f'{d:+.1f}' for d in delta)})",
            ]
        )
    runs = f"{o.seeds} subsets of {o.size}" if o.size else f"{o.seeds} seeds"
    text = markdown_table(
        ["system", "change", f"validation accuracy of m, {runs}", "difference (per seed)"], table
    )
    print(text)
    write_text(o.output / "recipes.md", text)


if __name__ == "__main__":
    try:
        main()
    except (InputError, NonFiniteLossError) as error:
        sys.exit(f"error: {error}")
