"""From the utterances of a corpus to its manifests: words to classes, splits by speaker, folds,
counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lfmim.data.manifest import cell
from lfmim.data.splits import FOLD, FOLDS, Fold, fold_parts, split_rows
from lfmim.data.tables import write_manifest
from lfmim.schema import (
    ID,
    LABEL_COLUMNS,
    SPEAKER,
    SPLIT,
    SPLITS,
    InputError,
    LabelSpec,
    Modality,
    read_label_spec,
)

MEDIA = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".flv", ".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Endings of the files that a folder is searched for."""


class Labeller:
    """Words of a corpus -> classes of its LabelSpec; what is merged and dropped is counted."""

    def __init__(self, given: str, usual: str) -> None:
        """`given` is a shipped name or a YAML file, "" the corpus's `usual` one. Raises
        InputError."""
        self.spec: LabelSpec = read_label_spec(given or usual)
        self.merged: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def __call__(self, value: object, where: str) -> str | None:
        """As `LabelSpec.parse`."""
        found = self.spec.parse(value, where=where)
        word = cell(value).lower()
        if word in self.spec.merges:
            self.merged[f"'{word}' counted as {found}"] += 1
        elif word and found is None:
            self.dropped[f"'{word}' left empty"] += 1
        return found

    def lines(self) -> list[str]:
        both = [*sorted(self.merged.items()), *sorted(self.dropped.items())]
        return [f"labels {self.spec.name}: {n} x {what}" for what, n in both]


def write_corpus(
    rows: Sequence[Mapping[str, Any]],
    output: Path,
    labeller: Labeller,
    *,
    folds: int = 0,
    seed: int = 0,
    group: str = SPEAKER,
    notes: Sequence[str] = (),
) -> list[str]:
    """Write `rows` (columns of a manifest) as the manifest `output` with its labels beside it;
    returns lines of a report.

    Rows without splits are split 6:2:2 by whole values of the column `group`, or at random where
    there is no such column, as far as there are enough. `folds` K writes K more manifests,
    `<stem>.fold1.csv` ..., each with splits of its own: fold k is tested on the k-th part of the
    groups and chosen on the next. Raises InputError.
    """
    frame = pd.DataFrame(rows, dtype=object)
    repeated = frame[ID].duplicated()
    if repeated.any():
        raise InputError(f"two utterances have the id {frame[ID][repeated].iloc[0]!r}")

    lines = [f"{len(frame)} utterances{_speakers(frame)}"]
    if SPLIT not in frame:
        frame[SPLIT], how = _split(frame, group, seed)
        lines.append(f"  {how}")

    lines += [f"  {line}" for line in [*_counts(frame), *labeller.lines(), *notes]]
    parts = fold_parts(frame, folds, group=group, seed=seed).tolist() if folds else []
    if folds:
        frame[FOLD] = [str(part) for part in parts]

    write_manifest(frame, output, labels=labeller.spec)
    for k in range(1, folds + 1):
        splits = [Fold(k, folds).split_of(part) for part in parts]
        name = output.with_name(f"{output.stem}.fold{k}{output.suffix}")
        write_manifest(frame.assign(**{SPLIT: splits}), name, labels=labeller.spec)
        sizes = ", ".join(f"{s} {splits.count(s)}" for s in SPLITS)
        lines.append(f"  {name.name}: {sizes}")
    return lines


def media_files(folder: Path) -> list[Path]:
    """The sound and video files in a folder and below, in path order. Raises InputError if it is no
    folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    # macOS leaves a file ._NAME beside each that it copies: no clip.
    found = (p for p in folder.rglob("*") if p.suffix.lower() in MEDIA and p.name[0] != ".")
    return sorted(p for p in found if p.is_file())


def arrays_beside(manifest: Path) -> dict[Modality, Path]:
    """Files of arrays that an importer has written with a manifest: `clips.csv` ->
    `clips.vision.parquet`."""
    named = {m: manifest.with_name(f"{manifest.stem}.{m}.parquet") for m in Modality}
    return {m: path for m, path in named.items() if path.is_file()}


def _split(frame: pd.DataFrame, group: str, seed: int) -> tuple[list[str], str]:
    """A split per row, and a line that says how it was made."""
    none = [""] * len(frame)
    if group in frame:
        if frame[group].nunique() < FOLDS:
            return none, f"no split: that needs {FOLDS} or more values of '{group}'"
        made = split_rows(frame, "speaker", seed=seed, group=group)
        return made, f"split 6:2:2 by {group}: no {group} is in two splits"

    if len(frame) < FOLDS:
        return none, f"no split: that needs {FOLDS} or more rows"
    return (
        split_rows(frame, "shuffled", seed=seed),
        f"split 6:2:2 at random: without a column '{group}', one may be in several splits",
    )


def _speakers(frame: pd.DataFrame) -> str:
    count = frame[SPEAKER][frame[SPEAKER] != ""].nunique() if SPEAKER in frame else 0
    return f" of {count} speakers" if count else ""


def _counts(frame: pd.DataFrame) -> list[str]:
    """A line per split and label column; columns of the same labels share one."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for column in (c for c in LABEL_COLUMNS.values() if c in frame):
        found = tuple(frame[column].map(cell))
        if any(found):
            alike.setdefault(found, []).append(column)

    lines = []
    for split in [*SPLITS, ""]:
        here = (frame[SPLIT].map(cell) == split).to_numpy()
        if not here.any():
            continue
        lines.append(f"{split or 'no split'}: {here.sum()}")
        for labels, columns in alike.items():
            count = Counter(x for x, inside in zip(labels, here, strict=True) if inside)
            classes = [f"{n} {c or 'empty'}" for c, n in sorted(count.items(), key=_last_empty)]
            lines.append(f"  {', '.join(columns)}: {', '.join(classes)}")
    return lines


def _last_empty(item: tuple[str, int]) -> tuple[bool, str]:
    return item[0] == "", item[0]
