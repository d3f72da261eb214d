"""The Python door's rooms: a registered model that answers, a feature store to look into.

Top rank of the architecture: it may use everything, and nothing but `lfmim/__init__.py` uses it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lfmim.config import EncoderConfig, ExperimentConfig, ExtractConfig, TrackingConfig
from lfmim.data.store import part_files, read_table, sequences
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    MODALITIES,
    SENTIMENT_COLUMNS,
    SPLIT,
    FeatureSpec,
    InputError,
    LabelSpec,
)
from lfmim.storage import input_path

if TYPE_CHECKING:
    import pandas as pd

    from lfmim.distributed.trainer import TrainResult
    from lfmim.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class FeatureStore:
    """A folder of extracted features; `open` checks that it is one."""

    path: Path
    """Its folder."""
    spec: FeatureSpec
    """What the numbers mean: encoders, widths (`spec.dims`), sampling."""
    labels: LabelSpec
    """What the labels mean: classes and the words for them."""

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """The store in the folder `path`. Raises InputError if there is none."""
        folder = input_path(str(path), "path")
        return cls(folder, FeatureSpec.load(folder), LabelSpec.load(folder))

    def __len__(self) -> int:
        """Utterances."""
        return sum(self.splits.values())

    @property
    def splits(self) -> dict[str, int]:
        """Utterances per split."""
        # A store whose rows were all quarantined is a store, too.
        if not part_files(self.path):
            return {}
        return dict(Counter(read_table(self.path, [SPLIT])[SPLIT].to_pylist()))

    def frame(self, split: str | None = None) -> pd.DataFrame:
        """A row per utterance in id order: id, split, the labels that the store has, and per
        modality `<modality>_features`, float16 [T, D] or None. Raises InputError for a split
        without rows."""
        import pandas as pd

        columns = [SPLIT, *LABEL_COLUMNS.values(), *SENTIMENT_COLUMNS.values()]
        features = {m: FEATURE_COLUMNS[m] for m in self.spec.dims}
        table = read_table(self.path, [*columns, *features.values()], split)
        if not table.num_rows:
            raise InputError(f"{self.path}: no rows of split {split!r}; it has {self.splits}")

        # Imported features may lack labels of either task; a column of None would claim otherwise.
        shown = [c for c in (ID, *columns) if c in table.column_names]
        frame = pd.DataFrame({c: table[c].to_pylist() for c in shown})
        for m, column in features.items():
            frame[column] = pd.Series(sequences(table, m), dtype=object)
        return frame


@dataclasses.dataclass(frozen=True)
class Model:
    """A registered model, in this process."""

    predictor: Predictor
    """What runs it: the torch module is `predictor.model`."""
    uri: str
    """As it was asked for."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the probabilities; () for a sentiment model."""
        meta = self.predictor.meta
        return meta.labels.classes if meta.config.model.task == "emotion" else ()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the model has: text, audio, vision, multimodal, or some of them."""
        return tuple(self.predictor.model.answers)

    @property
    def spec(self) -> FeatureSpec:
        """The features it was trained on; others are refused."""
        return self.predictor.meta.spec

    def predict(self, rows: FeatureStore | pd.DataFrame | Mapping[str, Any]) -> pd.DataFrame:
        """Features -> per head `label_<head>` and `probabilities_<head>` (or `sentiment_<head>`),
        None where a head has no input.

        `rows`: a feature store, whose features and classes must be the model's, or columns
        `<modality>_features` of sequences [T, D] or None. Raises InputError for a store of others
        and for a row the model cannot take.
        """
        from lfmim.predictor import to_frame

        if isinstance(rows, FeatureStore):
            self.predictor.check_store(rows.path)
            rows = rows.frame()

        given = {m: FEATURE_COLUMNS[m] for m in MODALITIES if FEATURE_COLUMNS[m] in rows}
        if not given:
            raise InputError(
                f"give at least one of the columns {', '.join(FEATURE_COLUMNS.values())}"
            )

        # The caller's own row names, so that answers can be joined to what was asked.
        index = getattr(rows, "index", None)
        answers = self.predictor.predict({m: list(rows[c]) for m, c in given.items()})
        found = to_frame(answers, self.predictor.meta.labels.classes)
        return found if index is None else found.set_axis(index)

    def predict_clip(
        self, video: str = "", text: str = "", *, encoders: EncoderConfig | None = None
    ) -> dict[str, Any]:
        """One clip and what is said in it -> the columns of `predict`, by name.

        `encoders`: by default those that the model names. Raises InputError for a clip that cannot
        be read and for encoders that are not the model's.
        """
        from feature_service.pipeline.predict import predict_clip

        if not video and not text:
            raise InputError("give a video, a text, or both")

        # Neither is read for one clip, and a config takes no empty ones.
        config = ExtractConfig(manifest="-", store="-", encoders=encoders or EncoderConfig())
        return dict(predict_clip(self.predictor, config, video=video, text=text))


def load_model(
    uri: str = "models:/lfmim@champion", *, storage: str = "runs", mlflow: str = ""
) -> Model:
    """A registered model, `models:/<name>@champion` or `models:/<name>/<version>`, a model's
    folder, or `builtin:face`, which nobody has trained (its limits: `predictor.note`).

    `mlflow` is the tracking server; without it $MLFLOW_TRACKING_URI, else the database in
    `storage`. Raises InputError if the model is not there, listing what is.
    """
    from feature_service.pretrained.builtin import BUILTIN_FACE, builtin_face

    if uri == BUILTIN_FACE:
        return Model(builtin_face(), uri)
    from lfmim import tracking

    server = tracking.tracking_uri(TrackingConfig(uri=mlflow), storage)
    return Model(tracking.load_predictor(server, uri), uri)


def train(config: ExperimentConfig) -> TrainResult:
    """Train, track and register in this process, as `lfmim train` does with one worker.

    The same config again continues where it stopped. Raises InputError for a store without what
    the experiment needs.
    """
    from lfmim.distributed.trainer import train_run

    # Without Ray, whose start and six processes cost half a minute on two cores.
    return train_run(config, alone=True)
