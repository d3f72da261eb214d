"""Corpora, feature dumps, arrays, annotations and checkpoints -> manifests, feature stores, a
registered model.

    lfmim import ravdess --source RAVDESS --output ravdess.csv --store features
    lfmim import crema_d --source CREMA-D --output crema_d.csv
    lfmim import meld --source MELD --output meld.csv
    lfmim import iemocap --source IEMOCAP_full_release --output iemocap.csv --folds 5
    lfmim import mer --source train-label.csv --media video --output mer.csv
    lfmim import folders --source clips --output clips.csv
    lfmim import arrays --source labels.csv --audio audio.npz --store features
    lfmim import join --store features --vision aus.parquet --output both
    lfmim import elan --source talk.eaf --output talk.csv --clips talk
    lfmim import praat --source talk.TextGrid --output talk.csv --clips talk
    lfmim import label_studio --source export.json --media videos --output talk.csv
    lfmim import cherma --source CHERMA --store features
    lfmim import mmsa --source unaligned_39.pkl --store features
    lfmim import sims --source CH-SIMS --output clips.csv
    lfmim import emotiontalk --source labels.parquet --output emotiontalk.csv
    lfmim import annotations --source votes.csv --output clips.csv
    lfmim import corrections --source result --store corrected --base features
    lfmim import char_ngrams --source clips.csv --store features
    lfmim import checkpoint --checkpoint model.pth --num_heads 16
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from lfmim.cli.arguments import parse_one
from lfmim.cli.import_checkpoint import WAS, import_checkpoint
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.importers.base import IMPORTERS
from lfmim.schema import TEXT, VIDEO, InputError, Modality
from lfmim.storage import as_path, local_copy, output_folder

SOUND_ALONE = frozenset({".wav", ".ogg", ".mp3", ".flac", ".m4a", ".opus", ".aac"})
STORE_OPTIONS = """
    store: folder of a feature store to extract the manifest into, with the default settings of
        `lfmim extract`; empty: only the manifest is written.
    encoders: what turns the media into features."""


def commands() -> dict[str, Callable[..., Any]]:
    """WHAT -> its function."""
    return {name: with_store(IMPORTERS[name]) for name in IMPORTERS} | {
        "checkpoint": import_checkpoint
    }


def main(args: list[str]) -> int:
    done = parse_one(commands(), args, prog="lfmim import", about=__doc__, was=WAS)
    # importers return the lines of their report; a checkpoint's prints while MLflow works
    if not isinstance(done, int):
        print("\n".join(done))
        return 0
    return done


def with_store(importer: Callable[..., list[str]]) -> Callable[..., Any]:
    """An importer that writes a manifest, with options that extract it at once; any other as it
    is."""
    signature = inspect.signature(importer, eval_str=True)
    if "output" not in signature.parameters or "store" in signature.parameters:
        return importer

    def run(*, store: str, encoders: EncoderConfig, **given: Any) -> Any:
        if not store:
            return importer(**given)
        if given.get("folds"):
            raise InputError(
                "--folds with --store: each fold would be extracted anew. Extract the manifest, "
                "then `lfmim benchmark --folds`, or give the store one fold's splits: lfmim import "
                "join --manifest"
            )
        # before an import that may take minutes
        output_folder(store, "--store")
        print("\n".join(importer(**given)))
        return _fill(given["output"], store, encoders)

    # Importers live below the extraction and know nothing of it; the options are made from a
    # signature, so theirs is given two more.
    more = {"store": (str, ""), "encoders": (EncoderConfig, EncoderConfig())}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=value)
        for name, (kind, value) in more.items()
    ]
    joined = signature.replace(parameters=[*signature.parameters.values(), *added])
    run.__signature__ = joined  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in joined.parameters.items()}
    run.__doc__ = (inspect.getdoc(importer) or "").rstrip() + STORE_OPTIONS
    return run


def _fill(manifest: str, store: str, encoders: EncoderConfig) -> int:
    """Extract a manifest, and join what lies beside it as arrays; the command's exit code."""
    from lfmim.cli.extract import extract
    from lfmim.data.importers.arrays import import_join
    from lfmim.data.importers.corpora import arrays_beside

    beside = arrays_beside(as_path(manifest))
    # What is extracted stays, as a rerun continues in it.
    target = f"{store}.extracted" if beside else store
    config = ExtractConfig(manifest=manifest, store=target, encoders=encoders)
    config = dataclasses.replace(config, modalities=_possible(manifest, beside))
    code = extract(config)
    if code or not beside:
        return code

    with contextlib.ExitStack() as copies:
        files = {m: copies.enter_context(local_copy(path)) for m, path in beside.items()}
        lines = import_join(as_path(target), as_path(store), files)
    print("\n".join([*lines, f"written: {store}"]))
    return 0


def _possible(manifest: str, given: Collection[Modality]) -> list[str]:
    """The modalities that the manifest's clips can have, but those that are `given` as arrays: an
    encoder of the others would only make columns without a value."""
    from lfmim.data.manifest import manifest_labels, read_manifest

    frame = read_manifest(manifest, labels=manifest_labels(manifest))
    clips = [v for v in frame[VIDEO] if v]
    there = {
        Modality.TEXT: bool((frame[TEXT] != "").any()),
        Modality.AUDIO: bool(clips),
        Modality.VISION: any(Path(v).suffix.lower() not in SOUND_ALONE for v in clips),
    }
    # A manifest with nothing at all: extraction says so of each row.
    found = [m.value for m in Modality if there[m] and m not in given]
    return found or [m.value for m in Modality]
