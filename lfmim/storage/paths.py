"""Local paths and URLs of object stores behind the same methods, and the file systems they are in.

A URL goes through fsspec, for pyarrow and Ray as well (arrow.py): one chain of credentials serves
all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast
from urllib.parse import quote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lfmim.schema import InputError
from lfmim.storage.failures import (
    MISSING_BUCKET,
    OF_ONE,
    StorageError,
    error_code,
    of_library,
    remote_reason,
)

_SCHEME = r"[a-z][a-z0-9+.-]*:"
_SLIPS = "s3[an]?|gc?s|hdfs|file|https?|abfss?|memory"
URL = re.compile(rf"(?:{_SCHEME}:)*{_SCHEME}(?:/|$)|.*://|(?:{_SLIPS}):", re.IGNORECASE)
"""What is no local path: s3://x, file:/x, simplecache::s3://x; and s3:x, a slip for the first."""
_WHOLE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>[^/].*)", re.IGNORECASE)
_PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "az"), "adlfs"),
    "hf": "huggingface_hub",
}
# Asked with HEAD, S3 answers with a number alone.
_UNTOLD = ("400", "403")
_STAMPS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "created")


def is_url(text: str) -> bool:
    """Whether it names an object store (or is a slip for such a name), and not a local path."""
    return bool(URL.match(text))


def as_path(text: str) -> Path:
    """A local path, or for a URL an `ObjectPath`, which has the methods of Path that are used here.

    Raises InputError for what is neither (s3:/x, file:///x, a chain of file systems).
    """
    if not is_url(text):
        return Path(text)
    if text.lower().startswith("file:/"):
        raise InputError(f"{text}: is a URL; give the path alone: /{text[5:].lstrip('/')}")
    found = _WHOLE.fullmatch(text)
    if not found or "::" in text or "://" in found["rest"]:
        raise InputError(
            f"{text}: is a URL, but not of the form scheme://bucket/path; correct it, or give a "
            "path on a disk"
        )
    rest = re.sub("/+", "/", found["rest"]).rstrip("/")
    return cast(Path, ObjectPath(f"{found['scheme'].lower()}://{rest}"))


def relative_path(path: Path, folder: Path) -> str:
    """The path by which what lies in the local `folder` finds a local file, under its own name
    even where that is a link."""
    # Of folders `..` follows links, and so must what is written with it.
    return os.path.relpath(path.parent.resolve() / path.name, folder.resolve())


def relative_url(path: Path, folder: Path) -> str:
    """`relative_path` as a page has it."""
    return quote(relative_path(path, folder))


def is_remote(path: Path) -> bool:
    """Whether `as_path` made it of a URL."""
    return isinstance(path, ObjectPath)


def file_system(location: str) -> tuple[Any, str]:
    """The fsspec file system of a local path or URL, and the path there.

    A local path is taken as it stands: for fsspec itself `::` in a name would chain file systems.
    Raises StorageError for a scheme that nobody knows here.
    """
    scheme, mark, path = location.partition("://")
    if not mark or scheme in ("file", "local"):
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(path if mark else location))
    # A listing that is remembered lacks what another machine has written since.
    options = {} if "::" in location else {"use_listings_cache": False}
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(location, **options)
    except ImportError as error:
        package = _PACKAGES.get(scheme)
        remedy = f"pip install {package}" if package else error
        raise StorageError(
            location, f"{scheme}:// needs a package that is not installed here: {remedy}"
        ) from error
    except ValueError as error:
        raise StorageError(location, f"{scheme}:// is no file system known here") from error
    return found


@contextlib.contextmanager
def reaching(location: object) -> Iterator[None]:
    """Raises what an object store raises in the block as StorageError that names `location`; of a
    local path nothing is changed.

    FileNotFoundError and FileExistsError of an object are left: callers ask for them.
    """
    if not is_url(str(location)):
        yield
        return
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        code = error_code(error)
        missing = isinstance(error, FileNotFoundError | FileExistsError)
        if missing and code != MISSING_BUCKET:
            raise
        # Anything else is a fault of ours, or of what a file holds.
        if not (isinstance(error, OSError) or of_library(error)):
            raise
        if code in _UNTOLD:
            code = _asked_again(str(location)) or code
        reason = remote_reason(error, code)
        raise StorageError(location, reason, general=code not in OF_ONE) from error


def _asked_again(location: str) -> str:
    """The code that a listing is answered with: it comes with a reason."""
    try:
        fs, name = file_system(location)
        fs.ls(name.rpartition("/")[0] or name)
    except Exception as error:
        return error_code(error)
    return ""


@dataclasses.dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or what its name is a folder for: the methods of Path that are used here.

    Every one that asks the store raises StorageError, naming the URL, for a bucket that is not
    there, a refusal and whatever else is not FileNotFoundError.
    """

    url: str
    """scheme://bucket/..., without a slash at the end."""

    # Names.

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(f"{self.url}/{name.strip('/')}") if name else self

    @property
    def _inside(self) -> PurePosixPath:
        """Bucket and key."""
        return PurePosixPath(self.url.partition("://")[2])

    @property
    def name(self) -> str:
        return self._inside.name

    @property
    def stem(self) -> str:
        return self._inside.stem

    @property
    def suffix(self) -> str:
        return self._inside.suffix

    @property
    def parent(self) -> ObjectPath:
        """The bucket's is the bucket."""
        bucket = len(self._inside.parts) == 1
        return self if bucket else ObjectPath(self.url.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def resolve(self) -> ObjectPath:
        """Itself: a URL is whole already."""
        return self

    absolute = resolve

    def as_uri(self) -> str:
        return self.url

    # What is there.

    @property
    def fs(self) -> Any:
        """Its fsspec file system."""
        return file_system(self.url)[0]

    @property
    def key(self) -> str:
        """Its name in `fs`."""
        return self.url.partition("://")[2]

    def _type(self) -> str:
        with reaching(self):
            try:
                return str(self.fs.info(self.key)["type"])
            except FileNotFoundError as error:
                if error_code(error) == MISSING_BUCKET:
                    raise
                return ""

    def exists(self) -> bool:
        return self._type() != ""

    def is_file(self) -> bool:
        return self._type() == "file"

    def is_dir(self) -> bool:
        return self._type() == "directory"

    def entries(self) -> list[dict[str, Any]]:
        """fsspec's records of what is directly in it; [] if it is not there."""
        with reaching(self):
            try:
                found = self.fs.ls(self.key, detail=True)
            except FileNotFoundError as error:
                if error_code(error) == MISSING_BUCKET:
                    raise
                return []
        # A folder may be there as an empty object of its own, and a file lists itself.
        return [e for e in found if e["name"].rstrip("/") != self.key]

    def iterdir(self) -> Iterator[ObjectPath]:
        for entry in self.entries():
            yield self / entry["name"].rstrip("/").rpartition("/")[2]

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """As Path.glob, without `**`."""
        name, _, rest = pattern.partition("/")
        for inside in self.iterdir():
            if fnmatch.fnmatchcase(inside.name, name):
                yield from inside.glob(rest) if rest else [inside]

    # Reading, and deleting; writing.py writes.

    def read_bytes(self) -> bytes:
        with reaching(self):
            return bytes(self.fs.cat_file(self.key))

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "r", encoding: str = "utf-8") -> IO[Any]:
        """For reading, "r" or "rb"."""
        with reaching(self):
            file = self.fs.open(self.key, "rb")
        return file if "b" in mode else io.TextIOWrapper(file, encoding)

    def unlink(self, missing_ok: bool = False) -> None:
        with reaching(self):
            try:
                self.fs.rm_file(self.key)
            except FileNotFoundError:
                if not missing_ok:
                    raise


class Listed(NamedTuple):
    """A file in a listing."""

    path: Path
    size: int
    """Bytes."""
    stamp: int
    """Differs when the file was written anew: its time in ns, or for an object a hash of what the
    store says of its content or time."""


def listing(folder: Path, pattern: str) -> list[Listed]:
    """The files directly in `folder` of such names (as fnmatch), sorted by name; [] if it is not
    there. One look at the folder, whatever it holds."""
    if isinstance(folder, ObjectPath):
        found = (
            Listed(
                cast(Path, folder / entry["name"].rpartition("/")[2]),
                int(entry["size"]),
                _stamp(entry),
            )
            for entry in folder.entries()
            if entry["type"] == "file"
        )
    else:
        found = (
            Listed(path, path.stat().st_size, path.stat().st_mtime_ns)
            for path in folder.glob(pattern)
            if path.is_file()
        )
    return sorted(f for f in found if fnmatch.fnmatchcase(f.path.name, pattern))


def _stamp(entry: dict[str, Any]) -> int:
    told = [str(entry[k]) for k in _STAMPS if k in entry]
    return int.from_bytes(hashlib.sha256("".join(told).encode()).digest()[:7], "big")


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yields the file or folder itself, or a copy on this machine's disk for the time of the
    block, for libraries that read local ones only."""
    if not isinstance(path, ObjectPath):
        yield path
        return
    scratch = Path(tempfile.mkdtemp(prefix="lfmim-"))
    try:
        with reaching(path):
            path.fs.get(path.key, os.fspath(scratch / path.name), recursive=path.is_dir())
        yield scratch / path.name
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
