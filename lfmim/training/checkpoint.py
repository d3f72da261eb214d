"""Checkpoints: a folder with weights (safetensors), `checkpoint.json` (configs, FeatureSpec,
LabelSpec, epoch, history) and `state.pt` (optimizer, scaler, with `train.ema_decay` the weights
that are trained; within an epoch what is done of it, training/pause.py).

After an epoch no state of a random generator: an epoch's numbers depend on (seed, epoch, rank)
alone.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import nn

from lfmim.config import ExperimentConfig, experiment_from_dict, to_dict
from lfmim.models import EmotionNet, build_model
from lfmim.schema import FeatureSpec, InputError, LabelSpec, default_labels
from lfmim.storage import new_folder, remove_folder, write_bytes, write_text

WEIGHTS, META, STATE = "weights.safetensors", "checkpoint.json", "state.pt"
UNFINISHED = "unfinished"
"""In a run's folder: the checkpoint within an epoch, of the run as it is after the epoch before.
Only to go on from: it has no validation score, so it is nobody's best."""
INITIAL = "initial"
"""In a run's folder: the model at whose weights it begins, where that is one (`init`). A copy, as
workers on other nodes see the run's storage, and perhaps no registry."""
PLUGIN_FILE = "plugin.py"
"""In a registered model's checkpoint: the file that defines its plug-in model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointMeta:
    """What `checkpoint.json` holds."""

    config: ExperimentConfig
    spec: FeatureSpec
    epoch: int
    """Epochs finished."""
    history: list[dict[str, Any]]
    """One entry per finished epoch (loop.EpochReport as a dict)."""
    best_epoch: int
    best_score: float
    labels: LabelSpec = dataclasses.field(default_factory=default_labels)
    """Of the store it was trained on. Checkpoints of before it do not hold it: CHERMA's."""
    temperature: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Head -> what its logits are divided by; a head that is not in it: 1."""
    variant: str = ""
    """How its steps were computed (training.variant.Variant); "" where it is not known."""
    later: list[dict[str, Any]] | None = None
    """Entries, as those of `history`, of the epochs that its run went on for; None where it is not
    known, since the run is not over or ended before they were kept."""

    @classmethod
    def start(
        cls, config: ExperimentConfig, spec: FeatureSpec, labels: LabelSpec | None = None
    ) -> CheckpointMeta:
        """Before the first epoch; `labels` None: CHERMA's."""
        return cls(
            config=config,
            spec=spec,
            epoch=0,
            history=[],
            best_epoch=-1,
            best_score=-math.inf,
            labels=labels or default_labels(),
        )

    @property
    def over(self) -> bool:
        """Whether the epochs or the patience have run out."""
        c = self.config.train
        # best_epoch counts from 0 and `epoch` is how many are finished: the last one is epoch - 1.
        return self.epoch >= c.epochs or bool(
            c.patience and self.epoch - 1 - self.best_epoch >= c.patience
        )

    def after(self, entry: dict[str, Any]) -> CheckpointMeta:
        """With one more finished epoch, an EpochReport as a dict."""
        best = (
            (entry["epoch"], entry["score"])
            if entry["best"]
            else (self.best_epoch, self.best_score)
        )

        return dataclasses.replace(
            self,
            epoch=entry["epoch"] + 1,
            history=[*self.history, entry],
            best_epoch=best[0],
            best_score=best[1],
        )


def save_checkpoint(
    folder: Path, model: nn.Module, meta: CheckpointMeta, state: dict[str, Any]
) -> None:
    """Write a checkpoint as `folder`, in place of one that is there. Raises WriteError."""
    # safetensors refuses tensors that do not lie in one piece.
    weights = save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})

    # Serialised in memory: torch does not say why it could not write a file.
    memory = io.BytesIO()
    torch.save(state, memory)

    # The folder gets its name, or META, when all three are written: a killed job leaves no half.
    with new_folder(folder, last=META) as temporary:
        write_bytes(temporary / WEIGHTS, weights)
        write_bytes(temporary / STATE, memory.getvalue())
        write_meta(temporary, meta)


def write_meta(folder: Path, meta: CheckpointMeta) -> None:
    """Write `checkpoint.json`, in place of one that is there. Raises WriteError."""
    raw = {
        "config": to_dict(meta.config),
        "spec": json.loads(meta.spec.to_json()),
        "labels": meta.labels.to_dict(),
        "epoch": meta.epoch,
        "history": meta.history,
        "best_epoch": meta.best_epoch,
        "best_score": meta.best_score,
        "temperature": dict(meta.temperature),
        "variant": meta.variant,
        "later": meta.later,
    }
    write_text(folder / META, json.dumps(raw, indent=1))


def keep_later(folder: Path, history: list[dict[str, Any]]) -> None:
    """Store in a checkpoint what became of its run, by the `history` of its last epoch. Raises
    WriteError."""
    meta = load_meta(folder)
    write_meta(folder, dataclasses.replace(meta, later=history[meta.epoch :]))


def epoch_folder(home: Path, epoch: int) -> Path:
    """Where a run keeps its checkpoint after `epoch` (from 0)."""
    # Of one width, so that names sort as numbers (latest_checkpoint).
    return home / f"epoch_{epoch:04d}"


def latest_checkpoint(home: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    whole = sorted(p for p in home.glob("epoch_*") if (p / META).is_file())
    return whole[-1] if whole else None


def newest_checkpoint(home: Path) -> Path | None:
    """What a run's folder is to be continued from: the newest whole checkpoint, or what was saved
    within the epoch after it."""
    last, part = latest_checkpoint(home), home / UNFINISHED
    if not (part / META).is_file():
        return last
    done = load_meta(last).epoch if last else 0
    return part if load_meta(part).epoch == done else last


def remove_checkpoints(home: Path, *, keep: Collection[Path] = ()) -> None:
    """Delete a run's checkpoints but those to keep."""
    for old in (*home.glob("epoch_*"), home / UNFINISHED):
        if old not in keep:
            remove_folder(old, first=META)


def load_meta(folder: Path) -> CheckpointMeta:
    """Read `checkpoint.json`. Raises InputError if the folder is no checkpoint."""
    path = folder / META
    if not path.is_file():
        raise InputError(f"{folder}: no {META} there, so it is not a checkpoint")

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        spec = FeatureSpec.from_json(json.dumps(raw["spec"]), source=str(path))
        # `stored`: names of 0.1 are read without a warning, as nobody can edit them here.
        return CheckpointMeta(
            config=experiment_from_dict(raw["config"], stored=True),
            spec=spec,
            epoch=raw["epoch"],
            history=raw["history"],
            best_epoch=raw["best_epoch"],
            best_score=raw["best_score"],
            labels=(
                LabelSpec.from_dict(raw["labels"], source=f"{path}, labels")
                if "labels" in raw
                else default_labels()
            ),
            temperature={h: float(t) for h, t in raw.get("temperature", {}).items()},
            variant=raw.get("variant", ""),
            later=raw.get("later"),
        )
    # What a config or spec refuses says so in its own words; InputError is a ValueError.
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a whole checkpoint ({error!r})") from error


def model_name(folder: Path) -> str:
    """The name of a checkpoint's model, whether or not it is known here."""
    # Not load_meta, which refuses a model that no plug-in file has registered yet.
    raw = json.loads((folder / META).read_text(encoding="utf-8"))
    return str(raw["config"]["model"]["name"])


def load_model(folder: Path) -> tuple[EmotionNet, CheckpointMeta]:
    """The checkpoint's model in eval mode on the CPU. Loads strictly."""
    meta = load_meta(folder)
    model = build_model(meta.config.model, meta.spec.dims, len(meta.labels.classes))
    load_weights(folder, model)
    return model.eval(), meta


def load_weights(folder: Path, model: nn.Module) -> None:
    """Fill `model` from the checkpoint, strictly."""
    model.load_state_dict(load((folder / WEIGHTS).read_bytes()))


def load_state(folder: Path) -> dict[str, Any]:
    """Optimizer and scaler state, with a moving average also the weights that are trained; `part`
    of what was saved within an epoch."""
    # weights_only: a pickle would run whatever code a stranger's file holds.
    memory = io.BytesIO((folder / STATE).read_bytes())
    return dict(torch.load(memory, map_location="cpu", weights_only=True))


def is_better(score: float, best: float) -> bool:
    """Strictly better; NaN never is."""
    return not math.isnan(score) and score > best
