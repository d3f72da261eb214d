"""One clip's bytes as a seekable file, wherever they lie: local, on object storage, inside a tar shard."""

from __future__ import annotations

import tempfile
from typing import BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lfmim.data.shards import parse_member

COPY_BYTES = 4 << 20


def open_media(video: str, *, max_bytes: int) -> BinaryIO:
    """Open a local file as it is; copy anything else, at most `max_bytes`, to a temporary file without a name.

    A file without a name cannot be left behind, however this process ends. Raises OSError (also by the object store's
    client) if it cannot be read, ValueError if it is larger than `max_bytes` or its shard ends early.
    """
    member = parse_member(video)
    location, offset, size = (member[0], member[2], member[3]) if member else (video, 0, -1)
    fs, path = fsspec.core.url_to_fs(location)
    if member is None and isinstance(fs, LocalFileSystem):
        return open(path, "rb")
    if size < 0:
        size = int(fs.info(path)["size"] or 0)
    if size > max_bytes:
        raise ValueError(f"has {size >> 20} MiB, more than max_media_mb {max_bytes >> 20}")
    # The caller closes it.
    copy = cast(BinaryIO, tempfile.TemporaryFile(prefix="lfmim-"))  # noqa: SIM115
    try:
        with fs.open(path, "rb", block_size=COPY_BYTES) as source:
            source.seek(offset)
            left = size
            while left > 0:
                block = source.read(min(left, COPY_BYTES))
                if not block:
                    raise ValueError(f"ends {left} bytes early")
                copy.write(block)
                left -= len(block)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy
