"""Tables as users bring them, and manifests as we write them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from lfmim.data.manifest import KNOWN_COLUMNS, READERS, cell, labels_file, read_frame
from lfmim.schema import VIDEO, InputError, LabelSpec
from lfmim.storage import as_path, is_remote, new_file, write_text


def read_rows(path: str, required: Sequence[str]) -> pd.DataFrame:
    """A CSV, JSONL or Parquet table as objects, a missing cell as None. Raises InputError naming
    file and column."""
    frame = read_frame(path, "table")

    missing = [c for c in required if c not in frame.columns]
    if missing:
        raise InputError(
            f"{path}: column '{missing[0]}' is missing; found: {', '.join(frame.columns) or 'none'}"
        )
    if frame.empty:
        raise InputError(f"{path}: the table has no rows")

    return frame.where(frame.notna(), None)


def write_manifest(frame: pd.DataFrame, path: Path, labels: LabelSpec | None = None) -> None:
    """Write a manifest (.csv, .jsonl or .parquet) under a temporary name, then rename; known
    columns first. `labels` goes beside it (`labels_file`), where every reader finds it.

    Videos below the manifest's folder are written relative to it, so the folder can be moved.
    Raises InputError for another suffix, and WriteError.
    """
    if path.suffix not in READERS:
        raise InputError(f"{path}: a manifest ends in one of {', '.join(READERS)}")

    known = [c for c in KNOWN_COLUMNS if c in frame.columns]
    frame = frame[[*known, *(c for c in frame.columns if c not in known)]].copy()
    if VIDEO in frame:
        frame[VIDEO] = [_relative(cell(v), path.absolute().parent) for v in frame[VIDEO]]

    # Before the manifest: one without its labels would be read with CHERMA's.
    if labels is not None:
        write_text(as_path(labels_file(str(path))), labels.to_yaml())
    with new_file(path) as temporary:
        if path.suffix == ".csv":
            frame.to_csv(temporary, index=False)
        elif path.suffix == ".jsonl":
            frame.to_json(temporary, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_parquet(temporary, index=False)


def _relative(video: str, folder: Path) -> str:
    if not video:
        return video
    if "://" in video or is_remote(folder):
        return video.removeprefix(f"{folder}/") if "://" in video else os.path.abspath(video)
    # Not resolve(): a clip that is linked into the folder would be written as what it links to.
    whole = Path(os.path.abspath(video))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)
