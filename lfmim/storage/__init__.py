"""Local disks and object stores: what a path is, where a job may read and write, and the one place
that writes durably."""

from lfmim.storage.failures import StorageError, WriteError, disk_failure
from lfmim.storage.lease import exclusive
from lfmim.storage.paths import (
    Listed,
    as_path,
    file_system,
    is_remote,
    is_url,
    listing,
    local_copy,
    reaching,
    relative_path,
    relative_url,
)
from lfmim.storage.places import input_path, local_path, named_path, output_file, output_folder
from lfmim.storage.writing import (
    append,
    append_line,
    create,
    make_folder,
    new_file,
    new_folder,
    remove_folder,
    resumable_file,
    write_bytes,
    write_text,
)

__all__ = [
    "Listed",
    "StorageError",
    "WriteError",
    "append",
    "append_line",
    "as_path",
    "create",
    "disk_failure",
    "exclusive",
    "file_system",
    "input_path",
    "is_remote",
    "is_url",
    "listing",
    "local_copy",
    "local_path",
    "make_folder",
    "named_path",
    "new_file",
    "new_folder",
    "output_file",
    "output_folder",
    "reaching",
    "relative_path",
    "relative_url",
    "remove_folder",
    "resumable_file",
    "write_bytes",
    "write_text",
]
