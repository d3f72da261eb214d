"""What each choice of a preset is worth: the common recipe with the choice added, the preset with it taken away.

    python benchmarks/ablation.py --store tuning --preset strong --seeds 3

Validation only: the test split is never read. Every run is kept in --output, so a rerun does only what is missing.
Prints and writes a Markdown table of the multimodal head's validation accuracy at the chosen epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
import yaml

from lfmim.config import config_hash, experiment_from_dict, to_dict
from lfmim.data.loading import load_split
from lfmim.distributed.trainer import data_fingerprint
from lfmim.evaluation.report import write_text
from lfmim.schema import FeatureSpec
from lfmim.training.loop import train
from lfmim.training.systems import BenchmarkConfig, benchmark_experiment, load_presets

Choice = tuple[str, str]
"""Section and field of the experiment's config."""


def differences(base: dict[str, Any], preset: dict[str, Any]) -> list[Choice]:
    """The fields of `model` and `train` in which two experiments differ."""
    return [(s, f) for s in ("model", "train") for f in base[s] if base[s][f] != preset[s][f]]


def with_choices(base: dict[str, Any], other: dict[str, Any], choices: list[Choice]) -> dict[str, Any]:
    """`base` with the named fields of `other`."""
    mixed = {**base, "model": dict(base["model"]), "train": dict(base["train"])}
    for section, field in choices:
        mixed[section][field] = other[section][field]
    return mixed


def validation_score(raw: dict[str, Any], seed: int, output: Path, fingerprint: str) -> float:
    """Best validation score of one run."""
    raw = {**raw, "train": {**raw["train"], "seed": seed}}
    path = output / f"{config_hash(raw['model'], raw['train'], fingerprint)}.json"
    if not path.is_file():
        config, store = experiment_from_dict(raw), Path(raw["store"])
        data = [load_split(store, split, config.model) for split in ("train", "valid")]
        meta = train(config, FeatureSpec.load(store), *data)
        found = {"config": to_dict(config), "score": meta.best_score, "best_epoch": meta.best_epoch}
        write_text(path, json.dumps(found))
    return float(json.loads(path.read_text(encoding="utf-8"))["score"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--preset", default="strong")
    parser.add_argument("--common", default=str(ROOT / "jobs/configs/benchmark.yaml"), help="sizes and common recipe")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", default="ablation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    common = experiment_from_dict({**yaml.safe_load(Path(arguments.common).read_text(encoding="utf-8")),
                                   "store": arguments.store})
    benchmark = BenchmarkConfig(store=arguments.store, model=common.model, train=common.train)
    presets = load_presets([arguments.preset], ROOT / "jobs" / "configs")
    base, preset = (to_dict(benchmark_experiment(benchmark, s, 0, presets)) for s in ("lfmim", arguments.preset))
    choices = differences(base, preset)
    rows: dict[str, dict[str, Any]] = {"common recipe": base, arguments.preset: preset}
    for section, field in choices:
        name = f"{section}.{field} = {preset[section][field]}"
        rows[f"common + {name}"] = with_choices(base, preset, [(section, field)])
        rows[f"{arguments.preset} without {name}"] = with_choices(preset, base, [(section, field)])
    fingerprint = data_fingerprint(Path(arguments.store))
    scores: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for name, raw in rows.items():
            scores.setdefault(name, []).append(validation_score(raw, seed, output, fingerprint))
            print(f"seed {seed} {name}: {scores[name][-1]:.4f}", flush=True)
    lines = [f"| validation accuracy of m, {arguments.seeds} seeds | mean ± std | against its origin, per seed |",
             "| --- | --- | --- |"]
    for name in sorted(rows, key=lambda n: n.startswith(arguments.preset)):
        x = 100 * np.array(scores[name])
        delta = x - 100 * np.array(scores[arguments.preset if name.startswith(arguments.preset) else "common recipe"])
        lines.append(f"| {name} | {x.mean():.2f} ± {x.std(ddof=1) if len(x) > 1 else 0:.2f} | "
                     f"{delta.mean():+.2f} ({', '.join(f'{d:+.1f}' for d in delta)}) |")
    text = "\n".join(lines) + "\n"
    print(text)
    write_text(output / "ablation.md", text)


if __name__ == "__main__":
    main()
