"""Workers that die are followed by others, but not for ever."""

from __future__ import annotations

import math
import os
import signal

import pytest
import ray

from feature_service.pipeline.plan import Shard
from feature_service.pipeline.schedule import LOSSES, _Pool, run_shards
from feature_service.pipeline.writer import Tally
from lfmim.config import ExtractConfig
from lfmim.schema import WorkerError

pytestmark = pytest.mark.ray


class Dying:
    """A worker that each shard kills as many times as it has rows."""

    def __init__(self, name, folder, *, gpu):
        self.folder = folder

    def ready(self):
        pass

    def extract(self, shard):
        before = len(list(self.folder.glob(f"{shard.number}-*")))
        if before < shard.rows:
            (self.folder / f"{shard.number}-{before}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Tally(rows=shard.rows)


def shards(*deaths):
    return [Shard(0, n, "", 0, count, media=False) for n, count in enumerate(deaths)]


def test_a_shard_that_kills_every_worker_ends_the_run_and_one_that_kills_some_does_not(
    ray_cluster, tmp_path
):
    config = ExtractConfig(manifest="m.csv", store="s", decode_workers=1)
    some, all_of_them = tmp_path / "some", tmp_path / "all"
    some.mkdir()
    all_of_them.mkdir()
    found = run_shards(config, shards(0, 1, 0), Dying, (some,))
    assert sorted(tally.rows for tally in found if tally) == [0, 0, 1]
    with pytest.raises(WorkerError, match=rf"{LOSSES} workers died at the {LOSSES} rows of part-"):
        list(run_shards(config, shards(LOSSES, 0), Dying, (all_of_them,)))
    assert len(list(all_of_them.iterdir())) == LOSSES


def test_a_worker_that_died_is_followed_by_one_of_its_name(ray_cluster, tmp_path):
    """Under it the head knows what it was at."""
    pool = _Pool("decode", lambda name: ray.remote(Dying).remote(name, tmp_path, gpu=False), int)
    pool.most, pool.looked = 2, math.inf
    assert [name for _, name in pool.fit(2, more_to_come=False)] == ["decode:0", "decode:1"]
    # the first has nothing more to do and is ended
    pool.back("decode:0")
    assert pool.fit(1, more_to_come=False) == []
    assert list(pool.busy) == ["decode:1"]

    pool.lose("decode:1")
    assert [name for _, name in pool.fit(2, more_to_come=False)] == ["decode:1", "decode:0"]
    pool.end()
