"""Training workers that stop, and that die: the driver says so, and the run goes on."""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from lfmim.config import ExperimentConfig, ModelConfig, RunConfig, TrackingConfig, TrainConfig
from lfmim.distributed import at_work
from lfmim.distributed.trainer import train_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_worker_that_stops_then_dies_is_told_and_the_run_ends_as_asked(
    ray_cluster, toy_store, tmp_path, empty_database, capsys
):
    epochs = 12
    config = ExperimentConfig(
        store=str(toy_store),
        model=ModelConfig(d_model=16, num_heads=2, num_layers=1),
        train=TrainConfig(epochs=epochs, batch_size=4),
        run=RunConfig(
            name="stops",
            storage=str(tmp_path / "runs"),
            cpus_per_worker=0.5,
            workers=2,
            stuck_minutes=0.2,
        ),
        tracking=TrackingConfig(uri=f"sqlite:///{empty_database}"),
    )
    said = ""

    def until(pattern: str, seconds: float = 300) -> re.Match[str]:
        nonlocal said
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, said)):
            assert time.monotonic() < deadline, said
            said += capsys.readouterr().err
            time.sleep(0.1)
        return found

    seen = []

    def intervene() -> None:
        while not (works := [w for w in at_work.at_work() if w.what.startswith("epoch ")]):
            time.sleep(0.05)
        pid = int(works[0].where.split()[1])
        os.kill(pid, signal.SIGSTOP)
        try:
            seen.append(
                until(
                    rf"train: stuck: no step for \d+ s \(since [\d:]+\)\n(?:  worker .*\n)*"
                    rf"  {works[0].stage}: epoch \d+, .*, since [\d:]+ \(pid {pid} on "
                )
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        seen.append(until(rf"started again.*(?:\n  worker .*)*\n  {works[0].stage}: epoch \d+"))

    thread = threading.Thread(target=intervene, daemon=True)
    thread.start()
    result = train_run(config)
    thread.join(timeout=60)
    assert len(seen) == 2, said
    assert result.meta.epoch == epochs


def test_an_elastic_run_begins_with_the_workers_there_is_room_for(
    ray_cluster, toy_store, tmp_path, empty_database
):
    """Two of four, on two CPUs; a run of four alone would wait."""
    config = ExperimentConfig(
        store=str(toy_store),
        model=ModelConfig(d_model=16, num_heads=2, num_layers=1),
        train=TrainConfig(epochs=3, batch_size=8),
        run=RunConfig(name="elastic", storage=str(tmp_path / "runs"), workers=4, min_workers=1),
        tracking=TrackingConfig(uri=f"sqlite:///{empty_database}"),
    )
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            seen.update(work.stage for work in at_work.at_work())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    result = train_run(config)
    ended.set()
    thread.join()
    assert result.meta.epoch == 3
    assert seen == {"worker 0", "worker 1"}
