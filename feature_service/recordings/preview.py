"""What browsers cannot show of a recording, as an MP4 that they can, which a child makes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from feature_service.operators.child import Child
from feature_service.operators.clip import ClipError
from lfmim.progress import watch
from lfmim.schema import InputError
from lfmim.storage import new_file

CONVERSION = "feature_service.recordings.conversion"
STALL_S = 300.0
"""Longest time that a second of a recording takes."""


def preview(media: Path, target: Path, *, blur_faces: bool = False) -> Path | None:
    """Write `target`, the recording as `conversion.convert` makes it, if browsers do not play it
    itself or `blur_faces`; returns it, or None if there is no need. One that is there of this very
    file is left as it is.

    Its seconds are those of the results. Memory does not grow with the length. Raises InputError,
    also if the child that reads `media` crashed, and WriteError.
    """
    found = media.stat()
    of = f"{found.st_size} bytes of {found.st_mtime_ns}{', faces hidden' if blur_faces else ''}"
    about = {"media": str(media), "target": str(target)}
    try:
        with contextlib.closing(Child(CONVERSION, {}, timeout_s=STALL_S)) as child:
            ((told, _),) = child.ask(about)
            if told["plays"] and not blur_faces:
                return None
            if told["made"] == of:
                return target
            with (
                new_file(target) as temporary,
                watch(f"{media.name}: preview", told["seconds"], "s") as show,
            ):
                order = {"to": str(temporary), "of": of, "blur_faces": blur_faces}
                for head, _ in child.ask({**about, **order}):
                    show(head["second"])
    except ClipError as error:
        raise InputError(f"{media}: {error}") from error
    return target
