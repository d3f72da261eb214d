"""A recording of four utterances and its result, for what shows results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from feature_service.recordings.results import Row, result_row, write_results
from feature_service.recordings.tracks import Sight
from feature_service.recordings.utterances import GAP, SPEECH, Utterance

CLASSES = ("anger", "joy", "neutral")
ANGER, JOY, UNSURE = (np.array(p) for p in ([0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3]))
HOSTILE = '</script><script>window.attacked = 1</script><img src=x onerror=window.attacked=2> & "q"'


def face(start_s: float, end_s: float) -> list[Sight]:
    box = np.array([8, 4, 40, 36], np.float32)
    times = np.arange(start_s, end_s, 0.25)
    return [Sight(1, float(t), box, np.zeros((5, 2)), 1.0, 0.0) for t in times]


def rows() -> list[Row]:
    """Two speak, words and voice of the second disagree; then a gap with a face; then one that
    nothing is said of."""
    talk = Utterance(0.5, 2.0, SPEECH, "Fine, thanks", "Ann")
    scorn = Utterance(2.0, 4.0, SPEECH, HOSTILE, "Bob <b>")
    said = [
        (talk, {"text": JOY, "audio": JOY, "vision": UNSURE, "multimodal": JOY}, face(0.5, 2)),
        (scorn, {"text": JOY, "audio": ANGER, "vision": ANGER, "multimodal": ANGER}, face(2, 4)),
        (Utterance(4.0, 7.0, GAP), {"vision": JOY}, face(4, 7)),
        (Utterance(7.0, 7.5, SPEECH, "我也是"), {}, []),
    ]
    made = [
        result_row(
            n,
            utterance,
            heads,
            classes=CLASSES,
            calibrated=["text"],
            face=sights,
            text_source="transcript",
        )
        for n, (utterance, heads, sights) in enumerate(said, start=1)
    ]
    made[3]["error"] = "decode: damaged"
    return made


def write_result(folder: Path, *, media: str = "talk.mp4", made: list[Row] | None = None) -> Path:
    """folder/talk.json and its siblings; returns it."""
    about = {"media": media, "duration_s": 8.0, "picture_size": [64, 48], "model": "m"}
    about["media_sha256"] = "5a" * 32
    made = rows() if made is None else made
    return write_results(made, folder / "talk", classes=CLASSES, about=about)[2]
