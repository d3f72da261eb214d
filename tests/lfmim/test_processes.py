"""Pools whose processes end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from operator import add

import pytest

from lfmim.processes import process_pool
from tests.support.toy import ROOT

PARENT = """
import os, time
from lfmim.processes import process_pool

if __name__ == "__main__":
    with process_pool(2) as pool:
        print(*{pool.submit(os.getpid).result() for _ in range(20)}, flush=True)
        list(pool.map(time.sleep, [600] * 4))
"""


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_what_is_asked_is_done_after_what_makes_ready():
    with process_pool(1, os.putenv, "READY", "yes") as pool:
        assert list(pool.map(add, [1, 2], [3, 4])) == [4, 6]
        assert pool.submit(subprocess.getoutput, "echo $READY").result() == "yes"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_a_killed_parent(tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        assert all(is_there(pid) for pid in children)
        parent.send_signal(how)
    deadline = time.monotonic() + 60
    while any(is_there(pid) for pid in children):
        assert time.monotonic() < deadline, "still there"
        time.sleep(0.05)
