"""The registry of importers: a format is one file with one registered command.

    @register_importer("mine")
    def mine(*, source: str, store: str) -> list[str]:
        \"\"\"What it reads -> what it makes.

        Args:
            source: what the option --source names.
            store: folder of the feature store to make.
        \"\"\"

The options of `lfmim import mine` are made from the signature and the docstring. The
command checks where it may write (lfmim.storage), imports, and returns the lines of its report, the
last of which names what was written.
"""

from __future__ import annotations

from collections.abc import Callable

from lfmim.registry import Registry

Importer = Callable[..., list[str]]
IMPORTERS: Registry[Importer] = Registry("importer", "lfmim.data.importers")
register_importer = IMPORTERS.register


def written(lines: list[str], output: str) -> list[str]:
    """A report with its last line."""
    return [*lines, f"written: {output}"]
