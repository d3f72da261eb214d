"""Names in manifests and feature stores."""

from __future__ import annotations

from lfmim.schema.modalities import HEADS, MODALITIES, Modality

SPLITS: tuple[str, ...] = ("train", "valid", "test")
ID, VIDEO, TEXT, SPLIT, SPEAKER = "id", "video", "text", "split", "speaker"
LABEL_COLUMNS: dict[str, str] = {head: f"label_{head}" for head in HEADS}
SENTIMENT_COLUMNS: dict[str, str] = {head: f"sentiment_{head}" for head in HEADS}
"""float64 scores in [-1, 1], null where missing: the labels of the sentiment task. A store need not
have them."""
START, END = "start_s", "end_s"
"""float64 seconds: the stretch of its video that a row is, null where that is the whole. A store
need not have them."""
NUMBER_COLUMNS = (START, END, *SENTIMENT_COLUMNS.values())
"""A manifest's columns that are numbers, and are kept only if it has them."""
FEATURE_COLUMNS: dict[Modality, str] = {m: f"{m.value}_features" for m in MODALITIES}
FACE_FOUND, FRAME_INDICES, DURATION = "face_found", "frame_indices", "duration_s"
FRAME_TIMES = "frame_times"
"""Seconds at which the frames are shown; no column of a store."""
FRAME_READER = "frame_reader"
"""Which library read the pictures: decord or pyav; null where none were. A store need not have
it."""
MEDIA_SHA256, VIDEO_STREAMS, AUDIO_STREAMS = "media_sha256", "video_streams", "audio_streams"

SPEC_FILE = "feature_spec.json"
LABELS_FILE = "label_spec.json"
ERRORS_FOLDER = "errors"
PLAN_FOLDER = "plan"
