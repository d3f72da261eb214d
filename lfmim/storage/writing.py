"""The one place that writes: whole files and folders, or none.

On a disk everything is written under a temporary name in the same folder, flushed to the disk and
renamed. In an object store it is made on this machine's disk and then put there: an object appears
whole or not at all, and the files of a folder in an order that readers can rely on. A killed writer
leaves what was there before; a failing one removes its temporary file and says which path it was
and why (WriteError).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from lfmim.schema import InputError
from lfmim.storage.failures import StorageError, WriteError, disk_failure, error_code, reason_of
from lfmim.storage.paths import ObjectPath, is_url, reaching

BLOCK_BYTES = 4096
"""Read at a time from the end of a file of lines."""


def make_folder(folder: Path) -> None:
    """Make the folder and its parents, as far as they are missing; an object store has none to
    make.

    Raises WriteError, and InputError for a local path made of a URL.
    """
    if isinstance(folder, ObjectPath):
        return
    try:
        for missing in (folder, *folder.parents):
            if taken(missing):
                break
            check_name(missing)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, reason_of(error)) from error


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
    """Yields the temporary name, on a disk, that the block writes and that becomes `path`. Raises
    WriteError.

    Its suffix is not that of `path`: tell the format to a library that goes by suffixes.
    """
    if isinstance(path, ObjectPath):
        with _scratch(path) as scratch:
            yield scratch / "file"
            _put(path, [(scratch / "file", path)])
        return

    make_folder(path.parent)
    temporary = temporary_name(path)
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
        raise WriteError(path, reason_of(error)) from error


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
        raise WriteError(path, reason_of(error)) from error


def append(path: Path, data: bytes, *, at: int) -> int:
    """Add to a file on a disk that has `at` bytes, 0 if it is not there; returns how many it has
    then. If it had another number, nothing is written, and that is returned.

    Not at once: a killed writer may leave a part of `data`, from where the next goes on. Raises
    WriteError.
    """
    try:
        with open(path, "ab") as file:
            if file.tell() == at:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            return file.tell()
    except OSError as error:
        raise WriteError(path, reason_of(error)) from error


def append_line(path: Path, line: bytes, *, is_whole: Callable[[bytes], bool]) -> None:
    """Add a line (without its newline) to a file on a disk, which is made if it is not there;
    durable. Several processes may do so at once: each waits for the other.

    A file whose last line has no newline gets one, if that line `is_whole`; else the line is what a
    killed writer left, and is taken away. Raises WriteError.
    """
    make_folder(path.parent)
    try:
        with open(path, "a+b") as file:
            # Some network file systems have no locks.
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            left = _behind_last_newline(file, end)
            if left and not is_whole(left):
                file.truncate(end - len(left))
                left = b""
            file.write(b"\n" * bool(left) + line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # Its name, too.
        if not end:
            _flush(path.parent)
    except OSError as error:
        raise WriteError(path, reason_of(error)) from error


def _behind_last_newline(file: BinaryIO, end: int) -> bytes:
    """The bytes behind the last newline of a file of `end` bytes, which is read from there."""
    at, found = end, b""
    while at and b"\n" not in found:
        start = max(0, at - BLOCK_BYTES)
        file.seek(start)
        found = file.read(at - start) + found
        at = start
    return found.rpartition(b"\n")[2]


@contextlib.contextmanager
def new_folder(path: Path, *, first: bool = False, last: str = "") -> Iterator[Path]:
    """Yields a temporary folder, on a disk, that the block fills and that becomes `path`. Raises
    WriteError.

    It takes the place of a folder that is there. With `first` it gives way to one: several
    processes may make the same folder at once (on a disk). `last` is the file that readers look
    for: an object store, where folders have no name to be renamed, gets it after all others. The
    block's other errors are left as they are.
    """
    if isinstance(path, ObjectPath):
        with _scratch(path) as scratch:
            yield scratch
            _put_folder(path, scratch, last)
        return

    make_folder(path.parent)
    temporary = temporary_name(path)
    # What is there goes aside first: a folder cannot be renamed onto one that holds something.
    before = temporary_name(temporary)
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
        raise WriteError(path, reason_of(error)) from error

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
            raise WriteError(path, reason_of(error)) from error


@contextlib.contextmanager
def _scratch(path: ObjectPath) -> Iterator[Path]:
    """A folder on this machine for what becomes `path`. Raises WriteError for a full disk."""
    scratch = Path(tempfile.mkdtemp(prefix="lfmim-"))
    try:
        yield scratch
    except Exception as error:
        failed = disk_failure(error)
        if failed is None:
            raise
        place = "" if isinstance(failed, WriteError) and is_url(failed.path) else " (on its way)"
        raise WriteError(f"{path}{place}", failed.reason) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _put(path: ObjectPath, files: list[tuple[Path, ObjectPath]]) -> None:
    """Copy local files; each appears whole or, if it fails, not at all. Raises WriteError."""
    try:
        with reaching(path):
            path.fs.put([os.fspath(a) for a, _ in files], [b.key for _, b in files])
    except (StorageError, FileNotFoundError) as error:
        reason = error.reason if isinstance(error, StorageError) else str(error)
        raise WriteError(path, reason) from error


def _put_folder(path: ObjectPath, scratch: Path, last: str) -> None:
    files = {p.relative_to(scratch).as_posix(): p for p in scratch.rglob("*") if p.is_file()}
    # The old folder ends with the file that makes it one, and the new one begins with it.
    remove_folder(cast(Path, path), first=last)
    _put(path, [(p, path / name) for name, p in files.items() if name != last])
    if last in files:
        _put(path, [(files[last], path / last)])


def remove_folder(path: Path, *, first: str = "") -> None:
    """Delete a folder and all in it, `first` before the rest; nothing if it is not there."""
    if not isinstance(path, ObjectPath):
        shutil.rmtree(path, ignore_errors=True)
        return
    if first:
        (path / first).unlink(missing_ok=True)
    if path.is_dir():
        with reaching(path), contextlib.suppress(FileNotFoundError):
            path.fs.rm(path.key, recursive=True)


def create(path: Path, data: bytes) -> bool:
    """Write a file if there is none of that name; whether it was written. Of several that ask at
    once one is told so. Raises WriteError.

    An object store must know conditional writes (If-None-Match) for that; one that does not is
    asked whether the object is there first, and of two that ask within the same moment both may be
    told so.
    """
    if isinstance(path, ObjectPath):
        return _create_object(path, data)

    make_folder(path.parent)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.") as temporary:
        temporary.write(data)
        temporary.flush()
        try:
            os.link(temporary.name, path)
        except FileExistsError:
            return False
        except OSError as error:
            raise WriteError(path, reason_of(error)) from error
    return True


_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_UNKNOWN = ("NotImplemented", "501")


def _create_object(path: ObjectPath, data: bytes) -> bool:
    try:
        path.fs.pipe_file(path.key, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        if error_code(error) in _TAKEN:
            return False
        if error_code(error) in _UNKNOWN:
            if path.exists():
                return False
            write_bytes(cast(Path, path), data)
            return True
        with reaching(path):
            raise
    return True


def temporary_name(path: Path) -> Path:
    """What is written first and then becomes `path`."""
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


def taken(path: Path) -> bool:
    """Also by a link to nothing. Raises OSError for what cannot be a name."""
    # `exists` follows links, and says of one to nothing that the name is free.
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_name(folder: Path) -> None:
    """Raise InputError for a folder named like a URL's scheme."""
    if is_url(folder.name):
        raise InputError(
            f"{folder}: '{folder.name}' is a URL's scheme, and no folder of that name "
            "is made; give a path on a disk"
        )
