"""One job per folder: the kernel's lock on a disk, a lease in an object store.

The lease is an object `.lease-<number>` that its holder writes anew every few seconds. The highest
number holds; a job whose predecessor has stopped writing takes the next. Each is made by a
conditional write, so of several that ask one gets it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lfmim.schema import ERRORS_FOLDER, InputError
from lfmim.storage.failures import StorageError, WriteError
from lfmim.storage.paths import Listed, ObjectPath, listing
from lfmim.storage.writing import create, make_folder, write_bytes

LOCK_FILE = ".lock"
LEASE = ".lease-"
BEAT_SECONDS = 10.0
"""How often a lease is written anew."""
LEASE_SECONDS = 60.0
"""How long it holds without that."""


@contextmanager
def exclusive(folder: Path, what: str = "feature store") -> Iterator[None]:
    """Be the only writer of the store, or of `what` the folder is.

    Raises InputError if another run is, WriteError if the folder cannot be written. On a disk a
    killed run's claim ends with it; in an object store after LEASE_SECONDS, which are waited for.
    There the block is left with InputError, by way of an interrupt, should another run have taken
    over, or the store not have been reached for as long.
    """
    with (_leased if isinstance(folder, ObjectPath) else _locked)(folder, what):
        yield


def _held(folder: Path, what: str, who: str) -> InputError:
    return InputError(
        f"{folder}: another run is writing into this {what} ({who}); wait for it, or name another"
    )


@contextmanager
def _locked(folder: Path, what: str) -> Iterator[None]:
    make_folder(folder)
    # "a+", not "w": the line in it says who holds the store, and must outlive our opening it.
    try:
        lock = open(folder / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise WriteError(folder, error.strerror or str(error)) from error

    with lock:
        # The kernel's lock and not the file's presence is the claim: it goes with its process.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise _held(folder, what, lock.read().strip()) from error

        lock.truncate(0)
        # Past Python's buffer: a rival can read it at once, and a full disk shows here and not when
        # the file is closed, after the work.
        try:
            os.write(lock.fileno(), f"{_me()}\n".encode())
        except OSError as error:
            raise WriteError(folder, error.strerror or str(error)) from error

        # Left by a run that was killed while writing; whoever holds the lock is the only writer.
        for left in (*folder.glob(".*.tmp"), *(folder / ERRORS_FOLDER).glob(".*.tmp")):
            left.unlink()
        yield


def _me() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _leased(folder: Path, what: str) -> Iterator[None]:
    lease = _take(folder, what)
    stop, lost = threading.Event(), threading.Event()
    keeper = threading.Thread(target=_keep, args=(lease, stop, lost), daemon=True)
    keeper.start()
    try:
        with _interruptible(lost):
            yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise InputError(
                f"{folder}: another run has taken this {what} over, or it could not be reached for "
                f"{LEASE_SECONDS:g} s; this run has stopped. What was written is kept; run the "
                "same command again when no other does"
            ) from None
        raise
    finally:
        stop.set()
        keeper.join()
        # One that stays is waited for, no more.
        with contextlib.suppress(StorageError):
            lease.unlink(missing_ok=True)


@contextmanager
def _interruptible(lost: threading.Event) -> Iterator[None]:
    """Let the keeper's signal through where interrupts are ignored, as in what a script runs in its
    background; others stay ignored."""
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        if lost.is_set():
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _newest(folder: Path) -> Listed | None:
    found = listing(folder, f"{LEASE}*")
    return found[-1] if found else None


def _take(folder: Path, what: str) -> Path:
    """Make the next lease. Raises InputError if another is written anew while this waits for it to
    run out: by the store's own stamps and this process's clock, as no two machines' clocks need
    agree."""
    before = _newest(folder)
    number = int(before.path.name.removeprefix(LEASE)) if before else 0
    if before:
        _outwait(folder, what, before)

    lease = folder / f"{LEASE}{number + 1:06d}"
    # The other was faster, by a moment.
    if not create(lease, _content(0)):
        raise _held(folder, what, _holder(lease))
    if before:
        before.path.unlink(missing_ok=True)
    return lease


def _outwait(folder: Path, what: str, before: Listed) -> None:
    who = _holder(before.path)
    print(
        f"{folder}: {who} has claimed this {what}; waiting {LEASE_SECONDS:g} s for a sign of it",
        file=sys.stderr,
        flush=True,
    )
    end = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 4)
        now = _newest(folder)
        # It has ended, and tidied up.
        if now is None:
            return
        if now != before:
            raise _held(folder, what, _holder(now.path))


def _holder(lease: Path) -> str:
    try:
        return str(json.loads(lease.read_bytes())["holder"])
    except (FileNotFoundError, ValueError, KeyError):
        return "unknown"


def _content(beat: int) -> bytes:
    return json.dumps({"holder": _me(), "beat": beat}).encode()


def _keep(lease: Path, stop: threading.Event, lost: threading.Event) -> None:
    """Write the lease anew until `stop`; if it is another's, or was out of reach for too long, set
    `lost` and interrupt the main thread."""
    beat, reached = 0, time.monotonic()
    try:
        while not stop.wait(BEAT_SECONDS):
            try:
                newest = _newest(lease.parent)
                if newest is None or newest.path != lease:
                    break
                write_bytes(lease, _content(beat := beat + 1))
                reached = time.monotonic()
            except (StorageError, OSError):
                if time.monotonic() - reached > LEASE_SECONDS:
                    break
    # Also if this thread itself fails: nobody writes the lease then.
    finally:
        if not stop.is_set():
            lost.set()
            # A signal, which also wakes a thread that waits.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
