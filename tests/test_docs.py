"""What the documentation names exists: files, tests, pages, commands and their options."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import lfmim
from lfmim.cli import arguments, submit
from lfmim.cli.main import COMMANDS
from lfmim.schema import InputError
from tests.support.toy import ROOT

HISTORY = {"docs/LOG.md", "CHANGELOG.md"}
"""They name what was; only their links are held to what is."""
PAGES = sorted(str(p.relative_to(ROOT)) for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = [
    f for d in ("lfmim", "feature_service", "jobs", "benchmarks") for f in ROOT.glob(f"{d}/**/*.*")
]
FOREIGN = {"--allowed-hosts", "--device", "--host", "--only", "--tiny"}
"""Options of MLflow's server and of benchmarks/, which pages name by themselves."""
USER = {"mean.py", "mfcc.py", "mine.py", "named_clips.py"}
"""Files that a page tells the reader to make."""


def read(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code_lines(text: str) -> list[str]:
    """Fenced and indented code, continued lines joined."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.M | re.S)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    indented = re.findall(r"^ {4,}(.*)$", rest, flags=re.M)
    lines = [line for block in fenced for line in block.replace("\\\n", " ").splitlines()]
    return lines + "\n".join(indented).replace("\\\n", " ").splitlines()


def inline(text: str) -> list[str]:
    """Code within sentences."""
    rest = re.sub(r"^```.*?^```|^ {4,}[^\n]*$", "", text, flags=re.M | re.S)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", rest)]


def commands() -> Iterator[tuple[str, str, bool]]:
    """(page, `lfmim ...` without lfmim, whether a reader can type it as it stands)."""
    for page in PAGES:
        if page in HISTORY:
            continue
        text = read(page)
        both = [(line, True) for line in code_lines(text)] + [(x, False) for x in inline(text)]
        for line, whole in both:
            found = re.match(r"\s*(?:[A-Z_]+=\S+ )*lfmim (?!COMMAND|import FORMAT|--)(.*)", line)
            if found:
                yield page, found[1], whole


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    prose = re.sub(r"^```.*?^```|^ {4,}[^\n]*$|`[^`\n]+`", "", read(page), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:|#", target):
            assert (ROOT / page).parent.joinpath(target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("page", sorted(set(PAGES) - HISTORY))
def test_files_and_tests_that_a_page_names_exist(page):
    text = read(page)
    named = r"(?<![\w/.])(?:docs|lfmim|feature_service|jobs|tests|benchmarks)/[\w./-]+\.\w+"
    missing = [name for name in re.findall(named, text) if not (ROOT / name).exists()]
    missing = [name for name in missing if not name.startswith("benchmarks/out/")]
    modules = {path.name for path in ROOT.glob("**/*.py") if ".venv" not in path.parts}
    alone = set(re.findall(r"(?<![\w/.*])\w+\.py\b", text)) - USER
    assert not missing + sorted(alone - modules)


def test_pages_that_the_code_names_exist():
    files = [f for f in [*CODE, ROOT / "cluster.yaml"] if f.suffix in (".py", ".yaml")]
    named = {(f, name) for f in files for name in re.findall(r"docs/[\w./-]+\.\w+", read(f))}
    assert named
    assert not [(str(f), name) for f, name in named if not (ROOT / name).exists()]


def test_every_page_is_in_the_navigation_once():
    def pages(entry: object) -> Iterator[str]:
        children = entry.values() if isinstance(entry, dict) else entry
        yield from (entry,) if isinstance(entry, str) else (p for c in children for p in pages(c))

    found = list(pages(yaml.safe_load(read("mkdocs.yml"))["nav"]))
    made = set(hooks().FROM_ROOT)
    assert sorted(found) == sorted(
        {p.removeprefix("docs/") for p in PAGES if p.startswith("docs/")} | made
    )


def test_the_python_page_has_every_public_name():
    assert sorted(re.findall(r"^::: lfmim\.(\w+)$", read("docs/python.md"), flags=re.M)) == sorted(
        lfmim.__all__
    )


def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command_and_one_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    made = hooks()
    lines = [" ".join(command) for command in made.command_lines()]
    assert set(COMMANDS) | {"import mmsa", "labels split"} <= set(lines)
    texts = {line: made.help_text(line.split()) for line in lines}
    assert all(text.startswith(f"usage: lfmim {line}") for line, text in texts.items())
    assert "--train.lr LR" in texts["train"]
    assert "--env NAME[=VALUE]" in texts["submit"]
    monkeypatch.setenv("COLUMNS", "200")
    assert {line: made.help_text(line.split()) for line in lines} == texts


class Taken(Exception):
    """The parser took the arguments."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Parses a command line without running it; raises InputError if it is refused."""

    def taken(*_):
        raise Taken

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(arguments.Parser, "instantiate", taken)
    monkeypatch.setattr(submit, "variables", lambda given: {})

    def parsed(words: list[str]) -> None:
        for _, _, file in arguments.named_files(words):
            if not Path(arguments.preset(file)).exists():
                Path(file).write_text("{}")
        module = importlib.import_module(f"lfmim.cli.{COMMANDS[words[0]][0]}")
        with pytest.raises(Taken):
            module.main(words[1:])

    def submitted(address: str, command: list[str], *_: object) -> None:
        if command[:2] == ["-m", "lfmim"]:
            parsed(command[2:])
        raise Taken

    monkeypatch.setattr(submit, "submit", submitted)
    return parsed


@pytest.mark.parametrize(("page", "line", "whole"), list(commands()))
def test_commands_of_the_pages_are_taken(page, line, whole, parse):
    words = shlex.split(line.removesuffix("..."), comments=True)
    assert words[0] in COMMANDS
    # They are for the top of the repository.
    words = [str(ROOT / word) if word.startswith("benchmarks/") else word for word in words]
    if "--plugin" in words:
        at = words.index("--plugin")  # tests/lfmim/test_registry.py runs these with their files
        del words[at : at + 2]
    plugin_importer = words[:2] == ["import", "named_clips"]
    if plugin_importer or (not whole and "--" not in line):
        assert plugin_importer or words in list(hooks().command_lines())
        return
    try:
        parse(words)
    except InputError as error:
        lacks = (not whole or ".yaml" in line) and ": needed;" in str(error)
        if not lacks:
            raise


def test_a_command_that_would_be_refused_is_found(parse):
    for line in ("train --store s --train.schedulr cosine", "train --store s --train.epochs many"):
        with pytest.raises(InputError):
            parse(shlex.split(line))
    with pytest.raises(InputError, match="no such command"):
        parse(["submit", "lfmim", "train", "--store", "s"])
    with pytest.raises(InputError, match="--stor"):
        parse(["submit", "train", "--stor", "s"])
    with pytest.raises(InputError, match="config: File does not exist"):
        parse(["tune", "--config", "demmo"])


def test_options_that_a_page_names_alone_exist():
    texts = "".join(hooks().help_text(command) for command in hooks().command_lines())
    known = set(re.findall(r"--[a-z][\w.]*", texts)) | FOREIGN
    named = {
        (page, option)
        for page in PAGES
        if page not in HISTORY
        for span in inline(read(page))
        if span.startswith("--")
        for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", span)
    }
    assert ("docs/tuning.md", "--repeatable") in named
    assert not sorted((page, option) for page, option in named if option not in known)


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_written_at_100_columns(page):
    """Tables and what is indented or fenced, that is code and output, are as wide as they are."""
    fenced, wide = False, []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), start=1):
        fenced ^= line.lstrip().startswith("```")
        bare = not fenced and not line.lstrip().startswith("|") and not line.startswith("    ")
        # A link's address cannot be broken.
        if bare and len(line) > 100 and " " in line.strip()[:100]:
            wide.append(number)
    assert not wide
