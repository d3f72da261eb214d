"""What mkdocs does beside rendering docs/*.md: help texts from the parsers, the root's pages."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lfmim.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Pages that are not in docs/ -> their files."""


def command_lines() -> Iterator[list[str]]:
    """Every command, with its own commands: [train], [import], [import, mmsa], ..."""
    for name, (module, _) in COMMANDS.items():
        yield [name]
        own = getattr(importlib.import_module(f"lfmim.cli.{module}"), "commands", dict)
        yield from ([name, what] for what in own())


def help_text(command: list[str]) -> str:
    """What `lfmim COMMAND --help` prints on a terminal of 100 columns; of [], `lfmim --help`."""
    module = COMMANDS[command[0]][0] if command else "main"
    main = importlib.import_module(f"lfmim.cli.{module}").main
    os.environ["COLUMNS"] = "100"
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # a default that differs between users
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([*command[1:], "--help"])
    return printed.getvalue().rstrip().replace(" \b", "")  # which joins words on a terminal


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, source in FROM_ROOT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    if page.file.src_uri == "cli.md":
        markdown += f"\n```text\n{help_text([])}\n```\n"
        for command in command_lines():
            title = f"{'#' * (len(command) + 1)} lfmim {' '.join(command)}"
            markdown += f"\n{title}\n\n```text\n{help_text(command)}\n```\n"
    # Lists in lists: two spaces in Markdown as most read it, four in Python-Markdown.
    return re.sub(r"^  (?=- )", "    ", markdown, flags=re.M)
