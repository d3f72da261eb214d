"""Raw clips -> probabilities: the extraction stages, then a predictor."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from feature_service.pipeline import ExtractSummary, extract_features
from feature_service.stages import ERROR, STAGE, STAGES, Row, build_feature_spec, build_stage
from lfmim.config import ExtractConfig
from lfmim.data.store import quarantined, read_table, sequences, stored_ids
from lfmim.predictor import Predictor, to_frame
from lfmim.schema import DURATION, FEATURE_COLUMNS, ID, MODALITIES, TEXT, VIDEO, InputError


def predict_clip(predictor: Predictor, config: ExtractConfig, *, video: str, text: str) -> pd.Series:
    """One clip, in this process. Raises InputError if it cannot be read or the encoders are not the model's."""
    predictor.check_spec(build_feature_spec(config), have="the configured encoders")
    if video and not Path(video).is_file():
        raise InputError(f"--video: no such file: {video}")
    row: Row = {ID: Path(video).name or "text", VIDEO: video, TEXT: text, ERROR: "", STAGE: "", DURATION: 0.0}
    for stage in STAGES:
        (row,) = build_stage(stage, config)([row])
    if row[ERROR]:
        raise InputError(f"{video or 'text'}: {row[STAGE]}: {row[ERROR]}")
    return to_frame(predictor.predict({m: [row.get(FEATURE_COLUMNS[m])] for m in MODALITIES})).iloc[0]


def predict_manifest(predictor: Predictor, config: ExtractConfig, output: Path) -> ExtractSummary:
    """Extract the manifest into `config.store`, then write one row per stored clip to `output` (.parquet or .jsonl).

    Quarantined clips are written too, with their reason in `error`: rows out = rows in.
    """
    predictor.check_spec(build_feature_spec(config), have="the configured encoders")
    summary = extract_features(config)
    store, frames = Path(config.store), []
    if stored_ids(store):
        table = read_table(store, [ID, TEXT, *FEATURE_COLUMNS.values()])
        predictions = to_frame(predictor.predict({m: sequences(table, m) for m in MODALITIES}))
        predictions.insert(0, ID, table[ID].to_pylist())
        frames.append(predictions.assign(error=""))
    bad = quarantined(store)
    if bad.num_rows:
        frames.append(pd.DataFrame({ID: bad[ID].to_pylist(), "error": bad["error"].to_pylist()}))
    result = pd.concat(frames, ignore_index=True)
    temporary = output.with_name(f".{output.name}.tmp")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".parquet":
        result.to_parquet(temporary, index=False)
    else:
        result.to_json(temporary, orient="records", lines=True, force_ascii=False)
    os.replace(temporary, output)
    return summary
