"""Where a job runs: this process, a Ray of its own, or a cluster it joins; and what it prints of
it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

# Set before ray is imported anywhere.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# How late the end of a run is noticed, too: with Ray's 2 s a run took three seconds longer.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray tells its makers of its use unless it is told not to.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# What matters comes as an exception, the rest is noise.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

from lfmim import logs
from lfmim.config import TrackingConfig
from lfmim.registry import PLUGINS
from lfmim.schema import InputError
from lfmim.storage import output_folder

TOP = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: a checkout, or an environment's site-packages."""
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
"""Whether `ray job submit` started this process."""
HOME = os.environ.get("LFMIM_HOME", "")
"""Where a submitted job's relative paths start."""
TRAVELS = (
    "LFMIM_CACHE",
    PLUGINS,
    "HF_HUB_OFFLINE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "MLFLOW_TRACKING_*",
    "AWS_*",
    "GOOGLE_*",
    "AZURE_STORAGE_*",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""Variables of this process (patterns) that its workers get, too. By a hook that each worker runs
first: the variables of a runtime environment stand in Ray's logs, and some of these are secrets."""
terminated = False


def catch_sigterm() -> None:
    """SIGTERM (`ray job stop`, a batch system, a pod's end) tidies up as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        # A flag, for no exception could say which signal it was: Ray replaces its type while it
        # waits.
        global terminated
        terminated = True
        # Once: what follows is the tidying up, and a batch system may signal again.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def check_shared(**folders: str) -> None:
    """Refuse relative folders in a submitted job: they would land in the temporary copy of the
    working directory."""
    for name, folder in folders.items():
        # LFMIM_HOME is where relative paths of a submitted job start, so with it they are fine.
        if SUBMITTED and not HOME and folder and "://" not in folder and not os.path.isabs(folder):
            raise InputError(
                f"--{name.replace('__', '.')} {folder}: relative, and a submitted job runs in a "
                "temporary copy of the working directory; give an absolute path on storage that "
                "every node sees, or set LFMIM_HOME, before `ray start`, to the folder where "
                "relative paths start"
            )


@contextmanager
def _no_stderr() -> Iterator[None]:
    """File descriptor 2 goes nowhere; exceptions are not affected."""
    sys.stderr.flush()
    # The descriptor, not sys.stderr: Ray's C++ side writes to it directly.
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
    return [
        f"{need:g} {name} needed"
        for name, need in {"CPU": cpus, "GPU": gpus}.items()
        if need > have.get(name, 0)
    ]


def _refuse(missing: list[str], where: str) -> None:
    raise InputError(
        f"{' and '.join(missing)}, but this machine has {where}; ask for fewer or smaller workers"
    )


def stay_here(what: str, *, cpus: float, gpus: float) -> None:
    """`ray_session`'s line and check for a job that needs no Ray: it runs in this process."""
    import torch

    have = {"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()}
    where = ", ".join(f"{n:g} {name}" for name, n in have.items())
    if missing := _missing(have, cpus=cpus, gpus=gpus):
        _refuse(missing, where)
    print(f"{what} | in this process: {where}", file=sys.stderr, flush=True)


def _env_vars() -> dict[str, str]:
    """The environment that workers get from this driver; what the job was submitted with wins."""
    env_vars = {"OMP_NUM_THREADS": "1" if SUBMITTED else os.environ["OMP_NUM_THREADS"]}
    if not SUBMITTED:
        env_vars["PYTHONPATH"] = os.pathsep.join(
            p for p in (str(TOP), os.environ.get("PYTHONPATH", "")) if p
        )
        return env_vars

    # Ray hands what the job was submitted with to driver and workers itself, and takes a second
    # value, even an equal one, for an error.
    job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"]).get("runtime_env") or {}
    return {
        name: value for name, value in env_vars.items() if name not in (job.get("env_vars") or {})
    }


def no_token(where: str, *, sent: bool) -> InputError:
    """What to say when a cluster refuses who asks."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return InputError(
            f"{where} asks for a token, and RAY_AUTH_MODE=disabled keeps yours back: unset it"
        )
    return InputError(
        f"{where} {'refuses your token' if sent else 'asks for a token, and you have none'}: print "
        "the cluster's with `ray get-auth-token` on its head (Kubernetes: docs/cluster.md) and "
        "put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    )


def has_token() -> bool:
    """Whether Ray finds a token of this user: $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError

    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH {os.environ.get('RAY_AUTH_TOKEN_PATH')}: no token in it"
        ) from error


def _join(address: str) -> None:
    """Refuse, in seconds, a cluster that does not answer or does not know this user.

    With RAY_AUTH_MODE unset this user's token is used if the cluster asks for one, as Ray's own
    tools do.
    """
    import grpc  # type: ignore[import-untyped]
    from ray._private import ray_constants
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import Config  # type: ignore[attr-defined]
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    # Generated, without types.
    services: Any = gcs_service_pb2_grpc
    messages: Any = gcs_service_pb2

    def answer() -> grpc.StatusCode:
        # Past the proxies of the environment, as Ray itself goes: with HTTP_PROXY set another way
        # says that nobody answers.
        with init_grpc_channel(where, ray_constants.GLOBAL_GRPC_OPTIONS) as channel:
            head = services.NodeInfoGcsServiceStub(channel)
            try:
                head.CheckAlive(messages.CheckAliveRequest(), timeout=30)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS {address}: a job joins a cluster at HEAD:6379; to send it there, "
            "`lfmim submit --address http://HEAD:8265 COMMAND ...`"
        )

    # First asked by hand: to be refused took Ray 21 s, and where nobody answers over 100 s.
    token = has_token()
    sends = is_token_auth_enabled()
    if sends and not token:
        raise no_token(f"RAY_AUTH_MODE=token: the cluster at {address}", sent=False)
    try:
        where = canonicalize_bootstrap_address(address) or address
        code = answer()
        if code == grpc.StatusCode.UNAUTHENTICATED and token and "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"], sends = "token", True
            # Ray has read the environment when it was imported; this makes it read it again.
            Config.initialize("")
            code = answer()
    # `auto` where none runs, or what is no address at all.
    except (ConnectionError, ValueError):
        code = grpc.StatusCode.UNAVAILABLE

    if code == grpc.StatusCode.UNAUTHENTICATED:
        raise no_token(f"the cluster at {address}", sent=sends)
    if code != grpc.StatusCode.OK:
        raise InputError(
            f"no Ray answers at RAY_ADDRESS {address}; start one there with `ray start --head`, or "
            "unset RAY_ADDRESS to run on this machine alone"
        )


@contextmanager
def ray_session(what: str = "", *, cpus: float = 0.0, gpus: float = 0.0) -> Iterator[None]:
    """Join the cluster at $RAY_ADDRESS (set for submitted jobs), or start a local Ray; workers
    import this checkout.

    Prints one line: `what` (the job, its workers, where results go) and where it runs. `cpus` and
    `gpus` are what the job needs at least: InputError if this machine lacks them; a cluster may
    still grow. InputError, too, if no cluster answers at $RAY_ADDRESS or it refuses this user, and
    if a local Ray is not up in time.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS") or "local"
    travelling = {
        n: v for n, v in os.environ.items() if any(fnmatch.fnmatchcase(n, p) for p in TRAVELS)
    }

    def arrive() -> None:
        os.environ.update(travelling)

    env_vars = _env_vars()
    options: dict[str, Any] = {
        "runtime_env": {"env_vars": env_vars, "worker_process_setup_hook": arrive}
    }
    # A local Ray's processes inherit this process's environment: a runtime environment and the
    # dashboard would cost ten seconds.
    if address == "local":
        os.environ.update(env_vars)
        # Ray listens on all interfaces and protects a local Ray by a token. One of its own: the
        # user's is for clusters, and no file is written.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"include_dashboard": False}
        # One process less, of several CPU seconds: an actor that watches for lost spot nodes.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Ray's 15 leaves its workers a quarter of a machine that others use as well.
        os.environ.setdefault("RAY_worker_niceness", "0")
    elif not SUBMITTED:
        _join(address)

    if logs.is_json():
        options["logging_config"] = ray.LoggingConfig(encoding="JSON")
    _start(address, options)
    # Not at the top: a job that stays in its own process imports this file and is spared Ray.
    from lfmim.distributed.at_work import show_worker_errors

    errors = show_worker_errors()
    # ray.init has set a handler of its own.
    catch_sigterm()

    try:
        _say_where(what, local=address == "local", cpus=cpus, gpus=gpus)
        yield
    finally:
        errors.close()
        ray.shutdown()


def _start(address: str, options: dict[str, Any]) -> None:
    """ray.init; once more for a local Ray that is not up in time. Raises InputError for the second
    that is not."""
    import ray

    this = psutil.Process()
    for again in (True, False):
        before = {p.pid for p in this.children(recursive=True)}
        # Ray's C++ side announces its log level there.
        try:
            with _no_stderr():
                ray.init(address, logging_level=logging.ERROR, log_to_driver=True, **options)
            return
        # Ray waits 30 s for its own processes, without a setting, and raises this class itself.
        except Exception as error:
            if type(error) is not Exception:
                raise
            # It would leave them to start beside the next ones.
            late = [p for p in this.children(recursive=True) if p.pid not in before]
            for process in late:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(late, timeout=10)
            if not again:
                raise InputError(
                    f"Ray did not start on this machine: {error} Nothing was lost; run the same "
                    "command again when the machine has less to do"
                ) from error
        print("Ray is not up after 30 s; starting it once more", file=sys.stderr, flush=True)


def _say_where(what: str, *, local: bool, cpus: float, gpus: float) -> None:
    """`ray_session`'s line, once Ray is there. Raises InputError if this machine lacks what the job
    needs."""
    import ray

    ray_untyped: Any = ray
    have = ray_untyped.cluster_resources()
    count = len([n for n in ray_untyped.nodes() if n["Alive"]])
    missing = _missing(have, cpus=cpus, gpus=gpus)
    nodes = f"{count} node{'s' * (count > 1)}"
    where = f"{nodes}, {have.get('CPU', 0):g} CPU, {have.get('GPU', 0):g} GPU"
    # A cluster may still grow, and Ray waits for that.
    if missing and local:
        _refuse(missing, where)
    waiting = f" (waiting for nodes: {', '.join(missing)})" if missing else ""

    print(f"{what}{' | ' * bool(what)}ray: {where}{waiting}", file=sys.stderr, flush=True)


@contextmanager
def job_session(
    what: str,
    tracking_config: TrackingConfig,
    storage: str,
    run: str,
    params: dict[str, Any],
    *,
    gpus: float = 0.0,
) -> Iterator[Callable[..., None]]:
    """`ray_session` with an MLflow run of its own; yields `log(figures, step)`, for the run and for
    Prometheus (ops.py)."""
    from lfmim import tracking

    uri = tracking.tracking_uri(tracking_config, storage)
    if uri.startswith("sqlite:"):
        check_shared(storage=storage)
    if not (tracking_config.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        output_folder(storage, "--storage")
    # Before Ray is started: that would be six seconds for nothing.
    tracking.check_server(uri, create=True)

    with (
        ray_session(f"{what} | mlflow {uri}", gpus=gpus),
        tracking.job_run(uri, tracking_config, run, params) as log,
    ):
        # Not at the top: as in ray_session.
        from lfmim.distributed import ops

        measure = ops.log_progress(run.partition("-")[0], run)

        def both(figures: Mapping[str, float], step: int) -> None:
            log(figures, step)
            measure(figures, step)

        yield both
