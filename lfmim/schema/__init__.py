"""The contract between the rooms: modalities, heads, emotions, column names, FeatureSpec.

Everything that reads or writes a manifest, a feature store, a checkpoint or a registered model
takes its names from here, so no label list or column name exists twice.
"""

from lfmim.schema.columns import (
    AUDIO_STREAMS,
    DURATION,
    ERRORS_FOLDER,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    ID,
    LABEL_COLUMNS,
    LABELS_FILE,
    MEDIA_SHA256,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPEC_FILE,
    SPLIT,
    SPLITS,
    TEXT,
    VIDEO,
    VIDEO_STREAMS,
)
from lfmim.schema.errors import (
    InputError,
    NothingThereError,
    WorkerError,
    listed,
)
from lfmim.schema.feature_spec import (
    UNKNOWN_ENCODER,
    EncoderSpec,
    FeatureSpec,
)
from lfmim.schema.labels import (
    DEFAULT_LABELS,
    IGNORE_LABEL,
    SENTIMENTS,
    LabelSpec,
    default_labels,
    fitting_labels,
    read_label_spec,
    shipped_labels,
)
from lfmim.schema.modalities import (
    HEADS,
    MODALITIES,
    MULTIMODAL,
    Modality,
)

__all__ = [
    "AUDIO_STREAMS",
    "DEFAULT_LABELS",
    "DURATION",
    "ERRORS_FOLDER",
    "FACE_FOUND",
    "FEATURE_COLUMNS",
    "FRAME_INDICES",
    "HEADS",
    "ID",
    "IGNORE_LABEL",
    "LABELS_FILE",
    "LABEL_COLUMNS",
    "MEDIA_SHA256",
    "MODALITIES",
    "MULTIMODAL",
    "SENTIMENTS",
    "SENTIMENT_COLUMNS",
    "SPEAKER",
    "SPEC_FILE",
    "SPLIT",
    "SPLITS",
    "TEXT",
    "UNKNOWN_ENCODER",
    "VIDEO",
    "VIDEO_STREAMS",
    "EncoderSpec",
    "FeatureSpec",
    "InputError",
    "LabelSpec",
    "Modality",
    "NothingThereError",
    "WorkerError",
    "default_labels",
    "fitting_labels",
    "listed",
    "read_label_spec",
    "shipped_labels",
]
