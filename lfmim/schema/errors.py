"""What goes wrong for people, and names for its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong. The message names file, row and field and says what to do.

    The jobs print it without a traceback and exit with code 2.
    """


class NothingThereError(InputError):
    """Nothing was ever put where something is looked for: a registry without any model."""


class WorkerError(RuntimeError):
    """A worker of the job failed, or none of them gets on. The message carries what the worker
    said.

    The jobs print it without the driver's traceback and exit with code 1.
    """


def listed(names: Iterable[str], *, like: str = "", most: int = 8) -> str:
    """Names for a message, at most so many, the one most like `like` first."""
    every = list(names)
    # Sorted, not filtered by likeness: what is known is listed also if nothing is like it.
    if like:
        every.sort(key=lambda n: -difflib.SequenceMatcher(None, n.lower(), like.lower()).ratio())
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")
