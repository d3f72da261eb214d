"""What pyarrow, and with it Ray, reads and writes a path by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

from lfmim.storage.paths import ObjectPath


class _Ranges(FSSpecHandler):  # type: ignore[misc]
    def open_input_file(self, path: str) -> Any:
        # Without fsspec's own reading ahead: Parquet asks for the ranges that it needs, and 50 MiB
        # behind each would be fetched for nothing.
        return pa.PythonFile(self.fs.open(path, "rb", cache_type="none"), mode="r")


def arrow_files(path: Path) -> tuple[Any, str]:
    """The pyarrow file system of a path, and the path there."""
    if isinstance(path, ObjectPath):
        return PyFileSystem(_Ranges(path.fs)), path.key
    return LocalFileSystem(), str(path)
