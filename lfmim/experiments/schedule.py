"""How long the runs that are left will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def seconds_left(
    todo: Sequence[str], taken: Mapping[str, Sequence[float]], at_once: int
) -> float | None:
    """Seconds until the runs of the systems `todo` are done, in the order in which they begin,
    `at_once` side by side; `taken`: system -> seconds of its runs that are over. None before any
    is.

    A system is as slow as its own runs were, or as the slowest that is known: MulT takes four times
    as long as TFN, and a regression next to nothing.
    """
    means = {system: float(np.mean(runs)) for system, runs in taken.items() if runs}
    if not means:
        return None
    each = np.array([means.get(system, max(means.values())) for system in todo])
    # Those that run now are somewhere in the middle.
    each[:at_once] /= 2
    return max(float(each.sum()) / at_once, float(each.max(initial=0.0)))
