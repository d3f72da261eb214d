"""What every job shares: exit codes and messages for people, signals, the Ray session, quiet
logs."""

from __future__ import annotations

import fnmatch
import gc
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

# Set before ray is imported anywhere.
os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
# also how late the end of a run is noticed
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what matters comes as an exception, the rest is noise
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

REPOSITORY = Path(__file__).resolve().parents[1]
# a job submitted with --working-dir . needs no installation of this project
if str(REPOSITORY) not in sys.path:
    sys.path.insert(0, str(REPOSITORY))

from lfmim.config import TrackingConfig, say_renamed, translate_options  # noqa: E402
from lfmim.registry import PLUGINS, use_plugins  # noqa: E402
from lfmim.schema import InputError, WorkerError  # noqa: E402
from lfmim.storage import disk_failure, output_folder  # noqa: E402
from lfmim.text_files import read_yaml  # noqa: E402

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
"""Whether `ray job submit` started this process."""
CONFIGS = {
    "--config": (".yaml", ".yml", ".json"),
    "--space": (".yaml", ".yml"),
    "--plugin": (".py",),
}
"""Options that name a small file which belongs to the command, not to the data; its suffixes."""
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
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)
"""Variables of this process (patterns) that its workers get, too. By a hook that each worker runs
first: the variables of a runtime environment stand in Ray's logs, and some of these are secrets."""
_terminated = False


def run(
    main: Callable[[], int | None], *, again: str = "run the same command again to continue"
) -> None:
    """Run `main`: exit code 2 and one message for bad input, 130 for Ctrl-C, 143 for SIGTERM, else
    its own.

    `again` tells the user of a stopped job how to go on.
    """
    logging.getLogger("jsonargparse").setLevel(logging.ERROR)
    _catch_sigterm()
    try:
        _start_at_home()
        _take_plugins()
        _check_yaml(sys.argv[1:])
        sys.argv[1:], renamed = translate_options(sys.argv[1:])
        say_renamed(renamed)
        code = main() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except WorkerError as error:
        print(f"error: {error}\n{again}", file=sys.stderr)
        code = 1
    except Exception as error:
        failed = disk_failure(error)  # in a library that writes by itself
        if failed is None:
            raise
        print(f"error: {failed}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{'stopped' if _terminated else 'interrupted'}; {again}", file=sys.stderr)
        code = 143 if _terminated else 130
    gc.freeze()  # or the interpreter's end walks through all that torch, Ray and MLflow hold: 3 s
    sys.exit(code)


def _check_yaml(given: list[str]) -> None:
    """Refuse a YAML file that jsonargparse would end on with a traceback (encoding) or half read (a
    key twice)."""
    for option, value in zip(["", *given], given, strict=False):
        name, _, path = value.rpartition("=")
        if (path.endswith((".yaml", ".yml")) or "--config" in (option, name)) and os.path.isfile(
            path
        ):
            read_yaml(path)


def _take_plugins() -> None:
    """`--plugin FILE`, on every job: a model of the user's own. The other arguments stay."""
    rest, files = sys.argv[:1], []
    given = iter(sys.argv[1:])
    for argument in given:
        option, equals, value = argument.partition("=")
        if option == "--plugin":
            files.append(value if equals else next(given, ""))
        else:
            rest.append(argument)
    sys.argv[:] = rest
    use_plugins(files)


def _catch_sigterm() -> None:
    """SIGTERM (`ray job stop`, a batch system, a pod's end) tidies up as Ctrl-C does."""

    def stop(number: int, frame: Any) -> None:
        global _terminated  # Ray replaces an exception's type while it waits, so it cannot tell
        _terminated = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is the tidying up
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def _start_at_home() -> None:
    """A submitted job starts in a temporary copy of the working directory. Go to $LFMIM_HOME, if it
    is set, so that paths mean what they mean to the submitter; files of the copy that were named
    (configs) are still found.

    Raises:
        InputError: $LFMIM_HOME is no folder here, or a config did not travel.
    """
    if not SUBMITTED:
        return
    for i, given in enumerate(sys.argv[1:], start=1):
        option, equals, value = given.rpartition("=")
        if value and os.path.isfile(value):
            sys.argv[i] = option + equals + os.path.abspath(value)
    if HOME:
        try:
            os.chdir(HOME)
        except OSError as error:
            raise InputError(
                f"LFMIM_HOME {HOME}: {error.strerror}; set it to a folder that this node sees"
            ) from error
    for _, option, value in named_configs(sys.argv):
        if not os.path.isfile(value):
            raise InputError(
                f"{option} {value}: no such file here, and only the files of the repository travel "
                "with a job; submit it with `python jobs/submit.py`, which sends your own config "
                "along, or give an absolute path on storage that every node sees"
            )


def named_configs(command: list[str]) -> Iterator[tuple[int, str, str]]:
    """The files that a command line names as CONFIGS: (index of the argument, option, file)."""
    for i, (given, after) in enumerate(zip(command, [*command[1:], ""], strict=True)):
        option, equals, value = given.partition("=")
        if option in CONFIGS:
            at, value = (i, value) if equals else (i + 1, after)
            if value.endswith(CONFIGS[option]):
                yield at, option, value


def check_shared(**folders: str) -> None:
    """Refuse relative folders in a submitted job: they would land in the temporary copy of the
    working directory."""
    for name, folder in folders.items():
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
    """The environment that workers get from this driver. What the job was submitted with wins: Ray
    hands it to driver and workers itself, and takes a second value, even an equal one, for an
    error."""
    env_vars = {"OMP_NUM_THREADS": "1" if SUBMITTED else os.environ["OMP_NUM_THREADS"]}
    if not SUBMITTED:
        env_vars["PYTHONPATH"] = os.pathsep.join(
            p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p
        )
        return env_vars
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
    from ray._raylet import AuthenticationTokenLoader
    from ray.exceptions import AuthenticationError

    try:
        return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))
    except AuthenticationError as error:
        raise InputError(
            f"RAY_AUTH_TOKEN_PATH {os.environ.get('RAY_AUTH_TOKEN_PATH')}: no token in it"
        ) from error


def _join(address: str) -> None:
    """Refuse, in seconds, a cluster that does not answer or does not know this user: Ray would try
    for minutes.

    With RAY_AUTH_MODE unset this user's token is used if the cluster asks for one, as Ray's own
    tools do.
    """
    import grpc
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray._raylet import Config
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    def answer() -> grpc.StatusCode:
        with init_grpc_channel(where) as channel:
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            try:
                head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=30)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    if "://" in address:
        raise InputError(
            f"RAY_ADDRESS {address}: a job joins a cluster at HEAD:6379; to send it there, "
            "`python jobs/submit.py --address http://HEAD:8265 jobs/...`"
        )
    token = has_token()
    sends = is_token_auth_enabled()
    if sends and not token:
        raise no_token(f"RAY_AUTH_MODE=token: the cluster at {address}", sent=False)
    try:
        where = canonicalize_bootstrap_address(address)
        code = answer()
        if code == grpc.StatusCode.UNAUTHENTICATED and token and "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"], sends = "token", True
            Config.initialize("")  # what Ray has read of the environment already
            code = answer()
    except (ConnectionError, ValueError):  # `auto` where none runs; no address
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
    still grow. InputError, too, if no cluster answers at $RAY_ADDRESS or it refuses this user.
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
    # its processes inherit: a runtime environment costs seconds, and so does the dashboard
    if address == "local":
        os.environ.update(env_vars)
        # Ray protects a local Ray by a token. One of its own: the user's is for clusters, and no
        # file is written.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        options = {"include_dashboard": False}
        # an actor that watches for lost spot nodes
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    elif not SUBMITTED:
        _join(address)
    with _no_stderr():  # Ray's C++ side announces its log level there
        ray.init(address, logging_level=logging.ERROR, log_to_driver=True, **options)
    from lfmim.distributed.at_work import show_worker_errors

    errors = show_worker_errors()  # of what the workers print
    _catch_sigterm()  # ray.init has set its own handler
    try:
        have = ray.cluster_resources()
        count = len([n for n in ray.nodes() if n["Alive"]])
        missing = _missing(have, cpus=cpus, gpus=gpus)
        nodes = f"{count} node{'s' * (count > 1)}"
        where = f"{nodes}, {have.get('CPU', 0):g} CPU, {have.get('GPU', 0):g} GPU"
        if missing and address == "local":
            _refuse(missing, where)
        waiting = f" (waiting for nodes: {', '.join(missing)})" if missing else ""
        print(f"{what}{' | ' * bool(what)}ray: {where}{waiting}", file=sys.stderr, flush=True)
        yield
    finally:
        errors.close()
        ray.shutdown()


def arguments(*flags: str) -> list[str]:
    """The command line, with a bare `--flag` as `--flag=true`: jsonargparse wants a value for a
    boolean."""
    names, given = {f"--{flag}" for flag in flags}, sys.argv[1:]
    return [
        f"{a}=true" if a in names and (after == "" or after.startswith("-")) else a
        for a, after in zip(given, [*given[1:], ""], strict=True)
    ]


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
    """`ray_session` with an MLflow run of its own; yields the run's `log(figures, step)`."""
    from lfmim import tracking

    uri = tracking.tracking_uri(tracking_config, storage)
    if uri.startswith("sqlite:"):
        check_shared(storage=storage)
    if not (tracking_config.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        output_folder(storage, "--storage")
    tracking.check_server(uri, create=True)  # before a cluster is started
    with (
        ray_session(f"{what} | mlflow {uri}", gpus=gpus),
        tracking.job_run(uri, tracking_config, run, params) as log,
    ):
        yield log
