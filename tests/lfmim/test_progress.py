from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from lfmim.progress import Work, at_step, say_when_stuck, watch


def test_a_log_gets_few_lines_and_the_tracker_the_figures(capsys):
    logged = []
    with watch(
        "extract",
        400,
        "utterances",
        log=lambda figures, step: logged.append((step, dict(figures))),
        seconds=3600,
    ) as show:
        show(100)  # done by an earlier run: no part of the rate
        for done in range(101, 401):
            show(done, "2 quarantined", gpu_percent=63.0)
    first, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"extract: 101/400 utterances \(25%\), [\d.e+]+ utterances/s, eta [\d:]+, GPU 63 %, "
        "2 quarantined",
        first,
    )
    assert last.startswith("extract: 400/400 utterances (100%)")
    assert [step for step, _ in logged] == [101, 400]
    for _, figures in logged:
        assert set(figures) == {"utterances_per_second", "eta_seconds", "gpu_percent"}
        assert figures["utterances_per_second"] > 0
    assert logged[-1][1]["eta_seconds"] == 0


def test_nothing_is_said_before_something_is_done(capsys):
    with watch("train", 10, "epochs") as show:
        show(0, "starting workers")
        show(0, "starting workers")
    assert capsys.readouterr().err == ""


def test_a_stuck_job_says_who_is_at_what_since_when_and_again(capsys):
    works = [Work("face", "clip17, clip18", time.time() - 60, "pid 4711 on 10.0.0.3")]
    lost = [[Work("text", "clip3", time.time(), "pid 7 on 10.0.0.4")]]
    with say_when_stuck(
        "extract", "row", 0.2 / 60, at_work=lambda: works, lost=lambda: lost.pop() if lost else []
    ):
        time.sleep(1)
    said = capsys.readouterr().err
    assert said.startswith(
        "extract: a worker died and was started again; it was at\n  text: clip3, since "
    )
    assert re.search(
        r"extract: stuck: no row for \d s \(since \d\d:\d\d:\d\d\)\n"
        r"  face: clip17, clip18, since \d\d:\d\d:\d\d \(pid 4711 on 10\.0\.0\.3\)\n  still "
        r"waiting",
        said,
    )
    assert said.count("extract: stuck") >= 2


def test_a_job_that_moves_is_not_stuck(capsys):
    with say_when_stuck("extract", "row", 2 / 60) as moved:
        for _ in range(30):
            time.sleep(0.1)
            moved()
    with say_when_stuck("train", "step", 2 / 60):  # what this process begins is a step
        for step in range(30):
            time.sleep(0.1)
            at_step(f"epoch 1, step {step}")
    assert capsys.readouterr().err == ""


def test_without_workers_the_message_says_what_to_ask(capsys):
    with say_when_stuck("train", "step", 0.2 / 60, at_work=list):
        time.sleep(0.5)
    assert "no worker is at anything: Ray may be waiting for nodes" in capsys.readouterr().err


def test_a_log_file_gets_no_carriage_returns(tmp_path):
    """Not even where the environment asks for colours, as that of a CI does."""
    program = (
        "from lfmim.progress import watch\n"
        "with watch('train', 3, 'epochs', seconds=0) as show:\n"
        "    for done in range(4):\n"
        "        show(done)\n"
    )
    log = tmp_path / "log"
    with log.open("wb") as file:
        env = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}
        subprocess.run([sys.executable, "-c", program], env=env, stderr=file, check=True)
    assert log.read_bytes().count(b"\n") == 3
    assert not {b"\r", b"\x1b"} & {bytes([c]) for c in log.read_bytes()}
