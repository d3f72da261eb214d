"""Is the tracking server, or its database, there? And what is said if it is not, or refuses."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import requests
import sqlalchemy
from mlflow.store.db.db_types import DATABASE_ENGINES, SQLITE
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError

from lfmim.schema import InputError, NothingThereError, listed
from lfmim.tracking.database import TRACKING_ERRORS, database_file, gist, unusable

P = ParamSpec("P")
T = TypeVar("T")
NO_ANSWER = (requests.ConnectionError, requests.Timeout, requests.exceptions.RetryError)
FIRST_REQUEST = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}
"""MLflow's own patience (7 retries, over four minutes) is for a server that goes away later."""


def check_server(uri: str, *, create: bool = False) -> None:
    """Raise InputError, within seconds, if the tracking server does not answer or its database
    cannot be read.

    A SQLite database that is not there is refused as well, unless the caller is going to `create`
    it. Nothing is written. A server that has answered once is not asked again: MLflow's own retries
    bridge what comes later.
    """
    scheme = uri.split(":")[0].split("+")[0]
    if not create and (scheme == "file" or uri.startswith((".", "/"))):
        folder = Path(re.sub("^file:(//)?", "", uri))
        # MLflow would make it, and then say that nothing is in there.
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder{other_places(uri)}")
    if scheme not in DATABASE_ENGINES:
        _ask(uri)
    # An SQLite file that is to be created is checked by `connect(uri, writing=True)`.
    elif not (create and uri.startswith(SQLITE)):
        _check_database(uri, create=create)


# Once per process: MLflow's own retries bridge what comes later. Exceptions are not cached, so
# a server that was away is asked again.
@functools.cache
def _ask(uri: str) -> None:
    try:
        with _defaults(FIRST_REQUEST):
            MlflowClient(uri).search_experiments(max_results=1)
    except TRACKING_ERRORS as error:
        raise server_error(uri, error) from error


@contextmanager
def _defaults(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables for a block, where the user has not set them."""
    # A user who has set MLFLOW_HTTP_REQUEST_* wants to wait as long as that says.
    mine = {k: v for k, v in variables.items() if k not in os.environ}
    os.environ.update(mine)

    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def _check_database(uri: str, *, create: bool) -> None:
    """As `check_server`, for a database: MLflow would make its file and tables, or try for minutes
    to connect."""
    # Makes Base know all tables. Not at the top: it takes a while, and a server needs none of it.
    import mlflow.store.db.utils  # noqa: F401
    from mlflow.store.db.base_sql_model import Base

    try:
        file = database_file(uri)
        if file is not None and not file.exists():
            raise NothingThereError(f"{file.parent}: there is no {file.name}{other_places(uri)}")
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        missing = set(Base.metadata.tables) - set(sqlalchemy.inspect(engine).get_table_names())
    except (*TRACKING_ERRORS, ImportError) as error:
        raise server_error(uri, error) from error

    # The tables of a new PostgreSQL or MySQL database are made by MLflow when it is first used.
    if create or not missing:
        return

    what = file or shown(uri)
    if len(missing) == len(Base.metadata.tables):
        raise InputError(
            f"{what}: not a database of MLflow, it has none of its tables{other_places(uri)}"
        )
    raise InputError(
        f"{what}: MLflow's table {min(missing)} and {len(missing) - 1} more are missing: another "
        "version of MLflow made it, or its making was interrupted; make a copy, then run `mlflow "
        f"db upgrade {shown(uri)}`"
    )


def shown(uri: str) -> str:
    """The URI without its password."""
    return re.sub(r"(://[^/:@]*:)[^/@]*@", r"\1***@", uri)


def other_places(uri: str) -> str:
    """The end of a message about what is not there: how to name another place, and which databases
    lie near."""
    file = database_file(uri)
    if file is None:
        return "; --mlflow names another server"

    found = [
        p.parent
        for base in (Path.cwd(), file.parent.parent)
        for pattern in (file.name, f"*/{file.name}", f"*/runs/{file.name}")
        for p in sorted(base.glob(pattern))
        if p.stat().st_size
    ]

    near = [
        os.path.relpath(p) if p.is_relative_to(Path.cwd()) else str(p)
        for p in dict.fromkeys(found)
        if p != file.parent
    ]

    beside = f"; {file.name} lies in {listed(near)}: --storage {near[0]}" if near else ""
    return (
        f"; --storage names another folder (run.storage of the training), --mlflow a server{beside}"
    )


def told(call: Callable[Concatenate[str, P], T]) -> Callable[Concatenate[str, P], T]:
    """A function whose first argument is the server's URI: whatever goes wrong there becomes an
    InputError."""

    def telling(uri: str, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(uri, *args, **kwargs)
        except TRACKING_ERRORS as error:
            raise server_error(uri, error) from error

    functools.update_wrapper(telling, call)
    return telling


def server_error(uri: str, error: BaseException) -> InputError:
    """What is told of a server that does not answer, or of its refusal."""
    if unanswered(error):
        text = str(error)
        # The reason is somewhere inside: requests quotes urllib3, which quotes the system's
        # error, each with its own classes and addresses around it.
        why = re.search(
            r"\[Errno -?\d+\] ([^'\")]+)|(Read timed out|timed out|too many \d+ error responses|"
            r"certificate verify failed)|(?i:(connection refused))",
            text,
        )
        short = next(g for g in why.groups() if g) if why else gist(error)
        return InputError(
            f"the server at {shown(uri)} does not answer ({short}); start it, or name another by "
            "MLFLOW_TRACKING_URI"
        )

    if path := database_file(uri):
        return unusable(path, error)
    return InputError(
        f"tracking server {shown(uri)}: {gist(error)}; start it, make room, or name another by "
        "MLFLOW_TRACKING_URI"
    )


def unanswered(error: BaseException) -> bool:
    """Whether nobody answered, as opposed to somebody who refused."""
    # MLflow wraps what requests raised: at times as the cause, at times only as the context.
    # OperationalError is also SQLite's word for a full disk or a locked file, where somebody
    # did answer.
    causes = (error, error.__cause__, error.__context__)
    return any(
        isinstance(e, NO_ANSWER) or (isinstance(e, OperationalError) and "sqlite3." not in str(e))
        for e in causes
    )
