"""A job's own lines as JSON objects (`--log_format json`), for whoever collects them."""

from __future__ import annotations

import datetime
import io
import json
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

_LEVELS = {
    "ERROR": re.compile(r"error: |failed: |worker \S+ on \S+: |Traceback "),
    "WARNING": re.compile(r"note: |[^\n]*Warning: |\w+: (?:stuck|a worker died|\d+ workers were)"),
}
"""How lines of such a level begin; all others are INFO."""


class JsonLines(io.TextIOBase):
    """A text stream that writes what each `print` says into `stream` as one JSON object: `time`
    (UTC), `level`, `job`, `run` (MLflow's run id, "" before there is one), `message`."""

    def __init__(self, stream: TextIO, job: str) -> None:
        self.stream, self.job, self.run, self.begun = stream, job, "", ""

    def write(self, text: str) -> int:
        # `print` writes its text and then the line's end: a message of several lines stays whole.
        self.begun += text
        if self.begun.endswith("\n"):
            message, self.begun = self.begun.strip("\n"), ""
            if message:
                self.emit(message)
        return len(text)

    def emit(self, message: str) -> None:
        """Write one object."""
        level = next((name for name, begin in _LEVELS.items() if begin.match(message)), "INFO")
        record = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "level": level,
            "job": self.job,
            "run": self.run,
            "message": message,
        }
        self.stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


def use_json(job: str) -> None:
    """From here on stderr has JSON objects, of the command `job`; so has what nobody caught."""
    lines = JsonLines(sys.stderr, job)
    sys.stderr = lines

    def uncaught(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        lines.emit("".join(traceback.format_exception(kind, error, trace)).rstrip())

    sys.excepthook = uncaught


def is_json() -> bool:
    """Whether stderr has JSON objects."""
    return isinstance(sys.stderr, JsonLines)


def name_run(run_id: str) -> None:
    """The MLflow run that this process's lines are about from here on."""
    if isinstance(sys.stderr, JsonLines):
        sys.stderr.run = run_id
