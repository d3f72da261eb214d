"""`lfmim COMMAND`: finds the command, prepares its arguments, turns what happens into exit codes
and messages for people."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lfmim import logs
from lfmim.cli.arguments import (
    check_yaml,
    named_files,
    preset,
    take_log_format,
    take_plugins,
)
from lfmim.distributed import session
from lfmim.former_names import say_renamed, translate_options
from lfmim.schema import InputError, WorkerError
from lfmim.storage import disk_failure

COMMANDS = {
    "demo": ("demo", "the whole way on a made-up corpus: 6 minutes, no network"),
    "import": ("import_data", "a published data set, features or checkpoint -> clips.csv, a store"),
    "labels": ("labels", "agreement and inconsistency of the labels; splits"),
    "starter": ("starter", "a first model, from your own copies of RAVDESS and MELD"),
    "simulate": ("simulate", "a store of known truth, to try the rest on"),
    "encoders": ("encoders", "what turns media into features; fetch trained ones"),
    "extract": ("extract", "clips.csv -> feature store"),
    "compact": ("compact", "many small parts of a store -> few large ones"),
    "inspect": ("inspect_store", "what a feature store holds, as a page"),
    "train": ("train", "feature store -> trained and registered model"),
    "tune": ("tune", "search for better settings, retrain the winner"),
    "benchmark": ("benchmark", "every system on one store, over seeds, with p-values"),
    "evaluate": ("evaluate", "registered model -> figures on a held-out split"),
    "promote": ("promote", "challenger against champion; or roll back"),
    "predict": ("predict", "new clips, or a store -> emotions per head"),
    "serve": ("serve", "a service and a page for recordings, on this machine or a cluster"),
    "delete": ("delete", "all that was made of a recording -> gone"),
    "submit": ("submit", "one of these as a job on a Ray cluster"),
}
"""A command's module in this package, and its line of the help."""
HELP = """usage: lfmim COMMAND [options]
Multimodal emotion recognition: labelled video clips in, a registered model out.

{commands}

`lfmim COMMAND --help` begins with an example. Options are named as settings in a config file are.
The same command again goes on where it stopped. Exit codes: 0 done, 2 bad input, 1 failed.
"""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The command line of `lfmim`; `args` are those of this process by default."""
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] in ([], ["-h"], ["--help"], ["help"]):
        lines = (f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)), end="")
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        from importlib.metadata import version

        print(f"lfmim {version('lfmim-on-ray')}")
        sys.exit(0)

    name, *rest = given
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    # this one only: what the others import would make each command seconds slower
    module = importlib.import_module(f"lfmim.cli.{COMMANDS[name][0]}")
    again = getattr(module, "AGAIN", CONTINUE)
    loads = getattr(module, "LOADS_PLUGINS", True)
    run(module.main, rest, again=again, job=name, loads_plugins=loads)


CONTINUE = "run the same command again to continue"


def run(
    command: Callable[[list[str]], int | None],
    args: Sequence[str],
    *,
    again: str = CONTINUE,
    job: str = "",
    loads_plugins: bool = True,
) -> NoReturn:
    """Run `command` with its arguments: exit code 2 and one message for bad input, 130 for Ctrl-C,
    143 for SIGTERM, else its own.

    `again` tells the user of a stopped job how to go on; `job` is its name in JSON lines. With
    `loads_plugins` those that are named are loaded, and not left to the command.
    """
    session.catch_sigterm()

    try:
        rest, log_format = take_log_format(args)
        if log_format == "json":
            logs.use_json(job)
        rest = start_at_home(rest)
        rest = take_plugins(rest) if loads_plugins else rest
        check_yaml(rest)
        rest, renamed = translate_options(rest)
        say_renamed(renamed)
        code = command(rest) or 0
        # Now, where it can still be handled, and not by the interpreter as it ends.
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `| head` has.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except WorkerError as error:
        print(f"error: {error}\n{again}", file=sys.stderr)
        code = 1
    # A disk that fills in a library that writes by itself (torch, MLflow, SQLite) is an error of
    # that library's, with the system's own among its causes.
    except Exception as error:
        failed = disk_failure(error)
        if failed is None:
            raise
        print(f"error: {failed}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print(f"{'stopped' if session.terminated else 'interrupted'}; {again}", file=sys.stderr)
        code = 143 if session.terminated else 130

    # or the interpreter's end walks through all that torch, Ray and MLflow hold: 3 s
    gc.freeze()
    sys.exit(code)


def start_at_home(args: Sequence[str]) -> list[str]:
    """A submitted job starts in a temporary copy of the working directory. Go to $LFMIM_HOME, if it
    is set, so that paths mean what they mean to the submitter; files of the copy that were named
    (configs) are still found.

    Raises:
        InputError: $LFMIM_HOME is no folder here, or a config did not travel.
    """
    out = list(args)
    if not session.SUBMITTED:
        return out

    # First, while the copy is still the working directory: these paths are meant in it.
    for i, given in enumerate(out):
        option, equals, value = given.rpartition("=")
        if value and os.path.isfile(value):
            out[i] = option + equals + os.path.abspath(value)

    if session.HOME:
        try:
            os.chdir(session.HOME)
        except OSError as error:
            raise InputError(
                f"LFMIM_HOME {session.HOME}: {error.strerror}; set it to a folder that this node "
                "sees"
            ) from error

    for _, option, value in named_files(out):
        if not os.path.isfile(preset(value)):
            raise InputError(
                f"{option} {value}: no such file here, and only the files of the project travel "
                "with a job; submit it with `lfmim submit`, which sends your own config along, or "
                "give an absolute path on storage that every node sees"
            )
    return out
