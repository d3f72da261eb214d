"""Registered model + recordings, clips or stored features -> emotions per head.

lfmim predict talk.mp4 --transcript talk.srt --output result
lfmim predict --video clip.mp4 --text "今天真高兴"
lfmim predict --manifest new.csv --output predictions.parquet
lfmim predict --store features --output predictions.jsonl
lfmim predict --video clip.mp4 --model builtin:face
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lfmim.cli.arguments import parse
from lfmim.config import STUCK_MINUTES, EncoderConfig, ExtractConfig, TrackingConfig
from lfmim.distributed import session
from lfmim.schema import (
    HEADS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    InputError,
    LabelSpec,
    NothingThereError,
)
from lfmim.storage import as_path, input_path, output_file, output_folder

if TYPE_CHECKING:
    from lfmim.predictor import Predictor

CHAMPION = "models:/lfmim@champion"
COMMON = (
    "recording",
    "transcript",
    "video",
    "text",
    "manifest",
    "store",
    "output",
    "model",
    "storage",
    "mlflow",
)


def main(args: list[str]) -> int:
    # Files without an option come first, or one could not be told from an option's value.
    count = next((n for n, given in enumerate(args) if given.startswith("-")), len(args))
    files = [f"--recording={json.dumps(args[:count])}"] if count else []
    return int(
        parse(
            predict,
            [*files, *args[count:]],
            prog="lfmim predict",
            about=__doc__,
            common=COMMON,
        )
    )


def predict(
    *,
    recording: list[str] = [],  # noqa: B006 (never changed)
    transcript: str = "",
    tiers: str = "",
    asr: str = "",
    language: str = "",
    face: Literal["speaking", "largest"] = "speaking",
    abstain: float = 0.5,
    agree: str = "",
    keep_features: bool = False,
    blur_faces: bool = False,
    video: str = "",
    text: str = "",
    manifest: str = "",
    store: str = "",
    output: str = "",
    features: str = "",
    model: str = CHAMPION,
    storage: str = "runs",
    mlflow: str = "",
    encoders: EncoderConfig = EncoderConfig(),  # noqa: B008 (frozen)
    workers: int = 1,
    encoder_workers: int = 0,
    decode_workers: int = 0,
    decode_resource: str = "",
    gpus_per_worker: float = 0.0,
    stuck_minutes: float = STUCK_MINUTES,
) -> int:
    """Predict emotions.

    Args:
        recording: recordings of any length, or folders of them; also what stands before all
            options. Each is cut into utterances (docs/recordings.md).
        transcript: of the recording, an SRT, VTT, CSV, Whisper JSON, ELAN or Praat file; for
            several, the folder in which each has its own. Without one, voice activity cuts.
        tiers: names of the tiers of words in an ELAN or Praat transcript, joined by commas.
        asr: whisper:FOLDER (of transformers) or faster-whisper:FOLDER (of CTranslate2), which
            recognises words where no transcript has them.
        language: spoken in the recordings, for asr, as zh; empty: detected.
        face: whose face an utterance's row is about, of several: the speaking one, or the largest.
        abstain: probability that a head's answer in a recording needs.
        agree: CSV of your own codes of recordings (start, end, label), to compare with.
        keep_features: keep what recordings' utterances were predicted from, in
            <recording>.features, so that corrections of them can be trained on.
        blur_faces: play a copy of each recording on its page in which faces are hidden.
        video: one video file, taken as one utterance.
        text: its transcript.
        manifest: manifest of many clips, instead of video and text.
        store: feature store of many clips, instead of a manifest.
        output: .parquet or .jsonl file for the predictions of a manifest or a store, by default
            predictions.jsonl; folder for those of recordings, by default result. An interrupted
            run is continued.
        features: feature store for the manifest's clips; default <output>.features. A rerun
            continues in it.
        model: models:/<name>@champion, models:/<name>/<version>, the folder of a model (a
            downloaded one, or a checkpoint of a run), or builtin:face, which also answers where no
            model was ever registered: the expression that a face looks like, untrained on your
            data.
        storage: run.storage of the training run, for the embedded registry.
        mlflow: tracking server; default $MLFLOW_TRACKING_URI, else the embedded one in `storage`.
        encoders: the encoders the model was trained on; by default those that it names itself.
        workers: actors that predict.
        encoder_workers: most workers with a GPU that encode; 0: as many as there are shares for.
        decode_workers: most workers on CPUs that extract; 0: one per CPU.
        decode_resource: custom Ray resource of the nodes that decode; empty: any node.
        gpus_per_worker: GPU share of each encoder and predictor; 0 runs them on CPU.
        stuck_minutes: after so many minutes without a row the job says which stage is at which
            rows, and since when.
    """
    from pathlib import Path

    from lfmim import tracking

    given = [bool(recording), bool(video or text), bool(manifest), bool(store)]
    if given.count(True) != 1:
        raise InputError("give recordings, or one of --manifest, --store, --video and/or --text")
    output = output or ("result" if recording else "predictions.jsonl")
    if not recording and any((transcript, tiers, asr, agree, keep_features, blur_faces)):
        raise InputError(
            "--transcript, --tiers, --asr, --agree, --keep_features, --blur_faces: are for "
            "recordings, not clips"
        )
    # asked now, for the file is written after hours of extraction
    if (manifest or store) and Path(output).suffix not in (".parquet", ".jsonl"):
        raise InputError(f"--output {output}: must end in .parquet or .jsonl")
    config = ExtractConfig(
        manifest=manifest or "-",
        store=store or features or f"{output}.features",
        encoders=encoders,
        encoder_workers=encoder_workers,
        decode_workers=decode_workers,
        decode_resource=decode_resource,
        gpus_per_worker=gpus_per_worker,
        stuck_minutes=stuck_minutes,
    )
    if workers < 1:
        raise InputError(f"--workers: {workers} must be at least 1")

    settings = None
    if recording:
        from feature_service.recordings.predict import Settings

        settings = Settings(face=face, abstain=abstain, asr=asr, language=language)

    track = TrackingConfig(uri=mlflow)
    if store:
        input_path(store, "--store")
    if manifest or store:
        output_file(output, "--output")
        output_folder(f"{output}.parts", "--output")
    if manifest:
        output_folder(config.store, "--features")
    # One clip writes nothing, and this process alone reads it.
    if manifest or store:
        session.check_shared(
            store=store, features=features, output=output, storage="" if mlflow else storage
        )
    predictor = _load(
        model, tracking.tracking_uri(track, storage), bool(recording or video or manifest)
    )
    if predictor.note:
        print(predictor.note, file=sys.stderr)
    if settings is not None:
        from lfmim.cli.predict_recordings import predict_recordings

        return predict_recordings(
            recording,
            predictor,
            config,
            settings,
            model=model,
            transcript=transcript,
            tiers=tiers,
            agree=agree,
            keep_features=keep_features,
            blur_faces=blur_faces,
            output=output,
        )
    if not manifest and not store:
        from feature_service.pipeline.predict import predict_clip

        answer = dict(predict_clip(predictor, config, video=video, text=text))
        _show(answer, predictor.meta.labels, video or text)
        return 0

    # Not above: it imports Ray, which one clip does without.
    from feature_service.pipeline.predict_store import predict_manifest, predict_store

    count = f"{workers} worker{'s' * (workers > 1)}"
    what = f"predict {manifest or store} with {model} into {output}: {count} on "
    # extraction, which has ended when prediction begins, makes do with one share
    gpus = gpus_per_worker * workers
    params = {"model": model, "manifest": manifest, "store": config.store, "output": output}
    if manifest:
        from lfmim.data.manifest import check_first_rows, manifest_labels

        check_first_rows(manifest, manifest_labels(manifest, default=predictor.meta.labels))
    with session.job_session(
        what + ("GPU" if gpus else "CPU"),
        track,
        storage,
        f"predict-{Path(output).name}",
        params,
        gpus=gpus,
    ) as log:
        if manifest:
            for summary in predict_manifest(
                predictor, config, as_path(output), workers=workers, log=log
            ):
                print(summary)
        else:
            print(
                predict_store(
                    predictor,
                    as_path(store),
                    as_path(output),
                    workers=workers,
                    gpus_per_worker=gpus_per_worker,
                    stuck_minutes=stuck_minutes,
                    log=log,
                )
            )
    print(f"predictions: {output}")
    return 0


def _load(model: str, uri: str, media: bool) -> Predictor:
    """The model asked for; where none was ever registered, and there are `media` to look at, the
    built-in one."""
    from feature_service.pretrained.builtin import BUILTIN_FACE, builtin_face
    from lfmim import tracking

    if model == BUILTIN_FACE:
        return builtin_face()
    try:
        return tracking.load_predictor(uri, model)
    except NothingThereError as error:
        # Only for whoever did not ask for one: a model's name that is not there is a mistake.
        if model != CHAMPION or not media:
            raise
        print(f"no model yet ({error})", file=sys.stderr)
        return builtin_face()


def _show(row: Mapping[str, Any], labels: LabelSpec, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    if SENTIMENT_COLUMNS[MULTIMODAL] in row:
        table = Table("head", "sentiment, -1 to 1", title=title)
        for head, column in SENTIMENT_COLUMNS.items():
            table.add_row(head, "absent" if row[column] is None else f"{row[column]:+.2f}")
        Console().print(table)
        return

    table = Table("head", "emotion", *labels.report_order, title=title)
    for head in HEADS:
        p = row[f"probabilities_{head}"]
        cells = (
            ["-"] * len(labels.classes)
            if p is None
            else [f"{p[labels.classes.index(c)]:.2f}" for c in labels.report_order]
        )
        table.add_row(head, row[f"label_{head}"] or "absent", *cells)
    # Wide on purpose: in a pipe or a log rich takes 80 columns, and breaks the emotions' names.
    Console(width=140).print(table)
