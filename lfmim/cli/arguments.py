"""One style of command line: options made from a settings class or a signature, the common ones
first; names of older versions; files that a command names."""

from __future__ import annotations

import argparse
import difflib
import inspect
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_origin

from jsonargparse import ArgumentParser, set_parsing_settings

from lfmim import logs
from lfmim.registry import use_plugins
from lfmim.schema import InputError
from lfmim.text_files import read_yaml

PRESETS = Path(__file__).resolve().parents[1] / "configs"
"""Settings that come with the package, by name: `--config demo`."""
FILES = {
    "--config": (".yaml", ".yml", ".json"),
    "--space": (".yaml", ".yml"),
    "--plugin": (".py",),
}
"""Options that name a small file which belongs to the command, not to the data; its suffixes."""
NAMED = ("--config", "--space")
"""Options whose file may be one of the package's, by name."""
WORDS = {
    "model.name": "--system",
    "run.storage": "--storage",
    "tracking.uri": "--mlflow",
    "tracking.model_name": "--registered_model",
}
"""What a setting is called on every command line, beside its name in a config file."""
WAS = {"--uri": "--mlflow"}
"""Options of 0.1 that every command with today's takes, with a note."""

# An option's help is the string below its field in the settings class: it is described once.
set_parsing_settings(docstring_parse_attribute_docstrings=True)
logging.getLogger("jsonargparse").setLevel(logging.ERROR)


class Parser(ArgumentParser):  # type: ignore[misc]
    """jsonargparse's, with one message where it prints a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse says on several lines, and in Python's words, what option was not understood.
        text = re.sub(r'Parser key "([^"]*)":', r"\1:", " ".join(message.split()))
        text = re.sub(r"<class '(\w+)'>", r"\1", text)
        text = re.sub(r"typing\.Literal\[([^]]*)\]", r"one of \1", text)
        needed = re.match(r"the following arguments are required: (.*)", text)
        if needed:
            text = f"{' and '.join(f'--{name}' for name in needed[1].split(', '))}: needed"

        raise InputError(f"{text}{self._nearest(text)}; `{self.prog} --help` lists the options")

    def _nearest(self, text: str) -> str:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", text)
        given = unknown[1] if unknown else ""
        # below 0.7 the guesses are far-fetched, and worse than none
        near = difflib.get_close_matches(given, self._option_string_actions, n=1, cutoff=0.7)
        return f" (did you mean {near[0]}?)" if near else ""


def parse(
    target: Callable[..., Any],
    args: Sequence[str],
    *,
    prog: str,
    about: str,
    common: Sequence[str],
    was: Mapping[str, str] | None = None,
) -> Any:
    """The settings, an instance of the class `target`; of a function, what it returns for them.

    `about` is what the command does, then indented examples, with which the help opens. `common`
    are the settings that are listed first. `was` maps more of 0.1's options than WAS does. Raises
    InputError for what cannot be taken; exits with 0 after --help and --print_config.
    """
    parser = build_parser(target, prog=prog, about=about, common=common)
    found = parser.parse_args(_today(parser, args, {**WAS, **(was or {})}))

    for name in ("config", "plugin"):
        found.pop(name, None)
    # The command line's is taken before (take_log_format); this one may be of a YAML file.
    if found.pop("log_format") == "json" and not logs.is_json():
        logs.use_json(prog.removeprefix("lfmim "))
    return target(**vars(parser.instantiate(found)))


def parse_one(
    commands: Mapping[str, Callable[..., Any]],
    args: Sequence[str],
    *,
    prog: str,
    about: str,
    was: Mapping[str, str] | None = None,
) -> Any:
    """`parse` for a command with commands of its own: the first argument names the function."""
    text, examples = described(about)
    if args[:1] in (["-h"], ["--help"]):
        lines = [f"  {name:<12} {summary(one)}" for name, one in commands.items()]
        about = textwrap.fill(text, shutil.get_terminal_size().columns - 2)
        print("\n".join([f"usage: {prog} WHAT [options]", "", about, "", *examples]))
        print("\n".join(["", "WHAT, with `--help` for its options:", *lines]))
        sys.exit(0)
    if not args or args[0] not in commands:
        given = f"unknown: {args[0]!r}" if args else "nothing given"
        raise InputError(f"{prog}: {given}; say what: {', '.join(commands)}")

    target = commands[args[0]]
    example = next((line for line in examples if f" {args[0]} " in line), "")
    about = f"{summary(target)}\n\n{example or f'lfmim {prog.split()[-1]} {args[0]} [options]'}"
    own = list(inspect.signature(target).parameters)
    return parse(target, args[1:], prog=f"{prog} {args[0]}", about=about, common=own, was=was)


def described(about: str) -> tuple[str, list[str]]:
    """A command's docstring -> what it does, as one line, and its examples."""
    text, _, examples = about.strip().partition("\n\n")
    # An example's indent is not the source's: the formatter takes it away below a text of one line.
    return " ".join(text.split()), [line.strip() for line in examples.splitlines() if line.strip()]


def summary(command: Callable[..., Any]) -> str:
    """The first sentence of its docstring."""
    return " ".join((inspect.getdoc(command) or "").split("\n\n")[0].split())


def build_parser(
    target: Callable[..., Any], *, prog: str, about: str, common: Sequence[str]
) -> Parser:
    """The options of `target`, grouped."""
    text, examples = described(about)
    usage = "\n       ".join(examples)
    # no abbreviations: an option that is added later could make one mean something else
    parser = Parser(prog=prog, usage=usage, description=text, allow_abbrev=False)

    first = parser.add_argument_group("common options")
    names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
    ours = f", or the name of one that comes with the package ({names})"
    config_help = f"YAML file of these options{ours if isinstance(target, type) else ''}"
    parser.add_argument("--config", action="config", metavar="FILE", help=config_help)
    plugin_help = "Python file with a model, importer or encoder of your own (docs/extending.md)"
    parser.add_argument("--plugin", action="append", metavar="FILE", help=plugin_help)
    log_help = "json: what goes to stderr is JSON objects, one a line (docs/operations.md)"
    formats = ("text", "json")
    parser.add_argument("--log_format", choices=formats, default="text", help=log_help)
    if isinstance(target, type):
        parser.add_class_arguments(target, as_group=False)
    else:
        parser.add_function_arguments(target, as_group=False)

    for action in parser._actions:
        if word := WORDS.get(action.dest):
            action.option_strings.insert(0, word)
            action.metavar = word[2:].upper()
            parser._option_string_actions[word] = action
        # Of a nested class jsonargparse makes `--model FILE`, beside --model.name: `--model lfmim`,
        # meant as a name, would be a file that cannot be read.
        if type(action).__name__ == "_ActionConfigLoad":
            action.help = argparse.SUPPRESS
            parser._option_string_actions.pop(action.option_strings[0])
    _regroup(parser, first, ("config", *common))
    return parser


def _regroup(parser: Parser, first: Any, common: Sequence[str]) -> None:
    """`common` to the group `first`, which comes first; headings of the others name their keys."""
    place = {dest: i for i, dest in enumerate(common)}
    # a field that was renamed without its command's COMMON: for us, in the first test of the help
    missing = set(common) - {action.dest for action in parser._actions}
    assert not missing, missing

    for group in parser._action_groups:
        if group is first:
            continue
        keys = {action.dest.rpartition(".")[0] for action in group._group_actions} - {""}
        if keys:
            group.title = f"{min(keys)}: {group.title}"
        first._group_actions += [a for a in group._group_actions if a.dest in place]
        group._group_actions = [a for a in group._group_actions if a.dest not in place]
    first._group_actions.sort(key=lambda action: place[action.dest])
    parser._action_groups.remove(first)
    parser._action_groups.insert(0, first)
    next(g for g in parser._action_groups if g.title == "options").title = "other options"


def _today(parser: Parser, args: Sequence[str], was: Mapping[str, str]) -> list[str]:
    """The arguments as the parser takes them: `-` in a name as `_`, a bare boolean option with its
    value, older names as today's (said once each), a preset as its file."""
    # jsonargparse wants a value, `--resume true`; people, and older versions, write `--resume`.
    flags = {
        option
        for option, action in parser._option_string_actions.items()
        if getattr(action, "_typehint", None) is bool
    }
    lists = {
        option
        for option, action in parser._option_string_actions.items()
        if get_origin(getattr(action, "_typehint", None)) is list
    }
    out: list[str] = []
    for given, after in zip(args, [*args[1:], ""], strict=False):
        option, equals, value = given.partition("=")
        if not option.startswith("--"):
            before = out[-1] if out else ""
            given = preset(given) if before in NAMED else given
            out.append(_as_list(given) if before in lists else given)
            continue

        option = "--" + option[2:].replace("-", "_")
        if option in was and was[option] in parser._option_string_actions:
            print(f"note: {option} is {was[option]} now", file=sys.stderr)
            option = was[option]
        if option in flags and not equals and (not after or after.startswith("-")):
            equals, value = "=", "true"
        value = preset(value) if option in NAMED else value
        out.append(option + equals + (_as_list(value) if equals and option in lists else value))
    return out


def _as_list(value: str) -> str:
    """`a,b` as jsonargparse takes a list: `[a,b]`."""
    return value if value.startswith("[") else f"[{value}]"


def preset(config: str) -> str:
    """The file of a config: as given, or the package's of that name (until 0.2.0 in
    jobs/configs)."""
    name = config.removeprefix("jobs/configs/").removesuffix(".yaml")
    file = PRESETS / f"{name}.yaml"
    # a file of the user's own goes before the package's of that name
    if os.path.isfile(config) or not file.is_file():
        return config
    if config != name:
        print(f"note: {config} is `--config {name}` now", file=sys.stderr)
    return str(file)


def named_files(command: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """The files that a command line names as FILES: (index of the argument, option, file)."""
    for i, (given, after) in enumerate(zip(command, [*command[1:], ""], strict=False)):
        option, equals, value = given.partition("=")
        if option in FILES:
            at, value = (i, value) if equals else (i + 1, after)
            # without a suffix it is the name of a preset, which the package has everywhere
            if value.endswith(FILES[option]):
                yield at, option, value


def check_yaml(given: Sequence[str]) -> None:
    """Refuse a YAML file that jsonargparse would end on with a traceback (encoding) or half read (a
    key twice)."""
    for option, value in zip(["", *given], given, strict=False):
        name, _, path = value.rpartition("=")
        if (path.endswith((".yaml", ".yml")) or "--config" in (option, name)) and os.path.isfile(
            path
        ):
            read_yaml(path)


def take_plugins(args: Sequence[str]) -> list[str]:
    """Load what `--plugin FILE` names, on every command; the other arguments stay."""
    # Before anything else is parsed: the file may register what the rest names, even a command of
    # `lfmim import`.
    rest: list[str] = []
    files: list[str] = []
    given = iter(args)
    for argument in given:
        option, equals, value = argument.partition("=")
        if option == "--plugin":
            files.append(value if equals else next(given, ""))
        else:
            rest.append(argument)
    use_plugins(files)
    return rest


def take_log_format(args: Sequence[str]) -> tuple[list[str], str]:
    """The arguments without `--log_format`, on every command, and what it names: text or json.

    Raises InputError for another format.
    """
    rest: list[str] = []
    named, given = "text", iter(args)
    for argument in given:
        option, equals, value = argument.partition("=")
        if option in ("--log_format", "--log-format"):
            named = value if equals else next(given, "")
        else:
            rest.append(argument)
    if named not in ("text", "json"):
        raise InputError(f"--log_format {named}: must be text or json")
    return rest, named
