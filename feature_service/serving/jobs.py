"""The recordings that a service was given, in one SQLite table: they outlive its processes."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feature_service.recordings.job import SUFFIXES
from lfmim.storage import make_folder, remove_folder, write_text

UPLOADING, QUEUED, RUNNING, DONE, FAILED, DELETED = (
    *("uploading", "queued", "running", "done", "failed", "deleted"),
)
"""States. A recording that is deleted while it is at work has its row until the work has ended."""
PENDING = (QUEUED, RUNNING)
"""Of a job that is not done."""
STEM = "recording"
"""Of all files about a recording: no name that a client gave is ever a path."""
CORRECTIONS = "../corrections"
"""Where a job's page finds them."""
CANCELLED, PROGRESS, PAGE = "cancelled", "progress.json", "index.html"

_TABLE = """CREATE TABLE IF NOT EXISTS recordings (
    id TEXT PRIMARY KEY, owner TEXT, name TEXT, size INTEGER, state TEXT, transcript TEXT,
    model TEXT, version TEXT, error TEXT, attempts INTEGER, created REAL, changed REAL)"""


@dataclasses.dataclass(frozen=True)
class Recording:
    """A row. `name` as its owner calls it; `size` in bytes, of all; `transcript`: name of its file
    or ""; `model` as the server names it, `version` what that was when the job was accepted;
    `attempts`: workers that it was given to; seconds of `time.time`."""

    id: str
    owner: str
    name: str
    size: int
    state: str
    transcript: str
    model: str
    version: str
    error: str
    attempts: int
    created: float
    changed: float


class Jobs:
    """The table, and a folder for each of its rows. One process at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "recordings"
        make_folder(self.folder)
        self._database = sqlite3.connect(folder / "jobs.db", isolation_level=None)
        # A row that was accepted is on the disk.
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_TABLE)

    def close(self) -> None:
        self._database.close()

    def recover(self) -> None:
        """After a start: what was at work waits again, and what has no row goes."""
        self._set("state = ?", "state = ?", QUEUED, RUNNING)
        for recording in self._select("state = ?", DELETED):
            self.remove(recording.id)
        known = {recording.id for recording in self._select("1")}
        for path in self.folder.iterdir():
            if path.name not in known:
                remove_folder(path)

    def add(self, owner: str, name: str, size: int) -> Recording:
        """A new upload."""
        now = time.time()
        made = Recording(
            uuid.uuid4().hex, owner, name, size, UPLOADING, "", "", "", "", 0, now, now
        )
        make_folder(self.folder_of(made.id))
        values = dataclasses.astuple(made)
        marks = ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO recordings VALUES ({marks})", values)
        return made

    def get(self, owner: str, id: str) -> Recording | None:
        """The owner's own alone; None for another's, and for one that is deleted."""
        found = self._select("id = ? AND owner = ? AND state != ?", id, owner, DELETED)
        return found[0] if found else None

    def all_of(self, owner: str) -> list[Recording]:
        """The newest first."""
        found = self._select("owner = ? AND state != ?", owner, DELETED)
        return sorted(found, key=lambda r: -r.created)

    def count(self, states: Sequence[str] = PENDING, *, owner: str = "") -> int:
        """Of everybody, or of the owner alone."""
        among = f"state IN ({', '.join('?' * len(states))}) AND (? OR owner = ?)"
        return len(self._select(among, *states, not owner, owner))

    def enqueue(self, id: str, *, transcript: str, model: str, version: str) -> None:
        """An upload becomes a job."""
        self._set(
            "state = ?, transcript = ?, model = ?, version = ?",
            *("id = ? AND state = ?", QUEUED, transcript, model, version, id, UPLOADING),
        )

    def take(self) -> Recording | None:
        """The job that has waited longest is at work from here on; None: there is none."""
        waiting = self._select("state = ? ORDER BY created LIMIT 1", QUEUED)
        if not waiting:
            return None
        self._set("state = ?, attempts = attempts + 1", "id = ?", RUNNING, waiting[0].id)
        return self._select("id = ?", waiting[0].id)[0]

    def finish(self, id: str, state: str, error: str = "") -> None:
        """What was at work ends in `state`, and is removed if it was deleted meanwhile."""
        self._set("state = ?, error = ?", "id = ? AND state = ?", state, error, id, RUNNING)
        if self._select("id = ? AND state = ?", id, DELETED):
            self.remove(id)

    def delete(self, recording: Recording) -> None:
        """Nobody sees it from here on. Its files go now or, of one at work, once that has ended."""
        if recording.state == RUNNING:
            self._set("state = ?", "id = ?", DELETED, recording.id)
            write_text(self.folder_of(recording.id) / CANCELLED, "")
        else:
            self.remove(recording.id)

    def remove(self, id: str) -> None:
        """The row and the files."""
        remove_folder(self.folder_of(id))
        self._database.execute("DELETE FROM recordings WHERE id = ?", (id,))

    def expire(self, seconds: float) -> None:
        """Delete what nothing has happened to for so long, except what waits or is at work."""
        old = self._select(
            "changed < ? AND state IN (?, ?, ?)", time.time() - seconds, UPLOADING, DONE, FAILED
        )
        for recording in old:
            self.remove(recording.id)

    def touch(self, id: str) -> None:
        """Something happened: its lifetime begins anew."""
        self._set("state = state", "id = ?", id)

    def scratch(self) -> Path:
        """A folder of no recording, which `recover` removes."""
        folder = self.folder_of(uuid.uuid4().hex)
        make_folder(folder)
        return folder

    def folder_of(self, id: str) -> Path:
        return self.folder / id

    def media(self, recording: Recording) -> Path:
        return self.folder_of(recording.id) / media_name(recording.name)

    def files(self, recording: Recording) -> dict[str, Path]:
        """Name -> file, of what a client may have of a job that is done."""
        if recording.state != DONE:
            return {}
        folder = self.folder_of(recording.id)
        found = {p.name: p for p in sorted(folder.iterdir()) if p.is_file()}
        return {n: p for n, p in found.items() if n == PAGE or n.startswith(f"{STEM}.")}

    def progress(self, recording: Recording) -> dict[str, int] | None:
        """Utterances that are `done`, and `of` how many; None: not known yet."""
        try:
            found: dict[str, int] = json.loads(
                (self.folder_of(recording.id) / PROGRESS).read_bytes()
            )
        except (OSError, ValueError):
            return None
        return found

    def _select(self, where: str, *values: Any) -> list[Recording]:
        rows = self._database.execute(f"SELECT * FROM recordings WHERE {where}", values)
        return [Recording(*row) for row in rows]

    def _set(self, what: str, where: str, *values: Any) -> None:
        given = (*values[: what.count("?")], time.time(), *values[what.count("?") :])
        self._database.execute(f"UPDATE recordings SET {what}, changed = ? WHERE {where}", given)


def media_name(name: str) -> str:
    """Name of a recording's file in its folder; of the client's own the suffix alone is taken, and
    that only if it is known."""
    suffix = Path(name).suffix.lower()
    return STEM + (suffix if suffix in SUFFIXES else ".bin")
