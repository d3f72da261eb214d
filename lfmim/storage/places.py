"""Where a job may read and write: asked before any work."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from lfmim.schema import InputError
from lfmim.storage.failures import StorageError, reason_of
from lfmim.storage.paths import ObjectPath, as_path, reaching
from lfmim.storage.writing import check_name, taken, temporary_name

_READ_ONLY = ("hf", "http", "https")


def output_folder(text: str, option: str, *, files: Sequence[str] = ()) -> Path:
    """The folder that `option` names, there or to be made, in which `files` can be written; local,
    or in an object store.

    Raises InputError for what is no such place, a name that is taken, a disk that is full or
    read-only, and a bucket that is not there or cannot be written to.
    """
    path = _output(text, option)
    if _there(path) and not path.is_dir():
        raise InputError(
            f"{option} {text}: is a file where a folder is to be written; name "
            "another, or remove it"
        )

    # A folder of that name inside would be met only after hours, when the report is written.
    for name in files:
        _check_file(path / name, f"{option} {path / name}")
    return path


def output_file(text: str, option: str) -> Path:
    """The file that `option` names, to be made or replaced. Raises as `output_folder`."""
    path = _output(text, option)
    _check_file(path, f"{option} {text}")
    return path


def _check_file(path: Path, named: str) -> None:
    if _there(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise InputError(
            f"{named}: is {what} where a file is to be written; name another, or remove it"
        )


def input_path(text: str, option: str) -> Path:
    """The folder or file that `option` names, local or in an object store.

    Raises InputError for a bucket that is not there or cannot be read, not for an object that is
    not.
    """
    path = named_path(text, option)
    if isinstance(path, ObjectPath):
        try:
            path.entries()
        except StorageError as error:
            raise InputError(f"{option} {error}") from error
    return path


def local_path(text: str, option: str) -> Path:
    """The folder or file that `option` names, for those who read local ones only.

    Raises InputError for a URL.
    """
    path = named_path(text, option)
    if isinstance(path, ObjectPath):
        raise InputError(
            f"{option} {text}: is a URL, and it is read from a disk only; copy it there and give "
            "its path"
        )
    return path


def named_path(text: str, option: str) -> Path:
    """`as_path`, whose InputError names the `option`."""
    try:
        return as_path(text)
    except InputError as error:
        raise InputError(f"{option} {error}") from error


def _output(text: str, option: str) -> Path:
    if not text:
        raise InputError(f"{option}: must not be empty")
    path = named_path(text, option)
    if isinstance(path, ObjectPath):
        _try_object(path, option)
    else:
        _try_folder(path, f"{option} {text}")
    return path


def _try_object(path: ObjectPath, option: str) -> None:
    """Write and delete an object beside what is to be written: only that shows that it can be."""
    scheme = path.url.partition("://")[0]
    if scheme in _READ_ONLY:
        raise InputError(
            f"{option} {path}: {scheme}:// is read only here; give a path on a disk, or of an "
            "object store (s3://, gs://, abfs://)"
        )
    probe = path / f".{uuid.uuid4().hex}.tmp"
    try:
        with reaching(path):
            probe.fs.pipe_file(probe.key, b"")
            probe.fs.rm_file(probe.key)
    except (StorageError, FileNotFoundError) as error:
        reason = error.reason if isinstance(error, StorageError) else "there is no such place"
        raise InputError(f"{option} {path}: cannot be written to: {reason}") from error


def _try_folder(path: Path, named: str) -> None:
    try:
        # File systems take names of 255 bytes, and what is written first has a longer name than
        # `path`.
        taken(temporary_name(path))
        folder = path.absolute()
        # A file that is to be replaced.
        if taken(folder) and not folder.is_dir():
            folder = folder.parent
        # mkdir would make a folder `s3:` without a word: each that is missing is looked at.
        while not taken(folder):
            check_name(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{named}: {folder} is no folder; name another place, or remove it")
        # Bytes, and down to the disk: permission bits know nothing of a full disk or a read-only
        # mount, and root passes them all.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(
            f"{named}: cannot be written to: {reason_of(error)}; make room or name another place"
        ) from error


def _there(path: Path) -> bool:
    return path.exists() if isinstance(path, ObjectPath) else taken(path)
