"""Media that kills whoever opens it, where that is a process that may end."""

from __future__ import annotations

from pathlib import Path

import pytest

KILL = b"KILL"
"""Behind a file's own bytes."""
# Read by Python at the start of a child, and only there does anything.
INJECTION = f"""
import sys
if {{"feature_service.operators.isolation", "feature_service.recordings.conversion"}} & {{
    *sys.orig_argv
}}:
    import os, signal, av
    real_open = av.open
    def open_(file, *args, **kwargs):
        if hasattr(file, "read"):
            file.seek(-4, os.SEEK_END)
            if file.read() == {KILL!r}:
                os.kill(os.getpid(), signal.SIGKILL)
            file.seek(0)
        return real_open(file, *args, **kwargs)
    av.open = open_
"""


def let_kill(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """From here on, for children that start behind it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INJECTION)
    patch.syspath_prepend(folder)


def deadly(path: Path) -> Path:
    """The file, made so."""
    with path.open("ab") as file:
        file.write(KILL)
    return path
