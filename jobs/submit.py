"""Submit a job, stream its log, and end with its own exit code (`ray job submit` ends with 0 for a stopped job).

python jobs/submit.py [--address http://127.0.0.1:8265] [--env NAME[=VALUE] ...] \
    jobs/train.py --store /shared/features --run.storage /shared/r
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shlex
import sys
import tempfile
import zipfile
from pathlib import Path

import cli

from lfmim.schema import InputError

START = ("start one with `ray start --head`, open the tunnel to yours (docs/cluster.md), or name the "
         "right one with --address")


def submit(address: str, command: list[str], env_vars: dict[str, str]) -> int:
    """0: succeeded; the job's own code: failed; 143: stopped."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    headers = _headers()
    _check_server(address, headers)
    with tempfile.TemporaryDirectory() as folder:
        command, working_dir = _pack(command, Path(folder))
        client = JobSubmissionClient(address, headers=headers)
        job = client.submit_job(entrypoint=shlex.join(["python", *command]),
                                runtime_env={"working_dir": str(working_dir), "env_vars": env_vars})
    print(f"submitted {job} to {address}; stop it with: ray job stop --address {address} {job}", file=sys.stderr)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        client.stop_job(job)
        raise
    info = client.get_job_info(job)
    print(f"{job}: {info.status.value}", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return 143
    if info.driver_exit_code is None:  # it never ran
        print(info.message, file=sys.stderr)
    return info.driver_exit_code or 1


def _headers() -> dict[str, str]:
    """This user's token, if there is one; a server without authentication takes no notice of it."""
    from ray._raylet import AuthenticationTokenLoader

    if os.environ.get("RAY_AUTH_MODE") == "disabled" or not cli.has_token():
        return {}
    return {"Authorization": f"Bearer {AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)}"}


def _check_server(address: str, headers: dict[str, str]) -> None:
    """InputError unless a job server that knows this user answers."""
    import requests

    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=30)
    except requests.RequestException as error:
        raise InputError(f"no cluster answers at {address}: {START}") from error
    if answer.status_code in (401, 403):
        raise cli.no_token(f"the cluster at {address}", sent=bool(headers))
    if not answer.ok or "ray_version" not in answer.text:
        raise InputError(f"what answers at {address} is not Ray's job server: {START}")


def _pack(command: list[str], folder: Path) -> tuple[list[str], Path]:
    """The command as the job is to run it, and what travels: the repository, and configs named from elsewhere."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    command = [_script(command[0]), *command[1:]]
    configs = [(i, option, Path(value)) for i, option, value in cli.named_configs(command) if Path(value).is_file()]
    if not configs:
        return command, cli.REPOSITORY
    package = folder / "repository.zip"
    create_package(str(cli.REPOSITORY), package, include_gitignore=True,
                   excludes=ray_constants.get_runtime_env_default_excludes())
    with zipfile.ZipFile(package, "a") as archive:
        for i, option, path in configs:
            name = _in_repository(path)
            if name not in archive.namelist():  # from elsewhere, or what .gitignore keeps at home
                name = f"submitted/{i}/{path.name}"
                archive.write(path, name)
            command[i] = f"{option}={name}" if command[i].startswith(f"{option}=") else name
    return command, package


def _in_repository(path: Path) -> str:
    """The path from the repository's top, empty for what lies elsewhere."""
    path = path.resolve()
    return path.relative_to(cli.REPOSITORY).as_posix() if path.is_relative_to(cli.REPOSITORY) else ""


def _script(given: str) -> str:
    """The script as the job finds it: of the repository, or as given if it is a path on the cluster's own disks."""
    path = Path(given)
    if path.is_file() and (inside := _in_repository(path)):
        return inside
    if path.is_absolute() or (cli.REPOSITORY / path).is_file():
        return given
    raise InputError(f"{given}: " + (f"outside {cli.REPOSITORY}, and only that travels with a job" if path.is_file()
                                     else "no such script; name one of the repository, such as jobs/train.py"))


def variables(given: list[str]) -> dict[str, str]:
    """`--env NAME=VALUE`, or `--env NAME` for the value that it has here. Messages name no values."""
    found = {}
    for i, item in enumerate(given, start=1):
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(f"--env, number {i}: give NAME=VALUE, or NAME for a variable that is set here")
        if not equals and name not in os.environ:
            raise InputError(f"--env {name}: not set here; export it, or give --env {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
                        help="the cluster's job server; default: $RAY_API_SERVER_ADDRESS, or %(default)s")
    parser.add_argument("--env", action="append", default=[], metavar="NAME[=VALUE]",
                        help="a variable of the job's driver and workers; without a value, the one that it has here "
                             "(for secrets: a command line is seen by others). Wins over the cluster's own")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="script and its options")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        raise InputError("name a script, such as jobs/train.py, and its options")
    address = given.address.rstrip("/")
    return submit(address if "://" in address else f"http://{address}", command, variables(given.env))


if __name__ == "__main__":
    cli.run(main)
