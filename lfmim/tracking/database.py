"""Opening the tracker: an SQLite file that many jobs share, made once and whole, or a server."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from lfmim.schema import InputError
from lfmim.storage import WriteError, make_folder

TRACKING_ERRORS = (MlflowException, SQLAlchemyError, OSError)
BUSY_SECONDS = 20.0
"""How long another writer of the database is waited for; MLflow's own limit."""
_P = ParamSpec("_P")
_R = TypeVar("_R")
_open: set[str] = set()
_held = threading.local()


def database_file(uri: str) -> Path | None:
    """The file of an `sqlite:///` URI; None for a server, and for a database in memory."""
    if not uri.startswith("sqlite"):
        return None
    name = make_url(uri).database
    # `file:` begins SQLite's own kind of URI, which may mean a database in memory, too.
    return (
        Path(name).absolute()
        if name and name != ":memory:" and not name.startswith("file:")
        else None
    )


def connect(uri: str, *, writing: bool = False) -> MlflowClient:
    """A client of the tracker at `uri`. `writing` makes a missing SQLite database, and its folder.

    Raises InputError naming the file if a database is not there or cannot be used (with `writing`:
    written).
    """
    path = database_file(uri)
    if path is None:
        return MlflowClient(uri)

    try:
        if writing:
            make_folder(path.parent)
        if not writing and not path.exists():
            raise InputError(f"{path.parent}: there is no {path.name}")
        if writing or uri not in _open:
            # Jobs that find a new folder at the same time: one makes the database, the others
            # wait and use it.
            with locked(uri) if writing else contextlib.nullcontext():
                _check(path, writing)
                if not path.exists():
                    _create(path)
                # The first question makes MLflow open its store, which brings the tables of an
                # older version up to date.
                MlflowClient(uri).search_experiments(max_results=1)
            _open.add(uri)
        return MlflowClient(uri)
    except (*TRACKING_ERRORS, WriteError, sqlite3.Error) as error:
        raise unusable(path, error) from error


def _check(path: Path, writing: bool) -> None:
    """Raise what SQLite says of a file that it cannot use: MLflow would try it for minutes."""
    if not path.exists():
        return

    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if writing:
            database.execute("BEGIN IMMEDIATE")
            # A read-only file lets a transaction begin and refuses its first change, so one is
            # made and taken back.
            database.execute("CREATE TABLE written (x)")
            database.rollback()


def _create(path: Path) -> None:
    """Make the database under another name, then rename: one that is there is whole, whenever its
    maker was killed."""
    # Left by a maker that was killed: the lock is ours, so nobody else is making one now.
    for left in path.parent.glob(f".{path.name}.*.tmp*"):
        left.unlink()

    # A new name every time: MLflow keeps what it has opened by name, and would go on with a
    # connection to a file that was renamed or deleted.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
    os.replace(temporary, path)


def gist(error: BaseException) -> str:
    """The line of an MLflow error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # SQLAlchemy adds the statement, its values and a link to its manual, a line each.
    return next(
        (line for line in lines if "sqlite3." in line), lines[0] if lines else type(error).__name__
    )


def unusable(path: Path, error: BaseException) -> InputError:
    """What to tell of a database that cannot be used, and what to do."""
    said = gist(error)
    # The nearest one that exists: if it is a file, no folder can be made below it.
    folder = next(p for p in path.parents if p.exists())
    if not folder.is_dir():
        said, advice = f"{folder} is a file, not a folder", "Name"
    elif "already exists" in said or "out-of-date" in said or "not a database" in said:
        # What SQLite says when MLflow makes the tables that an interrupted first time has left.
        if "already exists" in said:
            said = f"a part of its tables is missing, as if its making had been cut short ({said})"
        advice = (
            "Move the file away and a new one is made, without the runs recorded in it; or name"
        )
    else:
        advice = "Make the file and its folder usable, or name"

    return InputError(
        f"tracking server sqlite:///{path}: this database cannot be used: {said}. {advice} another "
        "folder, or a server by MLFLOW_TRACKING_URI"
    )


def use(uri: str) -> None:
    """Make `uri` MLflow's default in this process; the environment stays as it is."""
    # MLflow writes it into the environment, too, where the next look for a tracker would take it
    # for the user's word.
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


@contextlib.contextmanager
def locked(uri: str) -> Iterator[None]:
    """Wait until no other job of this machine (for an SQLite database: of those that see its
    folder) is in a block of this kind. May be nested. Where no lock can be had (a read-only folder)
    the block runs without."""
    path = database_file(uri)
    if path is None:
        # A server has no folder to put a lock into, so only the jobs of one machine wait for
        # each other; each user's apart, for nobody can open another user's lock.
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        lock = Path(tempfile.gettempdir()) / f"lfmim-{os.getuid()}-{name}.lock"
    else:
        lock = path.with_name(f"{path.name}.lock")

    # The lock belongs to the opened file, not to the thread: one that holds it and opens it
    # again would wait for itself for ever.
    held: set[Path] = _held.__dict__.setdefault("paths", set())
    with contextlib.ExitStack() as stack:
        if lock not in held:
            # A read-only folder takes no lock file, but nobody can write to its database.
            with contextlib.suppress(OSError):
                fcntl.flock(stack.enter_context(open(lock, "a")), fcntl.LOCK_EX)
            held.add(lock)
            stack.callback(held.discard, lock)
        yield


def one_at_a_time(
    function: Callable[Concatenate[str, _P], _R],
) -> Callable[Concatenate[str, _P], _R]:
    """`function(uri, ...)` in `locked(uri)`."""

    @functools.wraps(function)
    def alone(uri: str, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with locked(uri):
            return function(uri, *args, **kwargs)

    return alone
