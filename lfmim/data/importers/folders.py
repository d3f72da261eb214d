"""A folder of clips per class -> manifest."""

from __future__ import annotations

import re
from pathlib import Path

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller, media_files, write_corpus
from lfmim.schema import (
    DEFAULT_LABELS,
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    SPLIT,
    SPLITS,
    TEXT,
    VIDEO,
    InputError,
)
from lfmim.storage import local_path, output_file
from lfmim.text_files import decode

SPLIT_NAMES = {**{s: s for s in SPLITS}, "dev": "valid", "val": "valid", "validation": "valid"}


def import_folders(
    source: Path,
    output: Path,
    *,
    labels: str = "",
    speaker: str = "",
    folds: int = 0,
    seed: int = 0,
) -> list[str]:
    """Write the manifest of CLASS/clip.mp4 or SPLIT/CLASS/clip.mp4 below `source`; returns lines of
    a report.

    The class is the folder that a clip lies in; splits are those of the folders, if all clips have
    one. NAME.txt beside NAME.mp4 is its text. `speaker` is a regular expression with a group
    `speaker` or one group, searched for in the path below `source`. Raises InputError naming the
    file.
    """
    labeller = Labeller(labels, DEFAULT_LABELS)
    pattern = _pattern(speaker)
    rows, splits = [], []

    for path in media_files(source):
        inside = path.relative_to(source)
        if len(inside.parts) < 2:
            raise InputError(f"{path}: lies in no folder of a class below {source}")
        label = labeller(path.parent.name, f"{path.parent}, the folder's name")
        splits.append(SPLIT_NAMES.get(inside.parts[0].lower(), "") if len(inside.parts) > 2 else "")
        row = {
            ID: inside.with_suffix("").as_posix(),
            VIDEO: str(path),
            TEXT: _text(path.with_suffix(".txt")),
            LABEL_COLUMNS[MULTIMODAL]: label,
        }
        if pattern:
            found = pattern.search(inside.as_posix())
            if not found:
                raise InputError(f"{path}: --speaker {speaker!r} is not found in it")
            row[SPEAKER] = found[1]
        rows.append(row)

    if not rows:
        raise InputError(f"{source}: no clips there; expected for example happiness/1.mp4")
    if any(splits):
        if not all(splits):
            odd = rows[splits.index("")][ID]
            raise InputError(f"{source}: {odd} lies in no folder of a split, as others do")
        rows = [{**row, SPLIT: split} for row, split in zip(rows, splits, strict=True)]
    return write_corpus(rows, output, labeller, folds=folds, seed=seed)


def _text(path: Path) -> str:
    return decode(path.read_bytes(), str(path))[0].strip() if path.is_file() else ""


def _pattern(speaker: str) -> re.Pattern[str] | None:
    if not speaker:
        return None
    try:
        found = re.compile(speaker)
    except re.error as error:
        raise InputError(f"--speaker {speaker!r}: no regular expression ({error})") from error
    if found.groups != 1:
        raise InputError(f"--speaker {speaker!r}: one group is needed, as in 'actor(\\d+)'")
    return found


@register_importer("folders")
def folders(
    *,
    source: str,
    output: str,
    labels: str = "",
    speaker: str = "",
    folds: int = 0,
    seed: int = 0,
) -> list[str]:
    """A folder of clips per class, with or without folders of splits above -> manifest.

    Args:
        source: folder with CLASS/ or SPLIT/CLASS/ of clips.
        output: manifest to write (.csv, .jsonl, .parquet).
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        speaker: regular expression with one group that finds the speaker in a clip's path; empty:
            speakers are not known.
        folds: write so many manifests for cross-validation as well, by whole speakers.
        seed: of the splits.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    lines = import_folders(given, made, labels=labels, speaker=speaker, folds=folds, seed=seed)
    return written(lines, output)
