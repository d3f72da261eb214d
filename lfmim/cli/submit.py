"""Submit a command as a job to a Ray cluster, stream its log, and end with its own exit code
(`ray job submit` ends with 0 for a stopped job).

    lfmim submit train --store /shared/features --storage /shared/runs
    lfmim submit --address http://127.0.0.1:8265 --env HF_TOKEN extract --config my.yaml
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from lfmim import logs
from lfmim.cli.arguments import described, named_files
from lfmim.cli.main import COMMANDS
from lfmim.distributed.session import TOP
from lfmim.distributed.submission import in_project, is_checkout, submit
from lfmim.schema import InputError

LOADS_PLUGINS = False
"""They are the job's, and travel with it."""


def main(args: list[str]) -> int:
    text, examples = described(__doc__ or "")
    # argparse's own parser, for its REMAINDER: from the command's name on, options are the job's.
    parser = argparse.ArgumentParser(
        prog="lfmim submit",
        usage="\n       ".join(examples),
        description=text,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="the cluster's job server; default: $RAY_API_SERVER_ADDRESS, or %(default)s",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a variable of the job's driver and workers; without a value, the one that it has "
        "here (for secrets: a command line is seen by others). Wins over the cluster's own",
    )
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE",
        help="as the command's own --plugin, which may also stand behind its name",
    )
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="a command of lfmim, or a script; its options"
    )

    given = parser.parse_args(args)
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        raise InputError("say what is to run, such as train, and its options")
    command += [f"--plugin={file}" for file in given.plugin]
    # It was taken from the whole line: the job's lines are to be as ours.
    command += ["--log_format", "json"] if logs.is_json() else []

    address = given.address.rstrip("/")
    address = address if "://" in address else f"http://{address}"
    command = [*_entry(command[0]), *command[1:]]
    return submit(address, command, variables(given.env), named_files(command))


def _entry(given: str) -> list[str]:
    """What `python` runs in the job: a command of ours; a script as the job finds it, of the
    checkout or, as given, by its path on the cluster's own disks."""
    if given in COMMANDS:
        return ["-m", "lfmim", given]

    path = Path(given)
    if is_checkout() and path.is_file() and (inside := in_project(path)):
        return [inside]
    # an absolute one may lie on the cluster's disks alone: only the job can tell
    if path.is_absolute() or (is_checkout() and (TOP / path).is_file()):
        return [given]
    raise InputError(
        f"{given}: "
        + (
            f"outside {TOP}, and only that travels with a job"
            if path.is_file()
            else f"no such command or script; commands: {', '.join(COMMANDS)}"
        )
    )


def variables(given: list[str]) -> dict[str, str]:
    """`--env NAME=VALUE`, or `--env NAME` for the value that it has here. Messages name no
    values."""
    found = {}
    for i, item in enumerate(given, start=1):
        name, equals, value = item.partition("=")
        # by number: what is no name may be a secret whose NAME= was forgotten
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError(
                f"--env, number {i}: give NAME=VALUE, or NAME for a variable that is set here"
            )
        if not equals and name not in os.environ:
            raise InputError(f"--env {name}: not set here; export it, or give --env {name}=VALUE")
        found[name] = value if equals else os.environ[name]
    return found
