import subprocess

import psutil
import pytest
import ray

from lfmim.distributed.session import ray_session
from lfmim.schema import InputError


def test_a_local_ray_that_is_not_up_in_time_is_one_line(monkeypatch):
    tries = []

    # What Ray 2.60 raised on a machine with twelve processes for two cores.
    def late(*_, **__):
        tries.append(subprocess.Popen(["sleep", "60"]))
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(InputError, match=r"did not start on this machine.*again"), ray_session("x"):
        pass
    assert len(tries) == 2
    assert not any(psutil.pid_exists(t.pid) for t in tries), "what began to start is ended"
