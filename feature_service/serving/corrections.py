"""What clients say instead of a prediction: kept, with the features of those utterances alone, for
longer than the recording that it is about, until they delete it."""

from __future__ import annotations

import datetime
import hashlib
from pathlib import Path

from feature_service.recordings.features import copy_row, features_folder
from feature_service.recordings.results import read_row
from lfmim.data.corrections import (
    CORRECTIONS,
    UTC,
    Correction,
    append_correction,
    read_corrections,
    row_id,
)
from lfmim.schema import InputError
from lfmim.storage import remove_folder

FOLDER, STEM = "corrections", "recording"
NAME = 16
"""Letters of a hash that a folder is called by."""


class Corrections:
    """A folder for each client, and in it one for each recording that it corrected: as `lfmim
    import corrections` reads them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER

    def add(
        self, owner: str, result: Path, *, row: int, head: str, label: str | None, seen: bool
    ) -> Correction:
        """Keep what `owner` says of a row and head of the result `result`, a stem. Raises
        InputError if there is nothing to be corrected there, and WriteError."""
        said, about = read_row(_parquet(result), row)
        if said is None or said["error"] is not None:
            raise InputError(f"row {row}: nothing was predicted of it")
        if said[f"label_{head}"] is None:
            raise InputError(f"row {row}, head {head}: it does not answer there")
        if label is not None and label not in about["classes"]:
            raise InputError(f"label: {label!r} is not one of {', '.join(about['classes'])}")
        correction = Correction(
            media_sha256=about["media_sha256"],
            row=row,
            start_s=said["start_s"],
            end_s=said["end_s"],
            head=head,
            label=label,
            predicted=said[f"label_{head}"],
            model=about["model"],
            who=owner,
            when=datetime.datetime.now(datetime.UTC).strftime(UTC),
            seen=seen,
        )
        stem = self._stem(owner, correction.media_sha256)
        # The features first: a line without them could not be trained on.
        id = row_id(correction.media_sha256, row)
        copy_row(features_folder(result), features_folder(stem), said["utterance"], id)
        append_correction(_lines(stem), correction)
        return correction

    def of(self, owner: str, result: Path) -> list[Correction]:
        """What the owner said of that recording, the oldest first."""
        path = _lines(self._stem(owner, read_row(_parquet(result), 0)[1]["media_sha256"]))
        return read_corrections(path) if path.is_file() else []

    def all_of(self, owner: str) -> dict[str, list[Correction]]:
        """By recording, as its folder is called."""
        folder = self._folder(owner)
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        lines = {path.name: _lines(path / STEM) for path in found}
        return {name: read_corrections(path) for name, path in lines.items() if path.is_file()}

    def delete(self, owner: str, name: str) -> bool:
        """Delete what is kept of a recording, by its name in `all_of`; False if it has none."""
        # Looked up among what is there: no path is made of what a client says.
        folder = self._folder(owner)
        found = {p.name: p for p in folder.iterdir()} if folder.is_dir() else {}
        if name not in found:
            return False
        remove_folder(found[name])
        return True

    def _folder(self, owner: str) -> Path:
        # A token's name may be one that no folder can have.
        return self.folder / hashlib.sha256(owner.encode()).hexdigest()[:NAME]

    def _stem(self, owner: str, media_sha256: str) -> Path:
        return self._folder(owner) / media_sha256[:NAME] / STEM


def _lines(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}{CORRECTIONS}")


def _parquet(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.parquet")
