"""What was made of a recording -> gone: results, kept features, corrections, previews, its place in
an overview."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_service.recordings.agreement import AGREEMENT
from feature_service.recordings.job import OVERVIEW, write_overview
from feature_service.recordings.page import PAGE
from feature_service.recordings.page import write_overview as write_overview_page
from feature_service.recordings.results import SCHEMA
from lfmim.storage import remove_folder


def results_of(folder: Path, media_sha256: str) -> list[Path]:
    """The results of that recording anywhere in `folder`: their JSON files."""
    found = ((path, _read(path)) for path in sorted(folder.rglob("*.json")))
    return [p for p, r in found if r.get("schema") == SCHEMA and r["media_sha256"] == media_sha256]


def media_of(result: Path) -> str:
    """The hash of a result's recording; "" for a file that is no result."""
    read = _read(result)
    return str(read.get("media_sha256", "")) if read.get("schema") == SCHEMA else ""


def made_of(result: Path) -> list[Path]:
    """All files and folders of a result, itself the last, so that a deletion that was stopped finds
    it again. The recording is none of them."""
    folder, stem = result.parent, result.stem
    media = folder / _read(result).get("media", "")
    begins = [p for p in sorted(folder.iterdir()) if p.name.startswith(f"{stem}.")]
    known = [p for p in (folder / PAGE, folder / AGREEMENT) if p.exists()]
    return [p for p in (*begins, *known) if p not in (result, media)] + [result]


def delete(paths: Sequence[Path]) -> None:
    """Delete files and folders in their order, then the folder that they leave empty, and what an
    overview above says of them. Raises WriteError."""
    for path in paths:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    result = paths[-1]
    if not any(result.parent.iterdir()):
        result.parent.rmdir()
    _leave_out(result)


def _leave_out(result: Path) -> None:
    folder = result.parent.parent
    read = _read(folder / f"{OVERVIEW}.json")
    if read.get("schema") != f"{SCHEMA}s":
        return
    name = f"{result.parent.name}/{result.name}"
    left = [row for row in read["recordings"] if row["result"] != name]
    if len(left) < len(read["recordings"]):
        write_overview(left, folder)
        write_overview_page(folder)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
