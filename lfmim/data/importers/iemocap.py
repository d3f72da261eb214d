"""IEMOCAP (Busso et al., 2008), the official tree -> manifest of its utterances."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, write_corpus
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPLIT,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path, output_file
from lfmim.text_files import decode

SPLIT_OF = {1: "train", 2: "train", 3: "train", 4: "valid", 5: "test"}
"""Session -> split, without folds."""
EVALUATION = re.compile(
    r"\[([\d.]+) - ([\d.]+)\]\s+(Ses(\d\d)[FM]_\w+_([FM])\d+)\s+(\w+)\s+"
    r"\[([\d.]+), ([\d.]+), ([\d.]+)\]"
)
"""[start - end] TURN emotion [valence, activation, dominance]"""
SENTENCE = re.compile(r"(Ses\w+) \[[\d.]+-[\d.]+\]:\s*(.*)")


def import_iemocap(
    source: Path, output: Path, *, labels: str = "", folds: int = 0, seed: int = 0
) -> list[str]:
    """Write the manifest of the utterances in Session*/dialog/EmoEvaluation; returns lines of a
    report.

    The emotion is what the raters agreed on (label_multimodal; other words than the label spec's
    are left empty and counted), the score of the sentiment task is the valence, on its scale from 1
    to 5. 'video' is the utterance's sound. A session is two speakers that no other has, and is
    never divided: five `folds` are one session each. Raises InputError naming file and line.
    """
    labeller = Labeller(labels, "iemocap4")
    rows: list[dict[str, Any]] = []
    missing: Counter[str] = Counter()

    for session, folder in _sessions(source).items():
        for path in sorted((folder / "dialog" / "EmoEvaluation").glob("Ses*.txt")):
            words = _transcript(folder / "dialog" / "transcriptions" / path.name)
            turns = [(n, line) for n, line in _lines(path) if line.startswith("[")]
            for number, line in turns:
                # The first line of the file describes the format.
                if line.startswith("[START_TIME"):
                    continue
                rows.append(
                    _row(
                        line, f"{path}: line {number}", folder, path.stem, words, labeller, missing
                    )
                )
                rows[-1] |= {SPLIT: SPLIT_OF[session], "session": str(session)}

    if not rows:
        raise InputError(f"{source}: no evaluated utterance in Session*/dialog/EmoEvaluation/*.txt")
    return write_corpus(
        rows,
        output,
        labeller,
        folds=folds,
        seed=seed,
        group="session",
        notes=[f"{n} utterances {what}" for what, n in sorted(missing.items())],
    )


def _sessions(source: Path) -> dict[int, Path]:
    found = {n: source / f"Session{n}" for n in SPLIT_OF}
    found = {n: folder for n, folder in found.items() if folder.is_dir()}
    if not found:
        raise InputError(f"{source}: no Session1/ ... there; give the folder that has them")
    return found


def _row(
    line: str,
    where: str,
    folder: Path,
    dialogue: str,
    words: dict[str, str],
    labeller: Labeller,
    missing: Counter[str],
) -> dict[str, Any]:
    found = EVALUATION.match(line)
    if not found:
        raise InputError(
            f"{where}: {line[:60]!r} is not [start - end] TURN emotion [valence, activation, "
            "dominance]"
        )
    start, end, turn, session, gender, emotion, valence, activation, dominance = found.groups()
    label = labeller(emotion, f"{where}, field 'emotion'")

    score: float | None = float(valence)
    low, high = labeller.spec.sentiment_range
    if not low <= float(valence) <= high:
        missing[f"have a valence beyond {low:g} to {high:g}: left empty"] += 1
        score = None
    sound = folder / "sentences" / "wav" / dialogue / f"{turn}.wav"
    missing["have no sound in sentences/wav: 'video' is empty"] += not sound.is_file()
    missing["have no transcript"] += turn not in words

    return {
        ID: turn,
        VIDEO: str(sound) if sound.is_file() else "",
        TEXT: words.get(turn, ""),
        SPEAKER: f"Ses{session}_{gender}",
        LABEL_COLUMNS[MULTIMODAL]: label,
        SENTIMENT_COLUMNS[MULTIMODAL]: score,
        "gender": "female" if gender == "F" else "male",
        "dialogue": dialogue,
        "emotion": emotion,
        "activation": activation,
        "dominance": dominance,
        # not start_s and end_s: 'video' is the turn alone
        "dialogue_start_s": start,
        "dialogue_end_s": end,
    }


def _transcript(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    found = (SENTENCE.match(line) for _, line in _lines(path))
    return {m[1]: m[2].strip() for m in found if m}


def _lines(path: Path) -> list[tuple[int, str]]:
    text = decode(path.read_bytes(), str(path))[0]
    return list(enumerate(text.splitlines(), start=1))


@register_importer("iemocap")
def iemocap(
    *, source: str, output: str, labels: str = "", folds: int = 0, seed: int = 0
) -> list[str]:
    """IEMOCAP's official tree -> manifest: sound, transcripts, emotions and valence, split by
    session.

    Args:
        source: folder with Session1/ to Session5/.
        output: manifest to write (.csv, .jsonl, .parquet).
        labels: label spec, a shipped name (iemocap4, iemocap6) or a YAML file; empty: iemocap4.
        folds: write so many manifests for cross-validation as well, by whole sessions; 5 is usual.
        seed: of folds that are fewer than the sessions.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return written(import_iemocap(given, made, labels=labels, folds=folds, seed=seed), output)
