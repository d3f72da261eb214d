"""Decoding in a process of its own: a clip that crashes or hangs the decoder costs that clip.

One child lives beside each decode actor and is replaced when it dies or takes too long. The two
talk over a socket in JSON and raw bytes, no pickles: what a decoder returns after reading a hostile
file is data, never code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import weakref
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from feature_service.operators.decode import ClipError, DecodedClip, DecodeOptions, decode_clip
from lfmim.storage import StorageError

MEMORY_BYTES = 4 << 30
"""Private memory of a decoder."""
START_SECONDS = 180.0
LAST_WORDS = 4000
"""Bytes of the child's own message that are kept at most."""
GRACE_SECONDS = 5
"""After timeout and grace the kernel ends a decoder whose parent is gone."""


class IsolatedDecoder:
    """`decode_clip` in a child process, with a time limit per clip (fetching included)."""

    def __init__(self, options: DecodeOptions, *, timeout_s: float) -> None:
        self.options, self.timeout_s = options, timeout_s
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self.start()

    def start(self) -> None:
        """Have a child ready, so that its start does not count against a clip."""
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
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=self._said,
                # Ctrl-C at a terminal reaches all processes of a job, and would cost this clip.
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

        setup = {"options": dataclasses.asdict(self.options), "timeout_s": self.timeout_s}
        try:
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

    def __call__(
        self, video: str, *, key: str, stretch: tuple[float, float] | None = None
    ) -> DecodedClip:
        """As `decode_clip`; ClipError also if the decoder crashed or took more than `timeout_s`."""
        self.start()
        assert self._child is not None
        process, connection = self._child
        try:
            request = {"video": video, "key": key, "stretch": stretch}
            connection.send_bytes(json.dumps(request).encode())
            # what an earlier clip made it say is no reason for this one's end
            self._said.truncate(0)
            if not connection.poll(self.timeout_s):
                self.close()
                raise ClipError("decode", f"timed out after {self.timeout_s:g} s")
            head = json.loads(connection.recv_bytes())
            if "storage" in head:
                raise StorageError(*head["storage"])
            if "error" in head:
                raise ClipError(head["stage"], head["error"])
            arrays = {
                name: _receive(connection, *about) for name, about in head.pop("arrays").items()
            }
        except (EOFError, OSError) as error:
            how = _ending(process)
            self.close()
            raise ClipError(
                "decode", f"the decoder crashed ({how}){self._last_words(lines=1)}"
            ) from error

        frames = arrays.get("frames")
        which = arrays["frame_indices"], arrays["frame_times"]
        # each frame travels once, however often it was sampled
        if frames is not None:
            order = np.unique(arrays["frame_indices"], return_inverse=True)[1]
            frames = frames if len(order) == len(frames) else frames[order]
        return DecodedClip(frames, *which, arrays.get("waveform"), **head)


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


def _serve(connection: Connection) -> None:
    """The child: decode what is asked for until the parent is gone."""
    # DATA counts private memory; AS would count libraries and address space only reserved.
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    # no core file of that size for every clip that crashes the decoder
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    setup = json.loads(connection.recv_bytes())
    options = DecodeOptions(**setup["options"])
    # Only now: imports and memory limit are done, so that a clip's time is all its own.
    connection.send_bytes(b"ready")

    while True:
        request = json.loads(connection.recv_bytes())
        # The parent ends a decoder that hangs. Should it be killed itself meanwhile, the kernel
        # does: SIGALRM needs no Python, which does not run while FFmpeg does.
        signal.alarm(int(setup["timeout_s"]) + GRACE_SECONDS)
        head, arrays = _answer(request, options)
        signal.alarm(0)
        connection.send_bytes(json.dumps(head).encode())
        for array in arrays:
            connection.send_bytes(array.data.cast("B"))


def _answer(
    request: dict[str, Any], options: DecodeOptions
) -> tuple[dict[str, Any], list[np.ndarray]]:
    try:
        clip = decode_clip(
            request["video"],
            key=request["key"],
            options=options,
            stretch=tuple(request["stretch"]) if request["stretch"] else None,
        )
    except ClipError as error:
        return {"stage": error.stage, "error": str(error)}, []
    except StorageError as error:
        return {"storage": (error.path, error.reason, error.general)}, []
    # a client of some object store may raise anything
    except Exception as error:
        return {"stage": "decode", "error": f"{type(error).__name__}: {error}"[:500]}, []

    head = {f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)}
    frames = head.pop("frames")
    if frames is not None:
        frames = frames[np.unique(clip.frame_indices, return_index=True)[1]]
    found = {
        "frames": frames,
        "frame_indices": head.pop("frame_indices"),
        "frame_times": head.pop("frame_times"),
        "waveform": head.pop("waveform"),
    }
    sent = {name: np.ascontiguousarray(a) for name, a in found.items() if a is not None}
    head["arrays"] = {name: (a.dtype.str, a.shape) for name, a in sent.items()}
    # a memoryview with a zero in its shape cannot be cast to bytes; `_receive` waits for none
    return head, [a for a in sent.values() if a.nbytes]


if __name__ == "__main__":
    with contextlib.suppress(EOFError, ConnectionError, KeyboardInterrupt):
        _serve(Connection(int(sys.argv[1])))
