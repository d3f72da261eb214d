"""Names of the parts that a planned extraction writes: which shards of which plan a part holds.

`part-0002-000017.parquet` is shard 17 of the store's second plan; `part-0002-000000-000063.parquet`
holds shards 0 to 63 in one part, and stands for theirs from the moment it is there. Parts of other
names (of imports, of 0.2 and before) hold rows of no plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

_NAME = re.compile(r"part-(\d{4,})-(\d{6,})(?:-(\d{6,}))?\.parquet")


class Shards(NamedTuple):
    """Shards `first` to `last`, included, of a plan."""

    plan: int
    first: int
    last: int


def part_name(plan: int, first: int, last: int | None = None) -> str:
    """The part's file name."""
    more = "" if last is None else f"-{last:06d}"
    return f"part-{plan:04d}-{first:06d}{more}.parquet"


def shards_of(name: str) -> Shards | None:
    """Inverse of `part_name`; None for a part of no plan."""
    found = _NAME.fullmatch(name)
    return found and Shards(int(found[1]), int(found[2]), int(found[3] or found[2]))


def done_shards(names: Iterable[str]) -> set[tuple[int, int]]:
    """(plan, shard) of every shard that parts of these `names` hold."""
    held = filter(None, map(shards_of, names))
    return {(h.plan, shard) for h in held for shard in range(h.first, h.last + 1)}


def not_covered(names: Iterable[str]) -> Iterator[str]:
    """The `names` without those whose shards a longer one holds: what was merged, and not yet
    removed."""
    names = list(names)
    longer = [h for h in map(shards_of, names) if h and h.first < h.last]
    # of all shards that are held in company, which company
    company: dict[tuple[int, int], Shards] = {}
    for held in sorted(longer, key=lambda h: h.last - h.first):
        company |= {(held.plan, shard): held for shard in range(held.first, held.last + 1)}
    for name in names:
        own = shards_of(name)
        if own is None or company.get((own.plan, own.first), own) == own:
            yield name
