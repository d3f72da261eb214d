"""What a benchmark compares: the systems of the paper, and LFMIM under a recipe of its own (a
preset)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lfmim.config import (
    STUCK_MINUTES,
    ExperimentConfig,
    ModelConfig,
    TrackingConfig,
    TrainConfig,
    experiment_from_dict,
    to_dict,
)
from lfmim.data.splits import LEAST_FOLDS
from lfmim.former_names import say_renamed, translate
from lfmim.registry import MODELS
from lfmim.schema import InputError
from lfmim.text_files import read_yaml

BASELINES = ("logistic", "stacking")
"""What every other system has to beat, and so the first rows of every report."""
SYSTEMS = ("tfn", "lmf", "eft", "lft", "mult", "pmr", "lfmim-ml", "lfmim")
"""The systems of the paper's Tables 2 and 4; lfmim-ml is lfmim with every head trained on the
multimodal label."""
SENTIMENT_SYSTEMS = ("mlf-dnn", "mlmf", "mtfn", "lfmim")
"""The systems of the paper's Table 3."""
RIVALS = ("misa", "self-mm", "almt", "merbench", "lefsa")
"""Systems of the years since, for either task."""
RECIPES = ("paper", "paper-momentum", "strong")
"""Presets that are made to be compared; the package's others are settings of whole commands."""
COMMON = {
    "model": (
        "task",
        "d_model",
        "num_heads",
        "num_layers",
        "dim_feedforward",
        "max_text",
        "max_audio",
        "max_vision",
    ),
    "train": ("epochs", "selection", "precision", "seed"),
}
"""What a preset does not decide in a benchmark: sizes and budget are the same for every system."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Everything `lfmim benchmark` needs: systems x seeds on one store, the same budget for
    all."""

    store: str
    """Feature store made by lfmim extract."""
    report: str = "benchmark"
    """Folder of the runs and of the tables, figures and page."""
    systems: list[str] = dataclasses.field(default_factory=list)
    """Models (lfmim-ml: lfmim trained on the multimodal label alone), names of presets in
    lfmim/configs, or YAML files with sections `model` and `train`. Empty: the paper's for the task,
    its later rivals, and for emotions the preset `strong`. The baselines `logistic` and `stacking`
    always come first."""
    seeds: int = 5
    """Each system is trained with seeds 0 .. seeds - 1."""
    folds: int = 0
    """Cross-validation: each of so many parts of the store is tested once, by a model that was
    trained and chosen on the others. The parts are the column `fold` that importers write with
    their --folds, or else are made of whole speakers. 0: the store's own splits."""
    sizes: list[int] = dataclasses.field(default_factory=list)
    """Numbers of training utterances, the smallest first: every system is trained on each. Empty:
    on the whole training split."""
    subsets: int = 1
    """With `sizes`: so many subsets are drawn, each trained on with `seeds` seeds of its own; a
    larger size of a subset holds the smaller ones."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    """Sizes of every system; `name` is set per system."""
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """Recipe of every system but the presets; `labels` and `seed` are set per run."""
    curves: int = -1
    """Runs (seeds) per system whose every epoch is measured on test, after selection, for Figure 3
    and the table of other habits; -1: all. It takes a forward pass over the test split an epoch,
    and room for the weights of every epoch until the run ends."""
    published: bool = False
    """The paper's figures beside these, for CHERMA's and CH-SIMS's own features
    (docs/reproduction.md)."""
    cpus_per_run: float = 1.0
    """CPUs, that is threads, of a run."""
    gpus_per_run: float = 0.0
    """GPU share of a run; fractions put several runs on one GPU."""
    at_once: int = 0
    """At most so many runs at a time; 0: as many as there are CPUs and GPUs for."""
    stuck_minutes: float = STUCK_MINUTES
    """After so many minutes without a step the job says which run is at what, and since when."""
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        checks = {
            "store": (bool(self.store), "must not be empty"),
            "report": (bool(self.report), "must not be empty"),
            "systems": (len(set(self.systems)) == len(self.systems), "a system is named twice"),
            "seeds": (self.seeds >= 1, f"{self.seeds} must be at least 1"),
            "folds": (
                self.folds == 0 or self.folds >= LEAST_FOLDS,
                f"{self.folds} must be 0 or at least {LEAST_FOLDS}: one part tests, one validates",
            ),
            "sizes": (
                self.sizes == sorted(set(self.sizes)) and all(n >= 1 for n in self.sizes),
                f"{self.sizes} must be different numbers of utterances, the smallest first",
            ),
            "subsets": (self.subsets >= 1, f"{self.subsets} must be at least 1"),
            "curves": (self.curves >= -1, f"{self.curves} must be -1 (all), 0 or more"),
            "cpus_per_run": (self.cpus_per_run > 0, f"{self.cpus_per_run} must be positive"),
            "at_once": (self.at_once >= 0, f"{self.at_once} must not be negative"),
            "stuck_minutes": (
                0 < self.stuck_minutes < math.inf,
                f"{self.stuck_minutes} must be positive and finite",
            ),
            "gpus_per_run": (self.gpus_per_run >= 0, f"{self.gpus_per_run} must not be negative"),
        }

        for field, (ok, message) in checks.items():
            if not ok:
                raise InputError(f"{field}: {message}")

        # Silently ignored, it would be taken for five trainings of each system.
        if self.subsets > 1 and not self.sizes:
            raise InputError(
                f"subsets: {self.subsets} are drawn of the training split, so their sizes are "
                "needed; add --sizes 300,600"
            )
        if self.sizes and self.folds:
            raise InputError("sizes: not with folds; a fold trains on all the others")


def system_names(config: BenchmarkConfig) -> list[str]:
    """The baselines, and `config.systems` or the default ones. (No property: the command line would
    make a subcommand of it.)"""
    default = (
        [*SYSTEMS, *RIVALS, "strong"]
        if config.model.task == "emotion"
        else [*SENTIMENT_SYSTEMS, *RIVALS]
    )
    asked = list(config.systems) or default
    return [*(b for b in BASELINES if b not in asked), *asked]


def load_presets(names: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """`model` and `train` sections of the named systems that are no models: `<folder>/<name>.yaml`,
    or a file.

    Raises InputError for a name that is neither, or a file without these sections.
    """
    presets = {}
    for name in names:
        # A model's name means the model, whatever files there are.
        if name in SYSTEMS or name in MODELS:
            continue

        files = (folder / f"{name}.yaml", Path(name))
        path = next((p for p in files if p.is_file() and p.suffix == ".yaml"), None)
        if path is None:
            known = dict.fromkeys([*BASELINES, *SYSTEMS, *MODELS, *RECIPES])
            raise InputError(
                f"systems: unknown system {name!r}; use {', '.join(known)}, or a YAML file with "
                "sections model and train"
            )

        raw = read_yaml(path)
        # Of `lfmim/configs` some are for other commands: cluster_extract would give a run with
        # nothing but defaults, under a name that promises something.
        if not _is_preset(raw):
            raise InputError(f"{path}: no section 'train', so it is not a preset")
        presets[name], renamed = translate({"model": raw.get("model") or {}, "train": raw["train"]})
        say_renamed(renamed, str(path))
    return presets


def _is_preset(raw: Any) -> bool:
    return isinstance(raw, dict) and isinstance(raw.get("train"), dict)


def benchmark_experiment(
    config: BenchmarkConfig, system: str, seed: int, presets: Mapping[str, Mapping[str, Any]]
) -> ExperimentConfig:
    """The training run of one system and seed. What a preset does not say is as in TrainConfig and
    ModelConfig, but for COMMON, which is the benchmark's. Raises InputError for a preset's unknown
    or invalid field."""
    name: Any = system.removesuffix("-ml")
    labels: Literal["own", "multimodal"] = "multimodal" if system.endswith("-ml") else "own"

    if system in presets:
        # The benchmark's settings last, over the preset's: its sizes and budget are all systems'.
        raw = {
            section: dict(presets[system][section])
            | {f: to_dict(getattr(config, section))[f] for f in COMMON[section]}
            for section in ("model", "train")
        }
        try:
            experiment = experiment_from_dict({"store": config.store, **raw})
        except InputError as error:
            raise InputError(f"preset {system}: {error}") from error

        return dataclasses.replace(
            experiment, train=dataclasses.replace(experiment.train, seed=seed)
        )

    return ExperimentConfig(
        store=config.store,
        model=dataclasses.replace(config.model, name=name),
        train=dataclasses.replace(config.train, labels=labels, seed=seed),
    )
