"""All that was made of a recording -> gone. The recording itself is left where it is.

lfmim delete talk.mp4 --output result --stores [features,corrected]
"""

from __future__ import annotations

import re
from pathlib import Path

from lfmim.cli.arguments import parse
from lfmim.schema import SPEC_FILE, InputError
from lfmim.storage import input_path, local_path

COMMON = ("recording", "output", "stores", "dry_run")


def main(args: list[str]) -> int:
    # The recording comes first, or it could not be told from an option's value.
    first = [] if not args or args[0].startswith("-") else [f"--recording={args[0]}"]
    given = [*first, *args[len(first) :]]
    return int(parse(delete, given, prog="lfmim delete", about=__doc__, common=COMMON))


def delete(
    *,
    recording: str,
    output: str = "result",
    stores: list[str] = [],  # noqa: B006 (never changed)
    dry_run: bool = False,
) -> int:
    """Delete a recording's results, kept features, corrections and preview, and its rows in feature
    stores. Models that were trained on it stay as they are: train them anew.

    Args:
        recording: its file; where that is gone, the JSON of one of its results, or the SHA-256 that
            stands in there.
        output: folder of results, looked through with all folders in it.
        stores: feature stores, several in brackets.
        dry_run: only say what would be deleted.
    """
    from feature_service.recordings.deletion import delete as delete_files
    from feature_service.recordings.deletion import made_of, results_of
    from lfmim.data.deletion import delete_rows

    media_sha256, paths = _known(recording)
    folders = [input_path(store, "--stores") for store in stores]
    for folder in folders:
        if not (folder / SPEC_FILE).exists():
            raise InputError(f"--stores {folder}: is no feature store: {SPEC_FILE} is not there")
    folder = local_path(output, "--output")
    results = results_of(folder, media_sha256) if folder.is_dir() else []
    if not results and not stores:
        raise InputError(
            f"--output {output}: has no result of {recording} ({media_sha256}); name the folder of "
            "its results, or --stores"
        )

    word = "would delete" if dry_run else "deleted"
    for result in results:
        files = made_of(result)
        if not dry_run:
            delete_files(files)
        print("\n".join(f"{word} {path}" for path in files))
    for store in folders if not dry_run else ():
        print(f"deleted {delete_rows(store, media_sha256, paths)} rows of {store}")
    if dry_run and folders:
        print("would look through " + ", ".join(map(str, folders)))
    return 0


def _known(recording: str) -> tuple[str, list[str]]:
    """The recording's SHA-256, and the paths that stores may know it by."""
    from feature_service.operators.media import sha256
    from feature_service.recordings.deletion import media_of

    if re.fullmatch(r"[0-9a-f]{64}", recording):
        return recording, []
    path = Path(recording)
    try:
        found = media_of(path) if path.suffix == ".json" else ""
        with open(path, "rb") as file:
            return found or sha256(file), [] if found else [str(path.absolute()), recording]
    except OSError as error:
        raise InputError(f"{recording}: cannot be read: {error.strerror}") from error
