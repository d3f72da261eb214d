"""The packaged predictor: a trained model behind plain arrays, and behind MLflow's pyfunc
interface.

This file is also the registered model's entry point (models-from-code), so it imports only what the
registered model's requirements list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch

from lfmim.data.batches import pad_sequences
from lfmim.data.store import check_spec
from lfmim.models import MODELS, EmotionNet
from lfmim.registry import load_plugin
from lfmim.schema import (
    FEATURE_COLUMNS,
    HEADS,
    MODALITIES,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    UNKNOWN_ENCODER,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.training.checkpoint import PLUGIN_FILE, CheckpointMeta, load_model, model_name


class Predictor:
    """Probabilities, or sentiment scores, per head from feature sequences; fp32, where the model
    is."""

    def __init__(self, model: EmotionNet, meta: CheckpointMeta, *, note: str = "") -> None:
        """`note`: what everybody who reads its answers must be told; "" nothing."""
        self.model, self.meta, self.note = model.eval(), meta, note

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Predictor:
        """The predictor of a registered model's checkpoint. The code of a plug-in model lies beside
        its weights and is run, as all code of a registered model is."""
        plugin = folder / PLUGIN_FILE
        # Where the project or an installed package has the model already, its file registering it
        # a second time would be an error.
        if plugin.is_file() and model_name(folder) not in MODELS:
            load_plugin(plugin)
        return cls(*load_model(folder))

    def weights_sha256(self) -> str:
        """Hex digest of the model's weights and their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def check_spec(self, spec: FeatureSpec, *, have: str) -> None:
        """Raise InputError if features of `spec` are not what the model was trained on."""
        if any(e.name == UNKNOWN_ENCODER for e in self.meta.spec.encoders.values()):
            raise InputError(
                f"{have}: the model was imported without saying which features it was trained on, "
                "so they cannot be compared; import it again with --store STORE, a store of "
                "such features"
            )
        check_spec(spec, self.meta.spec, have=have, want="the features this model was trained on")

    def check_labels(self, labels: LabelSpec, *, have: str) -> None:
        """Raise InputError if `labels` have other classes than the model's; sentiment scores have
        none."""
        if self.meta.config.model.task == "emotion":
            self.meta.labels.check(labels, have=have, want="the model")

    def check_store(self, store: Path) -> None:
        """Raise InputError for a feature store of other features or classes than the model's."""
        self.check_spec(FeatureSpec.load(store), have=f"the store {store}")
        self.check_labels(LabelSpec.load(store), have=f"the store {store}")

    def problem(self, row: Mapping[Modality, np.ndarray | None]) -> str:
        """Why the model cannot take this row, naming the field; "" if it can."""
        for m, column in FEATURE_COLUMNS.items():
            x, dim = row.get(m), self.meta.spec.dims.get(m)
            # Absent is None and nothing else: an empty sequence would be masked as a whole and pass
            # for it, and MMSA's audio comes with -inf and NaN, of which one makes the row's answer
            # NaN, which stands for "no input".
            if x is None:
                if not self.model.accepts_absent:
                    name = self.meta.config.model.name
                    return f"{column}: absent, and the model '{name}' needs every modality"
            elif dim is None:
                return f"{column}: the model was trained without {m}; leave it out"
            elif x.ndim != 2 or x.shape[1] != dim or not len(x):
                return f"{column}: shape {x.shape}, the model takes [T, {dim}] with T of at least 1"
            elif not np.isfinite(x).all():
                return f"{column}: holds NaN or infinite values"
        return ""

    @torch.inference_mode()
    def predict(
        self, sequences: Mapping[Modality, Sequence[np.ndarray | None]], batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """Sequences [T_i, D_u] or None per modality -> float32 [N, C] probabilities per head,
        in the order of `meta.labels.classes`; for a sentiment model [N, 1] scores in [-1, 1].

        Rows of a head without input (its modality absent; for the multimodal head: all absent) are
        NaN, and so is a head the model does not have. Raises InputError for a row the model cannot
        take.
        """
        spec, config = self.meta.spec, self.meta.config.model
        count = max((len(x) for x in sequences.values()), default=0)
        rows = {m: sequences.get(m) or [None] * count for m in MODALITIES}

        # All rows before the first batch: a refusal should not come after minutes of work.
        for i in range(count):
            problem = self.problem({m: column[i] for m, column in rows.items()})
            if problem:
                raise InputError(f"row {i + 1}, {problem}")

        device = next(self.model.parameters()).device
        outputs = len(self.meta.labels.classes) if config.task == "emotion" else 1
        # Begins with no rows, so that predictions of nothing have the right shape.
        out: dict[str, list[np.ndarray]] = {h: [np.empty((0, outputs), np.float32)] for h in HEADS}

        for start in range(0, count, batch_size):
            features, masks = {}, {}
            for m, dim in spec.dims.items():
                part = rows[m][start : start + batch_size]
                padded, length = pad_sequences(
                    part, m, dim, config.max_lengths[m], cut=config.cuts(m)
                )
                features[m.value] = padded.to(device)
                masks[m.value] = (torch.arange(padded.shape[1])[None, :] < length[:, None]).to(
                    device
                )

            logits = self.model(features, masks).logits
            # A stack over an absent modality attends to padding and answers something all the same.
            present = {m: mask.any(dim=1) for m, mask in masks.items()}
            present[MULTIMODAL] = torch.stack(list(present.values())).any(dim=0)
            for h in HEADS:
                if h not in logits:
                    out[h].append(np.full((len(part), outputs), np.nan, np.float32))
                    continue
                # CH-SIMS' scores are in [-1, 1]; the head is linear and does not know.
                scaled = logits[h] / self.meta.temperature.get(h, 1.0)
                p = scaled.softmax(dim=1) if config.task == "emotion" else logits[h].clamp(-1, 1)
                out[h].append(torch.where(present[h][:, None], p, torch.nan).cpu().numpy())

        return {h: np.concatenate(parts) for h, parts in out.items()}


def to_frame(predictions: Mapping[str, np.ndarray], classes: Sequence[str]) -> pd.DataFrame:
    """Per head `label_<head>` (one of `classes`, or None) and `probabilities_<head>` (floats in
    their order, or None); of sentiment scores [N, 1] `sentiment_<head>` (float or None)."""
    columns: dict[str, list[Any]] = {}
    for head, p in predictions.items():
        known = ~np.isnan(p).any(axis=1)
        if p.shape[1] == 1:
            columns[SENTIMENT_COLUMNS[head]] = [
                float(v) if k else None for (v,), k in zip(p, known, strict=True)
            ]
            continue

        columns[f"label_{head}"] = [
            classes[int(r.argmax())] if k else None for r, k in zip(p, known, strict=True)
        ]
        columns[f"probabilities_{head}"] = [
            [float(v) for v in r] if k else None for r, k in zip(p, known, strict=True)
        ]

    # With a type of its own choice pandas would make NaN of None in a column of floats.
    return pd.DataFrame(columns, dtype=object)


class EmotionModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Columns `text_features`, `audio_features`, `vision_features` (nested lists [T, D]; a column
    may be left out, a cell may be None) -> the columns of `to_frame`. `params={"feature_spec":
    json}` has the features' origin checked."""

    def load_context(self, context: Any) -> None:
        self.predictor = Predictor.from_checkpoint(Path(context.artifacts["checkpoint"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        given = (params or {}).get("feature_spec", "")
        if given:
            self.predictor.check_spec(FeatureSpec.from_json(given), have="this input")

        sequences = {
            m: [_to_array(v) for v in model_input[FEATURE_COLUMNS[m]]]
            for m in MODALITIES
            if FEATURE_COLUMNS[m] in model_input
        }
        if not sequences:
            raise InputError(
                f"give at least one of the columns {', '.join(FEATURE_COLUMNS.values())}"
            )
        return to_frame(self.predictor.predict(sequences), self.predictor.meta.labels.classes)


def _to_array(value: Any) -> np.ndarray | None:
    # Joining or reindexing tables leaves NaN, a float, where a cell of lists is missing.
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return None
    # From Parquet a cell is an array of arrays, which numpy does not convert in one go.
    return np.stack([np.asarray(v, dtype=np.float32) for v in value])


# MLflow loads a models-from-code model by running this file, and takes what it is handed here.
mlflow.models.set_model(EmotionModel())
