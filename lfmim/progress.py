"""Progress that can be watched: a bar on a terminal, a line now and then in a log, figures for a tracker."""

from __future__ import annotations

import contextlib
import datetime
import sys
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Log = Callable[[Mapping[str, float], int], None]
"""Takes named figures and the step they belong to."""
SECONDS_BETWEEN_LINES = 10.0


def no_log(figures: Mapping[str, float], step: int) -> None:
    """Nobody listens."""


def share(cpus: float, gpus: float) -> str:
    """What one worker gets, for people: "1 CPU", "1 CPU + 0.5 GPU"."""
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "")


@contextlib.contextmanager
def watch(
    what: str, total: int, unit: str, *, log: Log = no_log, seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[Callable[..., None]]:
    """Yields `show(done, note="", **figures)`, to be called as often as one likes.

    A terminal shows a bar; anything else (a submitted job's log, a file) gets a line at the first result, then every
    `seconds` at most. `log` gets throughput, ETA and `figures` as often, with step = done. The rate leaves out what was
    done before the first call.
    """
    console = Console(stderr=True)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                   TextColumn("{task.fields[text]}"), console=console, disable=not console.is_terminal)
    started = time.monotonic()
    last, first, latest = started - seconds, -1, -1
    with bar:
        task = bar.add_task(what, total=total, text="")

        def show(done: int, note: str = "", **figures: float) -> None:
            nonlocal last, first, latest
            now = time.monotonic()
            first = done if first < 0 else first
            rate = (done - first) / max(now - started, 1e-9)
            eta = (total - done) / rate if rate else None
            text = ", ".join(filter(None, (
                f"{rate:.2g} {unit}/s" if rate < 10 else f"{rate:.0f} {unit}/s",
                "" if eta is None else f"eta {datetime.timedelta(seconds=round(eta))}",
                f"GPU {figures['gpu_percent']:.0f} %" if "gpu_percent" in figures else "", note)))
            bar.update(task, completed=done, text=text)
            if done > first and (now - last >= seconds or done == total > latest):
                last, latest = now, done
                if not console.is_terminal:
                    print(f"{what}: {done}/{total} {unit} ({done / max(total, 1):.0%}), {text}", file=sys.stderr,
                          flush=True)
                log({f"{unit}_per_second": rate, **({} if eta is None else {"eta_seconds": eta}), **figures}, done)

        yield show


def gpu_percent() -> float | None:
    """Utilisation of this process's GPU in percent; None where there is none or NVML cannot be read."""
    import torch  # heavy: only workers that have it loaded anyway call this

    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.utilization())
    except (RuntimeError, ModuleNotFoundError):
        return None
