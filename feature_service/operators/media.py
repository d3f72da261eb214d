"""One clip's bytes as a seekable file, wherever they lie: local, on object storage, inside a tar
shard."""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from typing import Any, BinaryIO, cast

from fsspec.implementations.local import LocalFileSystem

from lfmim.data.shards import parse_member
from lfmim.storage import file_system, reaching

COPY_BYTES = 4 << 20


def open_media(video: str, *, max_bytes: int) -> BinaryIO:
    """Open a local file as it is; copy anything else, at most `max_bytes`, to a temporary file
    without a name.

    Raises OSError or StorageError if it cannot be read, ValueError if it is larger than `max_bytes`
    or its shard ends early.
    """
    member = parse_member(video)
    location, offset, size = (member[0], member[2], member[3]) if member else (video, 0, -1)
    fs, path = file_system(location)
    if member is None and isinstance(fs, LocalFileSystem):
        return open(path, "rb")

    if size < 0:
        with reaching(location):
            size = int(fs.info(path)["size"] or 0)
    if size > max_bytes:
        raise ValueError(f"has {size >> 20} MiB, more than max_media_mb {max_bytes >> 20}")

    # A file without a name cannot be left behind, however this process ends. The caller closes it.
    copy = cast(BinaryIO, tempfile.TemporaryFile(prefix="lfmim-"))  # noqa: SIM115
    try:
        # Not fsspec.open(url, block_size=...): that hands the option to the file system's
        # constructor, and s3fs refuses it.
        with reaching(location), fs.open(path, "rb", block_size=COPY_BYTES) as source:
            source.seek(offset)
            left = size
            while left > 0:
                block = source.read(min(left, COPY_BYTES))
                # a shard that was cut short since its members were listed
                if not block:
                    raise ValueError(f"ends {left} bytes early")
                copy.write(block)
                left -= len(block)
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


_HASHES: dict[tuple[int, ...], str] = {}
"""Of recordings hashed by this process, by device, inode, size and time."""


def sha256(file: BinaryIO, *, keep: bool = False) -> str:
    """Of all bytes of an open file. `keep`: remembered as long as the file does not change, for a
    recording of which many stretches are rows."""
    stat = os.fstat(file.fileno())
    known = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    if keep and known in _HASHES:
        return _HASHES[known]
    file.seek(0)
    digest = hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    if keep:
        _HASHES[known] = digest
    return digest


def file_size(file: BinaryIO) -> int:
    """Bytes of an open file, which is left at its end."""
    return file.seek(0, os.SEEK_END)


def stated_size(file: BinaryIO) -> int | None:
    """Bytes the file should have by its own outermost chunks (MP4 and MOV, Matroska and WebM, WAV
    and AVI, FLV).

    None where it does not say, as in what is written while it is recorded, and in other formats.
    """
    file.seek(0)
    head = file.read(4096)
    if head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _end_of_boxes(file)
    if head[:4] == b"RIFF":
        return _end_of_riff(file)
    if head[:4] == b"\x1aE\xdf\xa3":
        return _end_of_segment(head)
    if head[:3] == b"FLV" and (at := head.find(b"\0\x08filesize\0")) >= 0:
        # Tools that copy the header leave an old figure in it: it can say that a file is whole, not
        # that it is not.
        # In AMF: the name's length and letters, type 0 (a number), and eight bytes of a double.
        (size,) = struct.unpack_from(">d", head.ljust(len(head) + 8, b"\0"), at + 11)
        return int(size) if 0 < size <= file_size(file) else None
    return None


def _end_of_boxes(file: BinaryIO) -> int | None:
    end, at, size = None, 0, file_size(file)
    while at + 8 <= size:
        file.seek(at)
        # a length of 1 says that the true one, of 64 bits, follows the name
        length, kind, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        length = long if length == 1 else length

        # Some phones write data of their own behind the last box: what has another name and does
        # not fit into the file is that, and no box cut short.
        known = kind in (
            b"ftyp",
            b"styp",
            b"moov",
            b"mdat",
            b"moof",
            b"free",
            b"skip",
            b"wide",
            b"uuid",
            b"sidx",
        )
        # 0 is a box that ends with the file, or padding
        if length < 8 or (not known and at + length > size):
            break
        at += length
        end = at
    return end


def _end_of_riff(file: BinaryIO) -> int | None:
    end, size = 0, file_size(file)
    # a chunk's length has 32 bits: a long AVI is a chain of them
    while end + 8 <= size:
        file.seek(end)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF":
            break
        # Writers that do not come back to fill it in leave 0, 0x7FFFF000 or 0xFFFFFFFF.
        if not 0 < length < 0x7F000000:
            return None
        end += 8 + length
    return end


def _end_of_segment(head: bytes) -> int | None:
    at = 4
    # the EBML header's length, then, behind its own name, the segment's
    for following in (b"\x18S\x80g", None):
        if at >= len(head) or not head[at]:
            return None

        # EBML: as many zero bits as a number has further bytes, a one, then 7 bits for each byte.
        # All ones mean that the length was not known, as in a recording that goes on.
        width = 9 - head[at].bit_length()
        length = int.from_bytes(head[at : at + width]) & ((1 << 7 * width) - 1)
        if following is None:
            return at + width + length if length != (1 << 7 * width) - 1 else None
        at += width + length
        if head[at : at + 4] != following:
            return None
        at += 4
    return None
