"""Published data sets, feature dumps, annotations and checkpoints -> manifests, feature stores, a
registered model.

    lfmim import cherma --source CHERMA --store features
    lfmim import mmsa --source unaligned_39.pkl --store features
    lfmim import sims --source CH-SIMS --output clips.csv
    lfmim import emotiontalk --source labels.parquet --output emotiontalk.csv
    lfmim import annotations --source votes.csv --output clips.csv
    lfmim import char_ngrams --source clips.csv --store features
    lfmim import checkpoint --checkpoint model.pth --num_heads 16
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lfmim.cli.arguments import parse_one
from lfmim.cli.import_checkpoint import WAS, import_checkpoint
from lfmim.data.importers.base import IMPORTERS


def commands() -> dict[str, Callable[..., Any]]:
    """WHAT -> its function."""
    return {name: IMPORTERS[name] for name in IMPORTERS} | {"checkpoint": import_checkpoint}


def main(args: list[str]) -> int:
    done = parse_one(commands(), args, prog="lfmim import", about=__doc__, was=WAS)
    # importers return the lines of their report; a checkpoint's prints while MLflow works
    if not isinstance(done, int):
        print("\n".join(done))
    return 0
