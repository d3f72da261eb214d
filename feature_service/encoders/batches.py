"""Passes of fixed shape: which rows go through a network together, and how long they are made.

A row's features must not depend on its neighbours, and no library promises the same bytes for a row
in a pass of another shape. So the shape follows from the row's own length: rows of like lengths
share passes, and what is missing from the last of them is filled up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch


class Pass(NamedTuple):
    """One call of a network."""

    rows: int
    """Of its input, those that only fill up included."""
    length: int
    """To which each is padded."""
    members: list[int]
    """Which rows of the call come first in it."""


def passes(lengths: Sequence[int], *, step: int, budget: int) -> Iterator[Pass]:
    """Passes over rows of these lengths, long ones first, each of about `budget` positions.

    Padded lengths are multiples of `step`, and longer than the row: transformers drops a mask that
    masks nothing, and without one another kernel answers. `budget` 0: one row a pass, unpadded.
    """
    if not budget:
        yield from (Pass(1, length, [i]) for i, length in enumerate(lengths))
        return
    alike: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        alike.setdefault((length // step + 1) * step, []).append(i)
    # Long ones first: what they allocate serves the others.
    for length, members in sorted(alike.items(), reverse=True):
        rows = max(budget // length, 1)
        for start in range(0, len(members), rows):
            yield Pass(rows, length, members[start : start + rows])


def in_passes(
    lengths: Sequence[int],
    encode: Callable[[Pass], torch.Tensor],
    *,
    step: int,
    budget: int,
    kept: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """float16 [kept[i], D] of each row (kept: `lengths`, unless given); `encode` gives [rows, T, D]
    of a pass. On a GPU passes are queued, and fetched all at once at the end."""
    kept = lengths if kept is None else kept
    parts: dict[int, torch.Tensor] = {}
    for one in passes(lengths, step=step, budget=budget):
        x_BTD = encode(one).to(torch.float16)
        parts.update({i: x[: kept[i]] for i, x in zip(one.members, x_BTD, strict=False)})
    if not parts:
        return []
    whole = torch.cat([parts[i] for i in range(len(lengths))]).cpu().numpy()
    return np.split(whole, np.cumsum(kept)[:-1])
