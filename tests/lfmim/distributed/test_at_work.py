"""What of the workers' output and failures reaches a person: errors, once, and not the rest."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import ray

from lfmim import progress
from lfmim.distributed import at_work
from lfmim.distributed.at_work import WorkerErrors, worker_failure
from lfmim.schema import InputError, WorkerError

TRACEBACK = """Traceback (most recent call last):
  File "/opt/python/site-packages/ray/data/util.py", line 7, in init
    self._init()
    ^^^^^^^^^^^^
  File "/tmp/ray/session_x/working_dir_files/y/feature_service/x.py", line 9, in __init__
    self.run = build_stage(name)

RuntimeError: CUDA out of memory"""


def batch(text: str, pid: int = 7) -> dict:
    return {"ip": "10.0.0.3", "pid": pid, "lines": text.split("\n")}


@pytest.mark.parametrize(
    "said",
    [
        "RuntimeError: [/pytorch/third_party/gloo/transport/tcp/pair.cc:547] Connection closed "
        "by peer [127.0.0.1]:36241",
        "torch.distributed.DistBackendError: NCCL error in: /pytorch/ProcessGroupNCCL.cpp:3356, "
        "remote process exited or there was a network error, NCCL version 2.27.5",
    ],
)
def test_those_that_a_dead_worker_leaves_say_so_in_a_line(capsys, said):
    errors = WorkerErrors()
    errors(batch(f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n{said}'))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "worker 7 on 10.0.0.3: lost its connection to another worker, and ends"


def test_errors_are_shown_once_and_noise_is_not(capsys):
    errors = WorkerErrors()
    errors(
        batch(
            "loading weights\n2026-11-27 02:59:35,242\tINFO x.py:4 -- no ERROR here\nWARNING root: "
            "slow"
        )
    )
    errors(
        batch(
            "2026-11-27 02:59:35,242\tERROR y.py:4 -- the disk is gone\nERROR lfmim.x: cannot "
            "be\ndone"
        )
    )
    for pid in (7, 8, 9):  # every worker says the same
        errors(batch(TRACEBACK + "\nlater", pid))
    errors({"ip": "", "pid": "autoscaler", "lines": ["ERROR: no"]})
    errors(
        batch('Traceback (most recent call last):\n  File "a.py", line 1, in f\nKeyboardInterrupt')
    )
    assert capsys.readouterr().err.splitlines() == [
        "worker 7 on 10.0.0.3: 2026-11-27 02:59:35,242\tERROR y.py:4 -- the disk is gone",
        "worker 7 on 10.0.0.3: ERROR lfmim.x: cannot be",
        "worker 7 on 10.0.0.3: Traceback (most recent call last):",
        '  File "/tmp/ray/session_x/working_dir_files/y/feature_service/x.py", line 9, in __init__',
        "    self.run = build_stage(name)",
        "RuntimeError: CUDA out of memory",
    ]


def test_a_block_may_come_in_pieces_from_several_workers_or_never_end(capsys):
    errors = WorkerErrors()
    for k, line in enumerate(TRACEBACK.split("\n")):
        errors(batch(line, 1))
        errors(batch(f"step {k}", 2))
    errors(
        batch(
            "Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f (most recent call "
            "first):\n"
            '  File "a.py", line 3 in decode',
            3,
        )
    )
    assert "Segmentation" not in capsys.readouterr().err[-1:]
    errors.close()
    shown = capsys.readouterr().err
    assert "worker 3 on 10.0.0.3: Fatal Python error: Segmentation fault\nCurrent thread" in shown
    assert '  File "a.py", line 3 in decode' in shown
    assert "step" not in shown


def test_what_ray_tells_itself_is_not_shown(capsys):
    errors = WorkerErrors()
    inside = '  File "/opt/python/site-packages/ray/train/x.py", line 5, in loop\n    y()\n    ^^^'
    start = '  File "/opt/python/threading.py", line 982, in run\n    self._target()'
    head = "Traceback (most recent call last):"
    errors(batch(f"Exception in thread Monitor:\n{head}\n{start}\n{inside}\nConnectionError: two"))
    errors(batch(f"{head}\n{inside}\nray.exceptions.ActorDiedError: died", pid=8))
    # in two batches, of which Ray strips the second's indent
    errors(batch(f"{head}\n{start}\n{inside[:-8]}", pid=9))
    errors(batch("^^^^\nConnectionError: two", pid=9))
    errors.close()
    assert capsys.readouterr().err == ""
    own = '  File "/home/me/mine.py", line 3, in forward\n    1 / 0'
    errors = WorkerErrors()
    errors(batch(f"{head}\n{start}\n{inside}\n{own}\nZeroDivisionError: division by zero"))
    errors.close()
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_workers_input_error_is_the_jobs_and_anything_else_keeps_its_traceback():
    text = (
        "The actor died because of an error raised in its creation task, "
        "\x1b[36mray::S.__init__()\x1b[39m\n"
        + TRACEBACK.replace(
            "RuntimeError: CUDA out of memory", "lfmim.schema.errors.InputError: no such"
        )
        + " folder\n"
        + "give another\n\nThe above exception was the direct cause of the following exception:\n"
        "more"
    )
    failure = worker_failure(RuntimeError(text), "extract")
    assert isinstance(failure, InputError)
    assert str(failure) == "no such folder\ngive another"
    ranks = "[Rank 0]\nlfmim.training.loop.NonFiniteLossError: epoch 3\n[Rank 1]\nx"
    both = worker_failure(RuntimeError(ranks), "train")
    assert (type(both), str(both)) == (InputError, "epoch 3")
    other = worker_failure(RuntimeError(TRACEBACK), "extract")
    assert isinstance(other, WorkerError)
    assert str(other).startswith("extract: a worker failed:\nTraceback")
    assert "RuntimeError: CUDA out of memory" in str(other)
    assert "site-packages/ray" not in str(other)
    assert "working_dir_files/y/feature_service" in str(other)


@pytest.mark.ray
def test_what_workers_are_at_and_what_dead_ones_were_at(ray_cluster, tmp_path):
    @ray.remote(max_restarts=1, max_task_retries=1, num_cpus=0.1)
    class Worker:
        def __init__(self) -> None:
            at_work.begin("w", "face")

        def work(self, path: Path) -> int:
            progress.at("clip17")
            if not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return os.getpid()

        def rest(self) -> None:
            progress.at("")

    at_work.forget()
    worker = Worker.remote()
    pid = ray.get(worker.work.remote(tmp_path / "died"))
    (now,) = at_work.at_work()
    assert (now.stage, now.what) == ("face", "clip17")
    assert now.where.startswith(f"pid {pid} on ")
    (dead,) = at_work.lost()
    assert (dead.stage, dead.what) == ("face", "clip17")
    assert not dead.where.startswith(f"pid {pid} on ")
    assert at_work.lost() == []
    ray.get(worker.rest.remote())
    assert at_work.at_work() == []
