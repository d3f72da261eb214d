"""What every job shares: exit codes and messages for people, signals, the Ray session, quiet logs."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Set before ray is imported anywhere. A local Ray has no server to protect by token; on a cluster set it yourself.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how late the end of a run is noticed
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception, the rest is noise

REPOSITORY = Path(__file__).resolve().parents[1]
if str(REPOSITORY) not in sys.path:  # a job submitted with --working-dir . needs no installation of this project
    sys.path.insert(0, str(REPOSITORY))

from lfmim.config import TrackingConfig  # noqa: E402
from lfmim.schema import InputError  # noqa: E402

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
"""Whether `ray job submit` started this process."""
HOME = os.environ.get("LFMIM_HOME", "")
"""Where a submitted job's relative paths start."""
_terminated = False


def run(main: Callable[[], int | None], *, again: str = "run the same command again to continue") -> None:
    """Run `main`: exit code 2 and one message for bad input, 130 for Ctrl-C, 143 for SIGTERM, else its own.

    `again` tells the user of a stopped job how to go on.
    """
    logging.getLogger("jsonargparse").setLevel(logging.ERROR)
    _catch_sigterm()
    try:
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{'stopped' if _terminated else 'interrupted'}; {again}", file=sys.stderr)
        code = 143 if _terminated else 130
    gc.freeze()  # or the interpreter's end walks through all that torch, Ray and MLflow hold: 3 s
    sys.exit(code)


def _catch_sigterm() -> None:
    """SIGTERM (`ray job stop`, a batch system, a pod's end) tidies up as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        global _terminated  # Ray replaces an exception's type while it waits, so it cannot tell
        _terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is the tidying up
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _start_at_home() -> None:
    """A submitted job starts in a temporary copy of the working directory. Go to $LFMIM_HOME, if it is set, so that
    paths mean what they mean to the submitter; files of the copy that were named (configs) are still found."""
    if not (SUBMITTED and HOME):
        return
    for i, given in enumerate(sys.argv[1:], start=1):
        option, equals, value = given.rpartition("=")
        if value and os.path.isfile(value):
            sys.argv[i] = option + equals + os.path.abspath(value)
    try:
        os.chdir(HOME)
    except OSError as error:
        sys.exit(f"error: LFMIM_HOME {HOME}: {error.strerror}; set it to a folder that this node sees")


def check_shared(**folders: str) -> None:
    """Refuse relative folders in a submitted job: they would land in the temporary copy of the working directory."""
    for name, folder in folders.items():
        if SUBMITTED and not HOME and folder and "://" not in folder and not os.path.isabs(folder):
            raise InputError(f"--{name.replace('__', '.')} {folder}: relative, and a submitted job runs in a temporary "
                             "copy of the working directory; give an absolute path on storage that every node sees, or "
                             "set LFMIM_HOME, before `ray start`, to the folder where relative paths start")


_start_at_home()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """File descriptor 2 goes nowhere; exceptions are not affected."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def on_cluster() -> bool:
    """Whether Ray is running already, so that work belongs on its workers."""
    return SUBMITTED or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def _missing(have: Mapping[str, float], *, cpus: float, gpus: float) -> list[str]:
    return [f"{need:g} {name} needed" for name, need in {"CPU": cpus, "GPU": gpus}.items() if need > have.get(name, 0)]


def _refuse(missing: list[str], where: str) -> None:
    raise InputError(f"{' and '.join(missing)}, but this machine has {where}; ask for fewer or smaller workers")


def stay_here(what: str, *, cpus: float, gpus: float) -> None:
    """`ray_session`'s line and check for a job that needs no Ray: it runs in this process."""
    import torch

    have = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    where = ", ".join(f"{n:g} {name}" for name, n in have.items())
    if missing := _missing(have, cpus=cpus, gpus=gpus):
        _refuse(missing, where)
    print(f"{what} | in this process: {where}", file=sys.stderr, flush=True)


@contextmanager
def ray_session(what: str = "", *, cpus: float = 0.0, gpus: float = 0.0) -> Iterator[None]:
    """Join the cluster at $RAY_ADDRESS (set for submitted jobs), or start a local Ray; workers import this checkout.

    Prints one line: `what` (the job, its workers, where results go) and where it runs. `cpus` and `gpus` are what the
    job needs at least: InputError if this machine lacks them; a cluster may still grow.
    """
    import ray

    with_path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    names = ("LFMIM_CACHE", "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI")
    env_vars = {"OMP_NUM_THREADS": "1", **{n: os.environ[n] for n in names if n in os.environ}}
    if not SUBMITTED:
        env_vars["PYTHONPATH"] = with_path
    address = os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"runtime_env": {"env_vars": env_vars}}
    if address == "local":  # its processes inherit: a runtime environment costs seconds, and so does the dashboard
        os.environ.update(env_vars)
        options = {"include_dashboard": False}
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # an actor that watches for lost spot nodes
    with _no_stderr():  # Ray's C++ side announces its log level there
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    _catch_sigterm()  # ray.init has set its own handler
    try:
        have = ray.cluster_resources()
        count = len([n for n in ray.nodes() if n["Alive"]])
        missing = _missing(have, cpus=cpus, gpus=gpus)
        where = f"{count} node{'s' * (count > 1)}, {have.get('CPU', 0):g} CPU, {have.get('GPU', 0):g} GPU"
        if missing and address == "local":
            _refuse(missing, where)
        waiting = f" (waiting for nodes: {', '.join(missing)})" if missing else ""
        print(f"{what}{' | ' * bool(what)}ray: {where}{waiting}", file=sys.stderr, flush=True)
        yield
    finally:
        ray.shutdown()


def arguments(*flags: str) -> list[str]:
    """The command line, with a bare `--flag` as `--flag=true`: jsonargparse wants a value for a boolean."""
    names, given = {f"--{flag}" for flag in flags}, sys.argv[1:]
    return [f"{a}=true" if a in names and (after == "" or after.startswith("-")) else a
            for a, after in zip(given, [*given[1:], ""], strict=True)]


@contextmanager
def job_session(
    what: str, tracking_config: TrackingConfig, storage: str, run: str, params: dict[str, Any], *, gpus: float = 0.0
) -> Iterator[Callable[..., None]]:
    """`ray_session` with an MLflow run of its own; yields the run's `log(figures, step)`."""
    from lfmim import tracking

    uri = tracking.tracking_uri(tracking_config, storage)
    if uri.startswith("sqlite:"):
        check_shared(storage=storage)
    tracking.check_server(uri, create=True)  # before a cluster is started
    with ray_session(f"{what} | mlflow {uri}", gpus=gpus), tracking.job_run(uri, tracking_config, run, params) as log:
        yield log
