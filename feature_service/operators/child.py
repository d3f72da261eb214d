"""Foreign media is read in a process of its own: a file that crashes or hangs its reader costs that
file.

A parent keeps a child, which is replaced when it dies or takes too long. The two talk over a socket
in JSON and raw bytes, no pickles: what a reader returns after reading a hostile file is data, never
code.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from feature_service.operators.clip import ClipError
from lfmim.storage import StorageError

MEMORY_BYTES = 4 << 30
"""Private memory of a child."""
START_SECONDS = 180.0
LAST_WORDS = 4000
"""Bytes of the child's own message that are kept at most."""
GRACE_SECONDS = 5
"""After timeout and grace the kernel ends a child whose parent is gone."""

Message = tuple[dict[str, Any], dict[str, np.ndarray]]
"""A part of an answer: what JSON can say, and arrays by name."""
Answer = Callable[[dict[str, Any]], Iterator[Message]]
"""Request -> the parts of its answer."""


class Child:
    """`python -m module`, which calls `serve`, with a time limit for each part of an answer.

    `setup`: what it is told once, before all requests.
    """

    def __init__(self, module: str, setup: Mapping[str, Any], *, timeout_s: float) -> None:
        self._module, self._setup, self.timeout_s = module, setup, timeout_s
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self.start()

    def start(self) -> None:
        """Have a child ready, so that its start does not count against a file."""
        if self._child is not None and self._child[0].poll() is None:
            return
        self.close()

        ours, theirs = socket.socketpair()
        # A file, not a pipe: nobody reads along, and a full pipe would hold the child up. Append
        # mode, so that after `truncate` it writes at the new end.
        # As long as the child.
        self._said = tempfile.TemporaryFile(mode="a+b", buffering=0)  # noqa: SIM115
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", self._module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=self._said,
                # Ctrl-C at a terminal reaches all processes of a job, and would cost this file.
                start_new_session=True,
                # This package must be found there however it was found here; "" stands for the
                # working directory.
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                },
            )
        self._child = process, Connection(ours.detach())
        # not __del__: Python does not promise to call that when it ends
        self._finalizer = weakref.finalize(self, _end, *self._child)

        try:
            setup = {"setup": dict(self._setup), "timeout_s": self.timeout_s}
            self._child[1].send_bytes(json.dumps(setup).encode())
            ready = self._child[1].poll(START_SECONDS) and self._child[1].recv_bytes()
        except (EOFError, OSError):
            ready = False
        if not ready:
            how = _ending(process)
            self.close()
            raise RuntimeError(
                f"the decoder process does not start ({how}){self._last_words(lines=20)}"
            )

    def _last_words(self, lines: int) -> str:
        """The last lines that the child wrote to its stderr, after a colon; "" if there are
        none."""
        self._said.seek(0)
        said = (
            self._said.read()[-LAST_WORDS:].decode(errors="replace").strip().splitlines()[-lines:]
        )
        return ": " + "\n".join(said) if said else ""

    @property
    def pid(self) -> int:
        """Process id of the child."""
        assert self._child is not None
        return self._child[0].pid

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._finalizer()
            self._child = None

    def ask(self, request: Mapping[str, Any]) -> Iterator[Message]:
        """The parts of the answer, as they come. One request at a time; an answer that is not taken
        to its end ends the child.

        Raises ClipError and StorageError as the child did, OSError for a disk that failed it, and
        ClipError if the child crashed or took more than `timeout_s` for a part.
        """
        self.start()
        told = False
        try:
            with self._crash_told():
                self._connection.send_bytes(json.dumps(dict(request)).encode())
                # what an earlier file made it say is no reason for this one's end
                self._said.truncate(0)
            while True:
                head, arrays = self._part()
                told = "end" in head
                if not told:
                    yield head, arrays
                elif head["end"]:
                    raise _error(head["end"])
                else:
                    return
        finally:
            if not told:
                self.close()

    @property
    def _connection(self) -> Connection:
        assert self._child is not None
        return self._child[1]

    def _part(self) -> Message:
        with self._crash_told():
            if not self._connection.poll(self.timeout_s):
                raise ClipError("decode", f"timed out after {self.timeout_s:g} s")
            head = json.loads(self._connection.recv_bytes())
            arrays = {n: _receive(self._connection, *a) for n, a in head.pop("arrays").items()}
        return head, arrays

    @contextlib.contextmanager
    def _crash_told(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError) as error:
            assert self._child is not None
            how, words = _ending(self._child[0]), self._last_words(lines=1)
            raise ClipError("decode", f"the decoder crashed ({how}){words}") from error


def _ending(process: subprocess.Popen[bytes]) -> str:
    """How the child ended: the signal or the exit code."""
    # the socket closes a little before there is an exit code
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    code = process.poll()
    if code is None:
        return f"no answer in {START_SECONDS:g} s"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


def _receive(connection: Connection, dtype: str, shape: list[int]) -> np.ndarray:
    array = np.empty(shape, dtype)
    if array.nbytes:
        connection.recv_bytes_into(array.data.cast("B"))
    return array


def _error(told: Mapping[str, Any]) -> Exception:
    if "storage" in told:
        return StorageError(*told["storage"])
    if "errno" in told:
        return OSError(told["errno"], os.strerror(told["errno"]))
    return ClipError(told["stage"], told["error"])


def serve(prepare: Callable[[dict[str, Any]], Answer]) -> None:
    """In the child: answer what is asked for until the parent is gone. `prepare` takes the setup.

    An OSError of an answer is a disk's; any other error is the file's.
    """
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        _serve(Connection(int(sys.argv[1])), prepare)


def _serve(connection: Connection, prepare: Callable[[dict[str, Any]], Answer]) -> None:
    # DATA counts private memory; AS would count libraries and address space only reserved.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    # no core file of that size for every file that crashes the decoder
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    given = json.loads(connection.recv_bytes())
    answer = prepare(given["setup"])
    # Only now: imports and memory limit are done, so that a file's time is all its own.
    connection.send_bytes(b"ready")

    # The parent ends a decoder that hangs. Should it be killed itself meanwhile, the kernel does:
    # SIGALRM needs no Python, which does not run while FFmpeg does.
    limit = int(given["timeout_s"]) + GRACE_SECONDS
    while True:
        request = json.loads(connection.recv_bytes())
        signal.alarm(limit)
        for head, arrays in _told(answer(request)):
            # A parent that takes its time is no fault of the file.
            signal.alarm(0)
            _send(connection, head, arrays)
            signal.alarm(limit)
        signal.alarm(0)


def _told(parts: Iterator[Message]) -> Iterator[Message]:
    """The parts, and what they end with."""
    end: dict[str, Any] = {}
    try:
        yield from parts
    except ClipError as error:
        end = {"stage": error.stage, "error": str(error)}
    except StorageError as error:
        end = {"storage": (error.path, error.reason, error.general)}
    # a client of some object store may raise anything
    except Exception as error:
        end = {"stage": "decode", "error": f"{type(error).__name__}: {error}"[:500]}
        if isinstance(error, OSError) and error.errno:
            end = {"errno": error.errno}
    yield {"end": end}, {}


def _send(connection: Connection, head: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    sent = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    about = {name: (a.dtype.str, a.shape) for name, a in sent.items()}
    connection.send_bytes(json.dumps({**head, "arrays": about}).encode())
    for array in sent.values():
        # a memoryview with a zero in its shape cannot be cast to bytes; `_receive` waits for none
        if array.nbytes:
            connection.send_bytes(array.data.cast("B"))
