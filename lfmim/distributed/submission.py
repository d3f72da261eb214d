"""A command as a job on a Ray cluster: what travels with it, its log, its exit code."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from lfmim.distributed.session import TOP, has_token, no_token
from lfmim.schema import InputError

START = (
    "start one with `ray start --head`, open the tunnel to yours (docs/cluster.md), or name the "
    "right one with --address"
)
OWN = ("lfmim", "feature_service")
"""What travels of an installed package; of a checkout everything but what .gitignore names."""


def submit(
    address: str,
    command: list[str],
    env_vars: dict[str, str],
    named: Iterable[tuple[int, str, str]] = (),
) -> int:
    """Run `python *command` as a job and stream its log; `named` are the files that the command
    names as (index, option, file), which travel if they lie elsewhere.

    Returns 0 if it succeeded, the job's own code if it failed, 143 if it was stopped. Raises
    InputError if no job server answers or it does not know this user.
    """
    from ray.job_submission import JobStatus, JobSubmissionClient

    headers = _headers()
    _check_server(address, headers)

    # The package is uploaded by the time that submit_job returns.
    with tempfile.TemporaryDirectory() as folder:
        command, working_dir = _pack(command, named, Path(folder))
        client = JobSubmissionClient(address, headers=headers)
        job = client.submit_job(
            entrypoint=shlex.join(["python", *command]),
            runtime_env={"working_dir": str(working_dir), "env_vars": env_vars},
        )

    print(
        f"submitted {job} to {address}; stop it with: ray job stop --address {address} {job}",
        file=sys.stderr,
    )

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
    except KeyboardInterrupt:
        # `ray job submit` would leave it running.
        client.stop_job(job)
        raise

    info = client.get_job_info(job)
    print(f"{job}: {info.status.value}", file=sys.stderr)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    # For this one `ray job submit` returns 0: it looks at FAILED only.
    if info.status == JobStatus.STOPPED:
        return 143
    # It never ran: the reason is not in its log but here.
    if info.driver_exit_code is None:
        print(info.message, file=sys.stderr)
    return info.driver_exit_code or 1


def _headers() -> dict[str, str]:
    """This user's token, if there is one; a server without authentication takes no notice of it."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    if os.environ.get("RAY_AUTH_MODE") == "disabled" or not has_token():
        return {}
    # With or without RAY_AUTH_MODE=token here: the server knows whether it wants one.
    token = AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    return {"Authorization": f"Bearer {token}"}


def _check_server(address: str, headers: dict[str, str]) -> None:
    """InputError unless a job server that knows this user answers."""
    import requests

    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=30)
    except requests.RequestException as error:
        raise InputError(f"no cluster answers at {address}: {START}") from error

    if answer.status_code in (401, 403):
        raise no_token(f"the cluster at {address}", sent=bool(headers))
    # Web servers of all kinds answer with 200 to any path.
    if not answer.ok or "ray_version" not in answer.text:
        raise InputError(f"what answers at {address} is not Ray's job server: {START}")


def is_checkout() -> bool:
    """Whether this package runs from a checkout, which then travels whole."""
    return (TOP / "pyproject.toml").is_file()


def _pack(
    command: list[str], named: Iterable[tuple[int, str, str]], folder: Path
) -> tuple[list[str], Path]:
    """The command as the job is to run it, and what travels: the project, and files named from
    elsewhere."""
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import create_package

    command = list(command)
    files = [(i, option, Path(value)) for i, option, value in named if Path(value).is_file()]
    if is_checkout() and not files:
        return command, TOP

    package = folder / "project.zip"
    if is_checkout():
        # What Ray leaves out when it packs a folder by itself: .git, .venv and what .gitignore
        # names.
        create_package(
            str(TOP),
            package,
            include_gitignore=True,
            excludes=ray_constants.get_runtime_env_default_excludes(),
        )

    with zipfile.ZipFile(package, "a") as archive:
        if not is_checkout():
            for path in sorted(p for name in OWN for p in (TOP / name).rglob("*") if p.is_file()):
                if "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(TOP))
        for i, option, path in files:
            name = in_project(path)
            # From elsewhere, or what .gitignore keeps at home. By number: two may have one name.
            if name not in archive.namelist():
                name = f"submitted/{i}/{path.name}"
                archive.write(path, name)
            command[i] = f"{option}={name}" if command[i].startswith(f"{option}=") else name
    return command, package


def in_project(path: Path) -> str:
    """The path from the project's top, empty for what lies elsewhere."""
    path = path.resolve()
    return path.relative_to(TOP).as_posix() if path.is_relative_to(TOP) else ""
