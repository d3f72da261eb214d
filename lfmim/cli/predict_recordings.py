"""`lfmim predict talk.mp4 ...`: what the command does with recordings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lfmim.config import ExtractConfig
from lfmim.schema import InputError
from lfmim.storage import StorageError, local_path, output_folder

if TYPE_CHECKING:
    from feature_service.recordings.predict import Settings
    from lfmim.predictor import Predictor


def predict_recordings(
    recordings: Sequence[str],
    predictor: Predictor,
    config: ExtractConfig,
    settings: Settings,
    *,
    model: str,
    transcript: str,
    tiers: str,
    agree: str,
    keep_features: bool,
    blur_faces: bool,
    output: str,
) -> int:
    """Predict each, write an overview of several, compare with `agree`; the exit code: 2 if one of
    several could not be read, which is said."""
    from feature_service.recordings import job, page
    from feature_service.recordings.agreement import read_codes, write_agreement
    from feature_service.recordings.predict import UtterancePredictor

    folder = local_path(output, "--output")
    names = [str(local_path(name, "the recording")) for name in recordings]
    tasks = job.tasks_of(names, transcript, folder)
    results = [task.stem.name for task in tasks]
    codes = read_codes(Path(agree), predictor.meta.labels, results) if agree else None
    output_folder(output, "--output")

    utterances = UtterancePredictor(predictor, config, settings)
    about = utterances.about(model)

    done, rows = [], []
    for task in tasks:
        try:
            one = job.predict_recording(
                utterances,
                task,
                about=about,
                tiers=tiers,
                keep_features=keep_features,
                say=_say,
            )
        except InputError as error:
            # The others are not worse for one that cannot be read; a full disk stops all.
            if len(tasks) == 1 or isinstance(error, StorageError):
                raise
            _say(f"error: {error}")
            rows.append(job.failed_row(task, str(error)))
        else:
            done.append(one)
            rows.append(job.overview_row(one))
            shown = page.write_page(one.result, task.media, blur_faces=blur_faces)
            print(f"{one}\npage: {shown}")
    if len(tasks) > 1:
        job.write_overview(rows, folder)
        print(f"overview: {page.write_overview(folder)}")
    if codes is not None:
        path, text = write_agreement(codes, done, folder, predictor.meta.labels.classes)
        print(f"{text}\nagreement: {path}")
    return 2 if len(done) < len(tasks) else 0


def _say(text: str) -> None:
    # stdout is for results, which scripts read.
    print(text, file=sys.stderr, flush=True)
