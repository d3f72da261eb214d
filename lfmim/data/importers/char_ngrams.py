"""Text of a manifest -> feature store of hashed character n-grams: an encoder without weights, for
text alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sklearn
from sklearn.feature_extraction.text import HashingVectorizer

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.dump import ERROR, ImportReport, check_new, file_sha256, write_store
from lfmim.data.manifest import manifest_labels, passthrough_columns, read_reported
from lfmim.schema import (
    FEATURE_COLUMNS,
    SENTIMENT_COLUMNS,
    TEXT,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
)
from lfmim.storage import output_folder


def import_char_ngrams(
    manifest: str, store: Path, *, labels: str = "", longest: int = 3, dim: int = 4096
) -> ImportReport:
    """One vector per utterance: counts of its 1- to `longest`-grams of characters, hashed into
    `dim` places with a sign (scikit-learn's HashingVectorizer), scaled to a mean square of 1. A row
    without text is quarantined.
    """
    if longest < 1 or dim < 1:
        raise InputError(f"longest {longest}, dim {dim}: must be at least 1")
    check_new(store)

    spec = manifest_labels(manifest, labels)
    frame, merged = read_reported(manifest, need_media=False, labels=spec)
    # A manifest may be a URL or a pattern of shards, which has no single file to hash.
    report = ImportReport(manifest, file_sha256(Path(manifest)) if Path(manifest).is_file() else "")
    report.notes += merged

    # There are no weights: the settings are all that makes two such encoders alike.
    settings = {"analyzer": "char", "ngram_range": (1, longest), "n_features": dim, "norm": "l2"}
    vectorizer = HashingVectorizer(**settings, dtype=np.float32)
    identity = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()

    write_store(
        store,
        {Modality.TEXT: dim},
        passthrough_columns(frame),
        _rows(frame, vectorizer, report),
        len(frame),
        report,
        lambda: FeatureSpec(
            encoders={
                Modality.TEXT.value: EncoderSpec(
                    name=f"character 1-{longest}-grams, hashed",
                    revision="",
                    weights_sha256=identity,
                    dim=dim,
                    max_length=1,
                )
            },
            library_versions={"scikit-learn": sklearn.__version__},
        ),
        spec,
    )
    return report


def _rows(
    frame: pd.DataFrame, vectorizer: HashingVectorizer, report: ImportReport
) -> Iterator[dict[str, Any]]:
    for record in frame.to_dict("records"):
        # The store's passthrough columns are text, sentiment scores excepted.
        row = {
            str(k): v if v is None or k in SENTIMENT_COLUMNS.values() else str(v)
            for k, v in record.items()
        }

        if row[TEXT]:
            # Row by row: the matrix of a corpus is sparse, its features are not (0.3 GB for 17,321
            # utterances of width 4,096).
            vector = vectorizer.transform([row[TEXT]]).toarray()
            report.values[Modality.TEXT] += vector.size
            # At length 1 its projection is a fiftieth of the position added to it, which drowned
            # it: learning took ten epochs instead of three.
            row[FEATURE_COLUMNS[Modality.TEXT]] = (vector * vectorizer.n_features**0.5).astype(
                np.float16
            )
        else:
            row[ERROR] = "the row has no text"
        yield row


@register_importer("char_ngrams")
def char_ngrams(
    *, source: str, store: str, labels: str = "", longest: int = 3, dim: int = 4096
) -> list[str]:
    """The text of a manifest -> text-only feature store of hashed character n-grams.

    Args:
        source: a manifest.
        store: folder of the feature store to make.
        labels: label spec, a shipped name or a YAML file; empty: the manifest's own, else cherma.
        longest: longest n-gram.
        dim: width of the features.
    """
    made = output_folder(store, "--store")
    report = import_char_ngrams(source, made, labels=labels, longest=longest, dim=dim)
    return written(report.lines(), store)
