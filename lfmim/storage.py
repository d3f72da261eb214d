"""Where a job may write, and the one place that writes: whole files and folders, or none.

Everything is written under a temporary name in the same folder, flushed to the disk and renamed. A
killed writer leaves what was there before; a failing one removes its temporary file and says which
path it was and why (WriteError).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lfmim.schema import InputError

_SCHEME = r"[a-z][a-z0-9+.-]*:"
_SLIPS = "s3[an]?|gc?s|hdfs|file|https?|abfss?|memory"
URL = re.compile(rf"(?:{_SCHEME}:)*{_SCHEME}(?:/|$)|.*://|(?:{_SLIPS}):", re.IGNORECASE)
"""What is no local path: s3://x, file:/x, simplecache::s3://x; and s3:x, a slip for the first."""
# Quota exceeded and file size limit (ulimit -f) are a full disk to whoever meets them.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_NUMBERS = "|".join(map(str, DISK_ERRORS))


class WriteError(InputError):
    """`path` could not be written because of `reason`. What was there before is as it was."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(
            f"{path}: cannot be written to: {reason}. What was written before is "
            "kept; make room or fix the folder, then run the same command again"
        )
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[WriteError], tuple[str, str]]:
        # It comes back from other processes, and an exception is unpickled from its one message,
        # which __init__ does not take.
        return WriteError, (self.path, self.reason)


def disk_failure(error: BaseException | None) -> WriteError | None:
    """What failed first among an exception's causes, if that was a full or read-only disk."""
    found = None
    while error is not None:
        if isinstance(error, WriteError):
            found = error
        elif isinstance(error, OSError) and error.errno in DISK_ERRORS:
            found = WriteError(error.filename or "the disk", _reason(error))
        # safetensors is written in Rust: its error has no errno, only this text.
        elif rust := re.search(rf"\(os error ({_NUMBERS})\)", str(error)):
            found = WriteError("the disk", os.strerror(int(rust[1])))
        # On to the deepest, which came first and knows the file. Libraries that raise anew without
        # `from` leave only the context.
        error = error.__cause__ or error.__context__
    return found


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


# Where a job may write: asked before any work.


def output_folder(text: str, option: str, *, files: Sequence[str] = ()) -> Path:
    """The folder that `option` names, there or to be made, in which `files` can be written.

    Raises InputError for a URL, a name that is taken, and a disk that is full or read-only.
    """
    path = _output(text, option)
    if _taken(path) and not path.is_dir():
        raise InputError(
            f"{option} {text}: is a file where a folder is to be written; name "
            "another, or remove it"
        )

    # A folder of that name inside would be met only after hours, when the report is written.
    for name in files:
        output_file(str(path / name), option)
    return path


def output_file(text: str, option: str) -> Path:
    """The file that `option` names, to be made or replaced. Raises as `output_folder`."""
    path = _output(text, option)
    if _taken(path) and not path.is_file():
        what = "a folder" if path.is_dir() else "no plain file"
        raise InputError(
            f"{option} {text}: is {what} where a file is to be written; name another, or remove it"
        )
    return path


def local_path(text: str, option: str) -> Path:
    """The folder or file that `option` names, for those who read local ones only.

    Raises InputError for a URL.
    """
    _check_local(text, option, "it is not read from there yet; copy it to a disk and give its path")
    return Path(text)


def _output(text: str, option: str) -> Path:
    if not text:
        raise InputError(f"{option}: must not be empty")

    _check_local(
        text,
        option,
        "object storage is not written to yet; give a path on a disk (on a "
        "cluster, one that every node sees)",
    )

    path = Path(text)
    try:
        # File systems take names of 255 bytes, and what is written first has a longer name than
        # `path`.
        _taken(_temporary(path))
        folder = path.absolute()
        # A file that is to be replaced.
        if _taken(folder) and not folder.is_dir():
            folder = folder.parent
        # mkdir would make a folder `s3:` without a word: each that is missing is looked at.
        while not _taken(folder):
            _check_name(folder)
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(
                f"{option} {text}: {folder} is no folder; name another place, or remove it"
            )
        # Bytes, and down to the disk: permission bits know nothing of a full disk or a read-only
        # mount, and root passes them all.
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise InputError(
            f"{option} {text}: cannot be written to: {_reason(error)}; make room or "
            "name another place"
        ) from error
    return path


def _check_local(text: str, option: str, problem: str) -> None:
    if text.lower().startswith("file:/"):
        raise InputError(f"{option} {text}: is a URL; give the path alone: /{text[5:].lstrip('/')}")
    if URL.match(text):
        raise InputError(f"{option} {text}: is a URL, and {problem}")


def _taken(path: Path) -> bool:
    """Also by a link to nothing. Raises OSError for what cannot be a name."""
    # `exists` follows links, and says of one to nothing that the name is free.
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_name(folder: Path) -> None:
    if URL.match(folder.name):
        raise InputError(
            f"{folder}: '{folder.name}' is a URL's scheme, and no folder of that name "
            "is made; give a path on a disk"
        )


# Writing.


def make_folder(folder: Path) -> None:
    """Make the folder and its parents, as far as they are missing.

    Raises WriteError, and InputError for a path made of a URL.
    """
    try:
        for missing in (folder, *folder.parents):
            if _taken(missing):
                break
            _check_name(missing)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, _reason(error)) from error


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file, and the folders above it; returns `path`. Raises WriteError."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """`write_bytes` of UTF-8."""
    return write_bytes(path, text.encode())


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields the temporary name that the block writes and that becomes `path`. Raises WriteError.

    Its suffix is not that of `path`: tell the format to a library that goes by suffixes.
    """
    make_folder(path.parent)
    temporary = _temporary(path)
    try:
        # Two blocks, as removing the temporary file may be what fails.
        try:
            yield temporary
            _flush(temporary)
            # Only after the flush: a rename may reach the disk before the bytes do.
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, _reason(error)) from error


@contextlib.contextmanager
def resumable_file(path: Path) -> Iterator[Path]:
    """As `new_file`, but what a writer left that was stopped or failed stays, for the next to go on
    from: the block looks what is there. One writer at a time."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(path, _reason(error)) from error


@contextlib.contextmanager
def new_folder(path: Path, *, first: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that the block fills and that becomes `path`. Raises WriteError.

    It takes the place of a folder that is there. With `first` it gives way to one: several
    processes may make the same folder at once. The block's other errors are left as they are.
    """
    make_folder(path.parent)
    temporary = _temporary(path)
    # What is there goes aside first: a folder cannot be renamed onto one that holds something.
    before = _temporary(temporary)
    try:
        # A name of its own for each process that makes the same folder at once.
        if first:
            temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        else:
            # What a killed writer left; new files would be mixed with its.
            for left in (temporary, before):
                shutil.rmtree(left, ignore_errors=True)
            temporary.mkdir()
    except OSError as error:
        raise WriteError(path, _reason(error)) from error

    try:
        yield temporary
        _take_place(temporary, path, before, first=first)
    except Exception as error:
        # Others write in here (torch, safetensors, save_pretrained), and wrap what the disk said.
        failed = disk_failure(error)
        if failed is None:
            raise
        raise WriteError(path, failed.reason) from error
    finally:
        for spent in (temporary, before):
            shutil.rmtree(spent, ignore_errors=True)


def _take_place(temporary: Path, path: Path, before: Path, *, first: bool) -> None:
    try:
        for inside in temporary.rglob("*"):
            _flush(inside)
        if path.is_dir() and not first:
            os.rename(path, before)
        os.rename(temporary, path)
    except OSError as error:
        # With `first`: another process was faster, and its folder is as good as this one.
        if not (first and path.is_dir()):
            raise WriteError(path, _reason(error)) from error


def _temporary(path: Path) -> Path:
    # Beside it, since a rename is one step only within a file system; always the same name, so that
    # a writer's leftovers are overwritten by the next and do not pile up.
    return path.with_name(f".{path.name}.tmp")


def _flush(path: Path) -> None:
    """To the disk: a full one may show only here."""
    # os.open, which opens folders as well: theirs are the names of the files in them.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
