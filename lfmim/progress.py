"""Progress that can be watched: a bar on a terminal, a line now and then in a log, figures for a
tracker."""

from __future__ import annotations

import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Log = Callable[[Mapping[str, float], int], None]
"""Takes named figures and the step they belong to."""
SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_LOOKS = 2.0


class Work(NamedTuple):
    """What a worker is at: its stage, rows or step, since when (seconds of `time.time`), and which
    process it is."""

    stage: str
    what: str
    since: float
    where: str


_here: list[Work] = []


def _remember(what: str, step: bool, stage: str) -> None:
    _here[:] = [Work(stage or "this process", what, time.time(), "")] if what else []


_tell: Callable[[str, bool, str], None] = _remember


def tell_by(tell: Callable[[str, bool, str], None]) -> None:
    """In a worker: `tell(what, step, stage)` takes what `at` and `at_step` say."""
    global _tell
    _tell = tell


def at(what: str, stage: str = "") -> None:
    """This process begins `what`; "" when it is done with it. What a stuck job names, with the
    `stage`, where a process has several."""
    _tell(what, False, stage)


def at_step(what: str) -> None:
    """As `at`, for what follows so fast that not each needs telling."""
    _tell(what, True, "")


def here() -> list[Work]:
    """What this process is at, where it does the work itself."""
    return list(_here)


def nobody() -> list[Work]:
    """No worker died."""
    return []


def no_log(figures: Mapping[str, float], step: int) -> None:
    """Nobody listens."""


def log_console() -> Console:
    """stderr, with a bar only where that is a terminal."""
    # stdout is for what the job has to say: results and paths, which scripts read. Left to itself
    # rich takes a file for a terminal where FORCE_COLOR is set, and redraws the bar in it.
    return Console(stderr=True, force_terminal=sys.stderr.isatty())


def share(cpus: float, gpus: float) -> str:
    """What one worker gets, for people: "1 CPU", "1 CPU + 0.5 GPU"."""
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "")


@contextlib.contextmanager
def watch(
    what: str,
    total: int,
    unit: str,
    *,
    log: Log = no_log,
    seconds: float = SECONDS_BETWEEN_LINES,
    moves: Callable[[], None] = lambda: None,
) -> Iterator[Callable[..., None]]:
    """Yields `show(done, note="", **figures)`, to be called as often as one likes.

    A terminal shows a bar; anything else (a submitted job's log, a file) gets a line at the first
    result, then every `seconds` at most. `log` gets throughput, ETA and `figures` as often, with
    step = done. The rate leaves out what was done before the first call. `moves` is called whenever
    `done` has grown.
    """
    console = log_console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not console.is_terminal,
    )

    started = time.monotonic()
    # As if a line had just become due, so that the first result gets one.
    last, first, latest, most = started - seconds, -1, -1, 0
    with bar:
        task = bar.add_task(what, total=total, text="")

        def show(done: int, note: str = "", **figures: float) -> None:
            nonlocal last, first, latest, most
            # A continued job begins at what was done before, and has not done it at this rate.
            now = time.monotonic()
            first = done if first < 0 else first
            # After a lost worker `done` may fall back; doing the same again is no headway yet.
            if done > most:
                most = done
                moves()
            rate = (done - first) / max(now - started, 1e-9)
            eta = (total - done) / rate if rate else None

            parts = (
                f"{rate:.2g} {unit}/s" if rate < 10 else f"{rate:.0f} {unit}/s",
                "" if eta is None else f"eta {datetime.timedelta(seconds=round(eta))}",
                f"GPU {figures['gpu_percent']:.0f} %" if "gpu_percent" in figures else "",
                note,
            )
            text = ", ".join(filter(None, parts))
            bar.update(task, completed=done, text=text)

            # The last result is told whatever the time, but once: callers may go on asking.
            if done > first and (now - last >= seconds or done == total > latest):
                last, latest = now, done
                if not console.is_terminal:
                    _say(f"{what}: {done}/{total} {unit} ({done / max(total, 1):.0%}), {text}")
                left = {} if eta is None else {"eta_seconds": eta}
                log({f"{unit}_per_second": rate, **left, **figures}, done)

        yield show


@contextlib.contextmanager
def say_when_stuck(
    what: str,
    unit: str,
    minutes: float,
    *,
    at_work: Callable[[], Sequence[Work]] = here,
    lost: Callable[[], Sequence[Work]] = nobody,
) -> Iterator[Callable[[], None]]:
    """Yields `moved()`, to be called for every `unit`. If that does not happen for `minutes`,
    stderr says so, with what the workers are at and since when; again after as long.

    Where the unit is "step", a worker that begins something new is one. `lost` tells of workers
    that died; each is said at once.
    """
    end = threading.Event()
    # time.time and not monotonic: it is shown as a time of day, beside those of the workers.
    moved_at = told_at = time.time()

    def moved() -> None:
        nonlocal moved_at, told_at
        moved_at = told_at = time.time()

    def look() -> None:
        nonlocal told_at
        before: Sequence[Work] = []
        # A quarter of a limit of seconds, so that it is told in its time.
        while not end.wait(min(SECONDS_BETWEEN_LOOKS, minutes * 60 / 4)):
            try:
                dead, works = lost(), at_work()
            # Ray's head may be away for a moment: that must not end the telling.
            except Exception:
                continue

            if dead:
                who = (
                    "a worker died and was started again; it was at"
                    if len(dead) == 1
                    else f"{len(dead)} workers were started again after one of them died; they "
                    "were at"
                )
                lines = [f"{what}: {who}", *(f"  {_line(work)}" for work in dead[:WORKERS_SHOWN])]
                _say("\n".join(lines))

            # Compiling or loading data takes minutes before the first step, and is headway.
            if unit == "step" and works != before:
                before = works
                moved()

            if time.time() - told_at >= minutes * 60:
                told_at = time.time()
                _say(_stuck(what, unit, moved_at, works))

    # A thread, since the main one sits in the very call that does not return.
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield moved
    finally:
        end.set()
        # It may be asking a cluster that is gone: the job's end does not wait for that.
        thread.join(timeout=10)


WORKERS_SHOWN = 8


def _stuck(what: str, unit: str, since: float, works: Sequence[Work]) -> str:
    lines = [f"{what}: stuck: no {unit} for {_span(time.time() - since)} (since {_clock(since)})"]
    if works:
        lines += [f"  {_line(work)}" for work in works[:WORKERS_SHOWN]]
        more = len(works) - WORKERS_SHOWN
        lines += [f"  and {more} more workers"] if more > 0 else []
    else:
        lines += [
            "  no worker is at anything: Ray may be waiting for nodes, CPUs or GPUs (`ray status` "
            "says which)"
        ]
    return "\n".join([*lines, "  still waiting; Ctrl-C ends the job, what is finished is kept"])


def _line(work: Work) -> str:
    return f"{work.stage}: {work.what}, since {_clock(work.since)}" + (
        f" ({work.where})" if work.where else ""
    )


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gpu_percent() -> float | None:
    """Utilisation of this process's GPU in percent; None where there is none or NVML cannot be
    read."""
    # Heavy: only workers that have it loaded anyway call this.
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        return float(torch.cuda.utilization())
    except (RuntimeError, ModuleNotFoundError):
        # torch asks NVML through a package of its own (nvidia-ml-py), which need not be there.
        return None
