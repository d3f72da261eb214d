"""What every job shares: exit codes and messages for people, the Ray session, quiet logs."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

# Set before ray is imported anywhere. A local Ray has no server to protect by token; on a cluster set it yourself.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:  # a job submitted with --working-dir . needs no installation of this project
    sys.path.insert(0, str(REPOSITORY))

from lfmim.schema import InputError  # noqa: E402


def run(main: Callable[[], int | None]) -> None:
    """Run `main`: exit code 2 and one message for bad input, 130 for Ctrl-C, its own code otherwise."""
    logging.getLogger("jsonargparse").setLevel(logging.ERROR)
    try:
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        code = 130
    sys.exit(code)


@contextmanager
def ray_session() -> Iterator[None]:
    """Join the cluster that submitted this job ($RAY_ADDRESS), or start a local Ray; workers import this checkout."""
    import ray

    with_path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    names = ("LFMIM_CACHE", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI")
    env_vars = {"OMP_NUM_THREADS": "1", **{n: os.environ[n] for n in names if n in os.environ}}
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not submitted:
        env_vars["PYTHONPATH"] = with_path
    ray.init(logging_level=logging.ERROR, log_to_driver=False, runtime_env={"env_vars": env_vars})
    try:
        resources = ray.cluster_resources()
        print(f"ray: {len(ray.nodes())} node(s), {resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU",
              file=sys.stderr)
        yield
    finally:
        ray.shutdown()


def arguments(*flags: str) -> list[str]:
    """The command line, with a bare `--flag` as `--flag=true`: jsonargparse wants a value for a boolean."""
    names, given = {f"--{flag}" for flag in flags}, sys.argv[1:]
    return [f"{a}=true" if a in names and (after == "" or after.startswith("-")) else a
            for a, after in zip(given, [*given[1:], ""], strict=True)]
