"""What pyarrow, and with it Ray, reads and writes a path by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from lfmim.storage.paths import ObjectPath, is_remote, reaching


class _File:
    """A file of fsspec whose failures name it."""

    def __init__(self, file: Any, url: str) -> None:
        self.file, self.url = file, url

    def read(self, size: int = -1) -> bytes:
        with reaching(self.url):
            return bytes(self.file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


class _Objects(FSSpecHandler):  # type: ignore[misc]
    def open_input_file(self, path: str) -> Any:
        url = self.fs.unstrip_protocol(path)
        # Without fsspec's own reading ahead: Parquet asks for the ranges that it needs, and 50 MiB
        # behind each would be fetched for nothing.
        with reaching(url):
            file = self.fs.open(path, "rb", cache_type="none")
        return pa.PythonFile(_File(file, url), mode="r")

    def get_file_info(self, paths: list[str]) -> Any:
        with reaching(self.fs.unstrip_protocol(paths[0])):
            return super().get_file_info(paths)


def arrow_files(path: Path) -> tuple[Any, str]:
    """The pyarrow file system of a path, and the path there."""
    if isinstance(path, ObjectPath):
        return PyFileSystem(_Objects(path.fs)), path.key
    return LocalFileSystem(), str(path)


def ray_storage(path: Path) -> dict[str, Any]:
    """The settings by which Ray Train and Tune keep their own state there."""
    files, name = arrow_files(path)
    # A local one Ray makes itself.
    return {"storage_path": name, "storage_filesystem": files if is_remote(path) else None}
