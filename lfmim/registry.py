"""Names -> models, importers, encoders: one file each, found without editing a list.

Three sources, in this order: the package's own modules, installed packages (entry points), and the
plug-in files that the user names (`--plugin FILE`, $LFMIM_PLUGINS).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from lfmim.schema import InputError

T = TypeVar("T")
PLUGINS = "LFMIM_PLUGINS"
"""Environment variable: plug-in files, separated as in $PATH. Workers inherit it."""


class Registry(Generic[T]):
    """What is registered under a name; looked for at the first question, not at import."""

    def __init__(self, kind: str, package: str) -> None:
        """`kind` names it in messages. `package` holds the built-in ones and is the group of entry
        points: `[project.entry-points."lfmim.models"]`."""
        self.kind, self.package = kind, package
        self._found: dict[str, T] = {}
        self._searched = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. Raises ValueError if another object of that name is there already."""

        def add(entry: T) -> T:
            # A plug-in comes first: a name that the project has is told at the plug-in's line.
            if not getattr(entry, "__module__", "").startswith(f"{self.package}."):
                self._search()
            present = self._found.setdefault(name, entry)
            # The same file imported again (a worker, a test) replaces itself.
            if present is not entry and source_file(present) != source_file(entry):
                raise ValueError(f"{self.kind} {name!r} is registered already")
            self._found[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        """Raises InputError for an unknown name, with the nearest ones first."""
        self._search()
        if name not in self._found:
            near = difflib.get_close_matches(name, self._found, n=3)
            known = ", ".join(dict.fromkeys([*near, *sorted(self._found)]))
            raise InputError(
                f"unknown {self.kind} {name!r}; known: {known}. One of your own comes from its "
                "file: --plugin FILE"
            )
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""
        self._search()
        return iter(sorted(self._found))

    def __contains__(self, name: object) -> bool:
        self._search()
        return name in self._found

    def _search(self) -> None:
        if self._searched:
            return
        # Before the imports: modules may ask while they are imported.
        self._searched = True

        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            point.load()
        # Workers get here without an option: the variable is all they inherit.
        for file in filter(None, os.environ.get(PLUGINS, "").split(os.pathsep)):
            load_plugin(file)


MODELS: Registry[Any] = Registry("model", "lfmim.models")
"""Name -> class (models/base.py). Here, so that a config can check a name without importing torch
before it has to."""


def load_plugin(file: str | Path) -> None:
    """Run a Python file that registers something; the same file once only.

    Raises InputError if it is missing or fails.
    """
    path = Path(file).resolve()
    if not path.is_file():
        raise InputError(f"--plugin {file}: no such file")
    # Named by its whole path: two plug-ins may both be called model.py.
    name = f"lfmim_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return

    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"--plugin {file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look themselves up there, while the file still runs.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        # Else half a plug-in would pass for a loaded one the next time.
        del sys.modules[name]
        raise InputError(f"--plugin {file}: {type(error).__name__}: {error}") from error


def use_plugins(files: list[str]) -> None:
    """Load plug-ins here, and in every process that this one starts."""
    for file in files:
        load_plugin(file)
    # Whole paths: Ray's workers start in another folder than the command.
    given = [str(Path(file).resolve()) for file in files]
    before = filter(None, os.environ.get(PLUGINS, "").split(os.pathsep))
    os.environ[PLUGINS] = os.pathsep.join(dict.fromkeys([*before, *given]))


def source_file(entry: object) -> Path | None:
    """The file that defines a registered class or function."""
    module = sys.modules.get(getattr(entry, "__module__", ""))
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def plugin_file(entry: object) -> Path | None:
    """The plug-in file that an entry came from; None for the project's own."""
    return source_file(entry) if entry.__module__.startswith("lfmim_plugin_") else None
