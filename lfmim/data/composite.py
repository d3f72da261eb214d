"""A corpus of real signals put together by label: each row of a table of joint labels gets, of each
modality, the features of an utterance that shows the row's label of it.

What is real is each signal and the joint distribution of the labels; that they belong together is
not. So y_m shows in them only through the modalities' own labels, but for a row that is in a store
itself: it keeps its own features there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lfmim.data.manifest import cell
from lfmim.data.store import (
    read_table,
    rows_to_table,
    sequences,
    store_schema,
    write_part,
    write_spec,
)
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    MULTIMODAL,
    SPEAKER,
    SPLIT,
    SPLITS,
    TEXT,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)

ROWS_PER_PART = 256
SOURCES = {m: f"{m.value}_source" for m in Modality}
"""Columns of the composite: the utterance that each modality is of."""


@dataclasses.dataclass(frozen=True)
class _Source:
    """The utterances of a store that have the modality, by id."""

    spec: FeatureSpec
    ids: list[str]
    pools: dict[tuple[str, str], list[int]]
    """(split, class) -> rows."""
    features: list[np.ndarray]


def compose_corpus(
    store: Path,
    sources: Mapping[Modality, Path],
    table: pd.DataFrame,
    labels: LabelSpec,
    *,
    seed: int = 0,
    on_part: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the composite as a feature store, in parts; those that are there already are kept.

    `table` is a manifest with splits, ids and the four labels, classes of `labels`; `sources` are
    feature stores, whose own labels of the modality are used, or the multimodal ones where there
    are none, as words that `labels` reads. A row draws of its own split; every utterance of a
    split and class is used once before one is used again. A row without a modality's label lacks
    the modality. Raises InputError for a row without split, a class that a split of a source does
    not have, or a speaker of a source in two splits.
    """
    for i, split in enumerate(table[SPLIT], start=1):
        if split not in SPLITS:
            raise InputError(
                f"row {i} of the labels, column '{SPLIT}': {split!r} is not one of "
                f"{', '.join(SPLITS)}; make splits with lfmim labels split"
            )

    found = {m: _source(m, path, labels) for m, path in sources.items()}
    drawn = {m: _draw(m, found[m], sources[m], table, seed) for m in found}
    names = {m: [found[m].ids[i] if i >= 0 else None for i in rows] for m, rows in drawn.items()}
    said = table[[ID, SPLIT, *LABEL_COLUMNS.values()]].astype(str).to_numpy().tolist()
    dims = {m: source.spec.dims[m] for m, source in found.items()}
    spec = FeatureSpec(
        encoders={m.value: source.spec.encoders[m.value] for m, source in found.items()},
        sampling={
            "composite": {m.value: source.spec.sampling for m, source in found.items()},
            # The rows as well, since parts that are there are kept.
            "rows": hashlib.sha256(json.dumps([said, list(names.values())]).encode()).hexdigest(),
        },
    )
    write_spec(store, spec, labels)

    schema = store_schema(dims, list(SOURCES.values()))
    total = -(-len(table) // ROWS_PER_PART)
    known = [dict(zip(map(str, table), row, strict=True)) for row in table.to_numpy().tolist()]
    for part in range(total):
        name = f"part-{part:05d}.parquet"
        # A part that is there is whole: it got its name when it was finished.
        if not (store / name).exists():
            rows = [
                _row(i, known[i], found, drawn, names)
                for i in range(part * ROWS_PER_PART, min(len(table), (part + 1) * ROWS_PER_PART))
            ]
            write_part(store, rows_to_table(rows, schema, dims), name)
        on_part(part + 1, total)


def _row(
    i: int,
    given: Mapping[str, Any],
    found: Mapping[Modality, _Source],
    drawn: Mapping[Modality, list[int]],
    names: Mapping[Modality, list[str | None]],
) -> dict[str, Any]:
    row = {c: given.get(c) for c in (ID, SPLIT, TEXT, SPEAKER, *LABEL_COLUMNS.values())}
    for m, source in found.items():
        k = drawn[m][i]
        row[FEATURE_COLUMNS[m]] = source.features[k] if k >= 0 else None
        row[SOURCES[m]] = names[m][i]
    return row


def _source(m: Modality, path: Path, labels: LabelSpec) -> _Source:
    spec = FeatureSpec.load(path)
    if m not in spec.dims:
        raise InputError(f"{path}: a store without {m}; it has {', '.join(spec.dims)}")

    own, joint = LABEL_COLUMNS[m], LABEL_COLUMNS[MULTIMODAL]
    table = read_table(path, [SPLIT, SPEAKER, own, joint, FEATURE_COLUMNS[m]])
    values, features = table.drop_columns([FEATURE_COLUMNS[m]]).to_pandas(), sequences(table, m)
    # A corpus with one label an utterance has it as the multimodal one.
    column = own if own in values and values[own].notna().any() else joint

    there = {i: x for i, x in enumerate(features) if x is not None}
    _check_apart(values.iloc[list(there)], path)
    ids: list[str] = []
    pools: dict[tuple[str, str], list[int]] = {}
    for i in there:
        row = values.iloc[i]
        label = labels.parse(row[column], where=f"{path}, {row[ID]!r}, {column}")
        if label is not None:
            pools.setdefault((row[SPLIT], label), []).append(len(ids))
        ids.append(row[ID])
    return _Source(spec, ids, pools, list(there.values()))


def _check_apart(rows: pd.DataFrame, path: Path) -> None:
    """Raise InputError if a speaker is in two splits: a voice that was trained on would be
    tested."""
    if SPEAKER not in rows:
        return
    speakers = rows[SPEAKER].map(cell)
    splits = {str(k): int(n) for k, n in rows[SPLIT].groupby(speakers).nunique().items()}
    several = [name for name, count in splits.items() if name and count > 1]
    if several:
        raise InputError(
            f"{path}: speaker {several[0]!r} is in {splits[several[0]]} splits (so are "
            f"{len(several)} speakers); split the manifest with lfmim labels split --method "
            "speaker and extract it again"
        )


def _draw(m: Modality, source: _Source, path: Path, table: pd.DataFrame, seed: int) -> list[int]:
    """Per row of the table the source's row, -1 for none."""
    rng = np.random.default_rng([seed, list(Modality).index(m)])
    row_of = {name: i for i, name in enumerate(source.ids)}
    waiting: dict[tuple[str, str], list[int]] = {}
    out = []
    for name, split, label in zip(table[ID], table[SPLIT], table[LABEL_COLUMNS[m]], strict=True):
        if name in row_of:
            out.append(row_of[name])
            continue
        if label is None:
            out.append(-1)
            continue
        key = (split, label)
        if key not in source.pools:
            raise InputError(
                f"{path}: no {m} of {label!r} in split '{split}', which {name!r} needs; give a "
                "store that has every class in every split"
            )
        if not waiting.get(key):
            waiting[key] = rng.permutation(source.pools[key]).tolist()
        out.append(waiting[key].pop())
    return out
