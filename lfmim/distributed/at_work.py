"""What Ray's workers are at, for a driver that waits, and what a dead worker leaves behind.

Workers write into the key-value store of Ray's head node, which outlives them: a worker that hangs
in C code, or was killed, has still said what it began.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.experimental.internal_kv import (
    _internal_kv_del,
    _internal_kv_get,
    _internal_kv_list,
    _internal_kv_put,
)

from lfmim import progress
from lfmim.progress import Work
from lfmim.schema import InputError, WorkerError

NAMESPACE = "lfmim"
SECONDS_BETWEEN_STEPS = 1.0
"""Steps are told at most this often."""


def _keys(kind: str, name: str = "") -> str:
    # By job: the store is the cluster's, and other jobs of this project write there as well.
    return f"{ray.get_runtime_context().get_job_id()}:{kind}:{name}"


def begin(name: str, stage: str) -> None:
    """This process is the worker `name` (unique within the job, kept by a restarted one) of
    `stage`. From here on it tells what it is at; if its predecessor died at something, the driver
    hears of that."""
    # A process that is used again ends what it was at before.
    progress.at("")

    # With the level in front: WorkerErrors goes by it, and Python's default has none.
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    key, where = _keys("at", name), f"pid {os.getpid()} on {node}"

    # Whoever ends in order leaves nothing here. The time makes each death an entry of its own.
    left = _internal_kv_get(key, namespace=NAMESPACE)
    if left:
        _internal_kv_put(_keys("lost", f"{name}:{time.time_ns()}"), left, namespace=NAMESPACE)

    last = 0.0

    def tell(what: str, step: bool, now_at: str) -> None:
        nonlocal last
        now = time.time()
        # A step may take milliseconds, and all workers of a cluster write to one head.
        if step and now - last < SECONDS_BETWEEN_STEPS:
            return
        last = now
        work = Work(now_at or stage, what, now, where)
        _internal_kv_put(key, json.dumps(work) if what else b"", namespace=NAMESPACE)

    progress.tell_by(tell)
    progress.at("starting")


def at_work() -> list[Work]:
    """What the job's workers are at, the one that has been at it longest first."""
    return sorted(_read("at"), key=lambda work: work.since)


def lost() -> list[Work]:
    """What workers that died and were started again had been at; each is told once."""
    found = _read("lost")
    for key in _internal_kv_list(_keys("lost"), namespace=NAMESPACE):
        _internal_kv_del(key, namespace=NAMESPACE)
    return found


def forget() -> None:
    """Before new workers: what earlier ones of this job left is of the past."""
    for kind in ("at", "lost"):
        for key in _internal_kv_list(_keys(kind), namespace=NAMESPACE):
            _internal_kv_del(key, namespace=NAMESPACE)


def say_when_stuck(
    what: str, unit: str, minutes: float
) -> contextlib.AbstractContextManager[Callable[[], None]]:
    """`progress.say_when_stuck` of workers that are now begun."""
    forget()
    return progress.say_when_stuck(what, unit, minutes, at_work=at_work, lost=lost)


def _read(kind: str) -> list[Work]:
    values = [
        _internal_kv_get(key, namespace=NAMESPACE)
        for key in _internal_kv_list(_keys(kind), namespace=NAMESPACE)
    ]
    return [Work(*json.loads(value)) for value in values if value]


# Ray quotes a worker's exception within its own: the message goes on to an empty line, Ray Train's
# next `[Rank`, the next `ray::` frame or the end.
_INPUT_ERROR = re.compile(
    rf"^(?:{re.escape(InputError.__module__)}\.InputError"
    r"|lfmim\.storage\.failures\.(?:Storage|Write)Error"
    r"|lfmim\.training\.loop\.NonFiniteLossError): "
    r"(.+?)(?=\n\s*\n|\n\[Rank|\n\S*ray::|\Z)",
    re.DOTALL | re.MULTILINE,
)
_COLOUR = re.compile(r"\x1b\[\d+m")
# A frame inside Ray with the source lines quoted below it.
_FRAME = re.compile(
    r'^ *File "(?:[^"]*-packages/ray|python/ray)/[^"]*", line .*\n(?: {4,}.*\n)*', re.MULTILINE
)


def worker_failure(error: BaseException, what: str) -> Exception:
    """What to raise in the driver for what Ray raised: the worker's own InputError, or a
    WorkerError with the worker's traceback, without Ray's own frames."""
    text = _COLOUR.sub("", str(error))
    found = _INPUT_ERROR.search(text)
    if found:
        return InputError(found[1].strip())

    own = re.sub(r"\n\s*\n+", "\n", _FRAME.sub("", text)).strip()
    return WorkerError(f"{what}: a worker failed:\n{own}")


_BLOCK = re.compile(r"Traceback \(most recent call last\):|Fatal Python error: ")
# Lines of a block after its first: empty, indented, marks below a line whose indent a batch's start
# has lost, or faulthandler's titles of threads.
_INSIDE = re.compile(r"$| |[\^~]+$|Current thread|Thread 0x|Stack ")
# How every thread begins, in whosever code.
_THREAD = re.compile(r'^ *File "[^"]*/threading\.py", line .*\n(?: {4,}.*\n)*', re.MULTILINE)
_RECORD = re.compile(r"^[^a-z]{0,40}\b(ERROR|CRITICAL|FATAL)\b")
# As Ray writes it with `--log_format json`, a traceback and all within the one line.
_JSON_RECORD = re.compile(r'^\{.*"levelname": "(ERROR|CRITICAL|FATAL)"')
# A worker that is told to stop dies of these, which is no error.
_STOPPED = ("KeyboardInterrupt", "SystemExit")
# What torch's gloo and NCCL raise in those that are left when a worker of theirs dies.
_ALONE = re.compile(
    r"RuntimeError: .*gloo.*(?:Connection (?:closed|reset) by peer|Broken pipe)"
    r"|\S*DistBackendError: .*remote process exited"
)


def _told(line: str) -> str:
    """What a JSON record says."""
    try:
        record = json.loads(line)
        return f"{record['message']}\n{record.get('exc_text') or ''}".rstrip()
    except (ValueError, KeyError):
        return line


class WorkerErrors:
    """Of the workers' output, what a person must see: records of level ERROR and above, tracebacks,
    fatal signals; of a worker whose peer has died a line.

    Each text is shown once, whichever and however many workers print it.
    """

    def __init__(self) -> None:
        self.open: dict[tuple[str, str], list[str]] = {}
        self.shown: set[str] = set()
        self.lock = threading.Lock()

    def __call__(self, data: Mapping[str, Any]) -> None:
        """Take a batch of lines as Ray hands them to a driver."""
        # Ray's own processes speak through the same channel.
        if data["pid"] in ("autoscaler", "raylet"):
            return
        worker = str(data["ip"]), str(data["pid"])
        # Ray calls from the thread that receives logs, `close` comes from the driver's.
        with self.lock:
            for line in data["lines"]:
                self._line(worker, _COLOUR.sub("", line).rstrip())

    def _line(self, worker: tuple[str, str], line: str) -> None:
        block = self.open.get(worker)
        if _BLOCK.match(line):
            self._end(worker)
            self.open[worker] = [line]
        elif block is not None and _INSIDE.match(line):
            block += [line] if line else []
        elif block is not None:
            # The line after a traceback's frames is the exception; after a fatal signal's it is
            # somebody else's.
            if block[0].startswith("Traceback"):
                block.append(line)
            self._end(worker)

        if worker not in self.open and _RECORD.match(line):
            self._show(worker, line)
        elif worker not in self.open and _JSON_RECORD.match(line):
            self._show(worker, _told(line))

    def _end(self, worker: tuple[str, str]) -> None:
        block = self.open.pop(worker, None)
        if not block or block[-1].startswith(_STOPPED):
            return

        if _ALONE.match(block[-1]):
            self._show(worker, "lost its connection to another worker, and ends")
            return

        text = _FRAME.sub("", "\n".join(block) + "\n").rstrip()
        # Ray's own threads and actors tell each other of a death, or of a second Ray on the
        # machine, in tracebacks; what concerns the job comes to the driver as an exception.
        rays_own = block[0].startswith("Traceback") and 'File "' not in _THREAD.sub("", text + "\n")
        if not rays_own:
            self._show(worker, text)

    def _show(self, worker: tuple[str, str], text: str) -> None:
        if text not in self.shown:
            self.shown.add(text)
            print(f"worker {worker[1]} on {worker[0]}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show what a worker had begun to print when it died."""
        with self.lock:
            for worker in list(self.open):
                self._end(worker)


def show_worker_errors() -> WorkerErrors:
    """After `ray.init(log_to_driver=True)`: `WorkerErrors` instead of every line that a worker
    prints."""
    errors = WorkerErrors()
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")
    global_worker_stdstream_dispatcher.add_handler("lfmim", errors)
    return errors
