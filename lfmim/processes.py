"""Pools of processes that end with the one that began them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def process_pool(
    workers: int, ready: Callable[..., object] | None = None, *arguments: Any
) -> ProcessPoolExecutor:
    """So many processes, each of which calls `ready(*arguments)` first; both are pickled.

    The standard library's own work on where their parent is killed, and then wait for ever.
    """
    # A child forked after torch has started its threads can hang in its first operation.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _begin, (ready, arguments))


def _begin(ready: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if ready is not None:
        ready(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a pool's processes call this"
    parent.join()
    # Not sys.exit, which ends this thread alone.
    os._exit(1)
