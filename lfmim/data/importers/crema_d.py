"""CREMA-D (Cao et al., 2014) -> manifest: what raters heard, saw, and both, as labels of three
heads."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, media_files, write_corpus
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import ID, LABEL_COLUMNS, MULTIMODAL, SPEAKER, VIDEO, InputError
from lfmim.storage import local_path, output_file

VOTES, ACTORS = "tabulatedVotes.csv", "VideoDemographics.csv"
HEADS = {"1": "audio", "2": "vision", "3": MULTIMODAL}
"""First digit of a row's number in the table of votes -> what its raters were given."""
ANSWERS = ("A", "D", "F", "H", "N", "S")
SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
NAME = re.compile(rf"(\d{{4}})_({'|'.join(SENTENCES)})_([A-Z]{{3}})_([A-Z]{{1,2}})")
"""ACTOR_SENTENCE_EMOTION_LEVEL: the emotion that was asked for, which is no label here."""


def import_crema_d(
    source: Path, output: Path, *, labels: str = "", folds: int = 0, seed: int = 0
) -> list[str]:
    """Write the manifest of the clips in `source`/tabulatedVotes.csv; returns lines of a report.

    A head's label is the answer that most of its raters gave; a tie leaves it empty. The twelve
    sentences are the same for all emotions: they are in the column 'sentence', not in 'text'.
    Videos go before sound alone; without media the column is empty. Raises InputError naming file,
    row and field.
    """
    labeller = Labeller(labels, "crema-d6")
    votes, notes = _votes(source / VOTES, labeller)
    actors = _actors(source / ACTORS)
    media = _media(source)

    rows: list[dict[str, Any]] = []
    for name, given in votes.items():
        actor, sentence, asked, level = name.split("_")
        rows.append(
            {
                ID: name,
                VIDEO: str(media.get(name, "")),
                SPEAKER: actor,
                **{LABEL_COLUMNS[head]: given.get(head) for head in HEADS.values()},
                **actors.get(actor, {}),
                "sentence": SENTENCES[sentence],
                "asked_for": asked,
                "level": level,
            }
        )

    if media and (lost := sum(not row[VIDEO] for row in rows)):
        notes.append(f"{lost} clips have no file: their column 'video' is empty")
    if not media:
        notes.append("no media below --source: the column 'video' is empty")
    return write_corpus(rows, output, labeller, folds=folds, seed=seed, notes=notes)


def _votes(path: Path, labeller: Labeller) -> tuple[dict[str, dict[str, str | None]], list[str]]:
    """Clip -> head -> class (None for a tie), and lines on the ties."""
    frame = read_rows(str(path), ("fileName", *ANSWERS))
    # R writes the names of its rows into a column without a name.
    numbers = frame.iloc[:, 0]
    found: dict[str, dict[str, str | None]] = {}
    ties: Counter[str] = Counter()

    for row, record in enumerate(frame.to_dict("records"), start=1):
        where, name = f"{path}: row {row}", cell(record["fileName"])
        head = HEADS.get(cell(numbers[row - 1])[:1])
        if head is None:
            raise InputError(
                f"{where}, first column: {numbers[row - 1]!r} does not begin with 1 (voice), 2 "
                "(face) or 3 (both)"
            )
        if not NAME.fullmatch(name):
            raise InputError(f"{where}, field 'fileName': {name!r} is no name of a CREMA-D clip")
        labels = found.setdefault(name, {})
        if head in labels:
            raise InputError(f"{where}, field 'fileName': {name} has votes on {head} already")

        counts = {a: _count(record[a], f"{where}, field '{a}'") for a in ANSWERS}
        most = [a for a, n in counts.items() if n == max(counts.values())]
        ties[head] += len(most) > 1
        labels[head] = labeller(most[0], where) if len(most) == 1 else None

    return found, [f"{n} ties of {LABEL_COLUMNS[h]}: left empty" for h, n in sorted(ties.items())]


def _count(value: object, where: str) -> int:
    if not cell(value).isdecimal():
        raise InputError(f"{where}: {value!r} is no number of votes")
    return int(cell(value))


def _actors(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    frame = read_rows(str(path), ("ActorID", "Age", "Sex"))
    return {
        cell(r["ActorID"]): {"gender": cell(r["Sex"]).lower(), "age": cell(r["Age"])}
        for r in frame.to_dict("records")
    }


def _media(source: Path) -> dict[str, Path]:
    """Clip -> file; one with a picture goes before sound alone."""
    files = [p for p in media_files(source) if NAME.fullmatch(p.stem)]
    files.sort(key=lambda p: p.suffix.lower() not in (".wav", ".mp3"))
    return {p.stem: p for p in files}


@register_importer("crema_d")
def crema_d(
    *, source: str, output: str, labels: str = "", folds: int = 0, seed: int = 0
) -> list[str]:
    """CREMA-D -> manifest: labels by voice, by face and by both, split by actor.

    Args:
        source: folder with tabulatedVotes.csv, VideoDemographics.csv and, if they are there,
            VideoFlash/ or AudioWAV/.
        output: manifest to write (.csv, .jsonl, .parquet).
        labels: label spec, a shipped name or a YAML file; empty: crema-d6.
        folds: write so many manifests for cross-validation as well, by whole actors.
        seed: of the splits.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return written(import_crema_d(given, made, labels=labels, folds=folds, seed=seed), output)
