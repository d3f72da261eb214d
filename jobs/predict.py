"""Registered model + new clips -> emotions per head.

python jobs/predict.py --video clip.mp4 --text "今天真高兴"            # one clip, a table on the terminal
python jobs/predict.py --manifest new.csv --output predictions.parquet  # or .jsonl
"""

from __future__ import annotations

import cli
from jsonargparse import auto_cli

from lfmim.config import EncoderConfig, ExtractConfig, TrackingConfig
from lfmim.schema import EMOTIONS, HEADS, MULTIMODAL, REPORT_ORDER, SENTIMENT_COLUMNS, InputError


def predict(
    *, video: str = "", text: str = "", manifest: str = "", output: str = "predictions.jsonl", features: str = "",
    model: str = "models:/lfmim@champion", storage: str = "runs", uri: str = "",
    encoders: EncoderConfig = EncoderConfig(), face_workers: int = 1,  # noqa: B008 (frozen)
) -> int:
    """Predict emotions.

    Args:
        video: one video file.
        text: its transcript.
        manifest: manifest of many clips, instead of video and text.
        output: .parquet or .jsonl file for a manifest's predictions.
        features: feature store for the manifest's clips; default <output>.features. A rerun continues in it.
        model: models:/<name>@champion or models:/<name>/<version>.
        storage: run.storage of the training run, for the embedded registry.
        uri: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
        encoders: the encoders the model was trained on.
        face_workers: actors for face detection.
    """
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from lfmim import tracking

    if bool(manifest) == bool(video or text):
        raise InputError("give either --manifest, or --video and/or --text")
    if manifest and Path(output).suffix not in (".parquet", ".jsonl"):
        raise InputError(f"--output {output}: must end in .parquet or .jsonl")
    predictor = tracking.load_predictor(tracking.tracking_uri(TrackingConfig(uri=uri), storage), model)
    from feature_service.predict import predict_clip, predict_manifest

    config = ExtractConfig(manifest=manifest or "-", store=features or f"{output}.features", encoders=encoders,
                           face_workers=face_workers)
    if manifest:
        from lfmim.data.manifest import read_manifest

        read_manifest(manifest)
        with cli.ray_session():
            print(predict_manifest(predictor, config, Path(output)))
        print(f"predictions: {output}")
        return 0
    row = predict_clip(predictor, config, video=video, text=text)
    if SENTIMENT_COLUMNS[MULTIMODAL] in row:
        table = Table("head", "sentiment, -1 to 1", title=video or text)
        for head, column in SENTIMENT_COLUMNS.items():
            table.add_row(head, "absent" if row[column] is None else f"{row[column]:+.2f}")
        Console().print(table)
        return 0
    table = Table("head", "emotion", *REPORT_ORDER, title=video or text)
    for head in HEADS:
        p = row[f"probabilities_{head}"]
        cells = ["-"] * len(EMOTIONS) if p is None else [f"{p[EMOTIONS.index(e)]:.2f}" for e in REPORT_ORDER]
        table.add_row(head, row[f"label_{head}"] or "absent", *cells)
    Console(width=140).print(table)
    return 0


if __name__ == "__main__":
    cli.run(lambda: auto_cli(predict, as_positional=False))
