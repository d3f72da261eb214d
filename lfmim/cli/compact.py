"""Many small parts of a feature store -> few large ones, with the same rows.

lfmim compact --store features
"""

from __future__ import annotations

from lfmim.cli.arguments import parse
from lfmim.schema import SPEC_FILE, InputError
from lfmim.storage import input_path

COMMON = ("store", "rows")


def main(args: list[str]) -> int:
    return int(parse(compact, args, prog="lfmim compact", about=__doc__, common=COMMON))


def compact(*, store: str, rows: int = 512) -> int:
    """Merge a store's small parts. It may be stopped at any moment and run again; nothing may
    read or extend the store meanwhile.

    Args:
        store: folder of the feature store.
        rows: most rows of a part; 512 of the paper's encoders are 200 MB.
    """
    from lfmim.data import compaction

    if rows < 1:
        raise InputError(f"--rows {rows}: must be at least 1")
    folder = input_path(store, "--store")
    if not (folder / SPEC_FILE).is_file():
        raise InputError(f"--store {store}: is no feature store: {SPEC_FILE} is not there")
    before, after = compaction.compact(folder, rows)
    print(f"{store}: {before} parts became {after}")
    return 0
