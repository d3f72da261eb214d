"""Feature store -> a split as tensors: in memory, or memory-mapped for splits larger than
memory."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lfmim.config import ModelConfig, cache_folder, config_hash
from lfmim.data.batches import UtteranceTensors, encode_labels, pad_sequences
from lfmim.data.manifest import cell
from lfmim.data.splits import Fold, store_folds
from lfmim.data.store import open_parts, part_files, read_table, sequences, store_state
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    IGNORE_LABEL,
    LABEL_COLUMNS,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPLIT,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.storage import WriteError, new_folder

MAPPED_ROWS = 64
"""Utterances in memory at a time while a split is mapped, besides one row group of the store."""


def load_split(
    store: Path,
    split: str,
    config: ModelConfig,
    cache: str = "auto",
    fold: Fold | None = None,
) -> UtteranceTensors:
    """A split of a feature store in id order, as a model of `config` takes it (lengths, labels of
    its task). Of a `fold` of the store it is that fold's, whatever the column `split` says.

    In memory, or with `cache` "stream" in memory-mapped files, so that a split may be larger than
    memory: the same values, the same order. Raises InputError if it is empty or without labels, or
    if the files cannot be written.
    """
    if cache == "stream":
        return _mapped_split(store, split, config, fold)

    dims = FeatureSpec.load(store).dims
    columns = [*(FEATURE_COLUMNS[m] for m in dims), *_label_columns(config)]
    table = read_table(store, columns, where=_rows(store, split, fold))
    labels = split_labels(table, store, split, config.task)
    padded = {
        m: pad_sequences(sequences(table, m), m, dim, config.max_lengths[m], cut=config.cuts(m))
        for m, dim in dims.items()
    }
    return UtteranceTensors(
        table[ID].to_pylist(),
        {m: x for m, (x, _) in padded.items()},
        {m: n for m, (_, n) in padded.items()},
        labels,
        LabelSpec.load(store),
        _speakers(table),
    )


def check_labels(table: pa.Table, store: Path, split: str, config: ModelConfig) -> None:
    """Raise InputError if the split is empty or without labels, as `load_split` would, without
    reading features: a label counts here even where its modality is absent.

    `table`: splits and labels of the whole store.
    """
    # Stand-ins for the features, of which encode_labels asks only whether they are there. A driver
    # that read them would take as long before a job starts as each worker does after.
    table = table.filter(pc.equal(table[SPLIT], split))
    for m in FeatureSpec.load(store).dims:
        table = table.append_column(FEATURE_COLUMNS[m], pa.repeat(True, table.num_rows))
    split_labels(table, store, split, config.task)


def _label_columns(config: ModelConfig) -> list[str]:
    columns = SENTIMENT_COLUMNS if config.task == "sentiment" else LABEL_COLUMNS
    return [*columns.values(), SPEAKER]


def _speakers(table: pa.Table) -> list[str]:
    if SPEAKER not in table.column_names:
        return []
    return [cell(value) for value in table[SPEAKER].to_pylist()]


def split_labels(table: pa.Table, store: Path, split: str, task: str) -> torch.Tensor:
    """`encode_labels` of a split's rows, by the store's LabelSpec. Raises InputError if there is no
    row, or no label of the task."""
    if not table.num_rows:
        raise InputError(
            f"{store}: no rows of split '{split}'; name another split, or fill the manifest's "
            "column 'split' and extract again"
        )

    labels = encode_labels(table, task, LabelSpec.load(store))
    if bool((labels == IGNORE_LABEL).all()):
        columns = SENTIMENT_COLUMNS if task == "sentiment" else LABEL_COLUMNS
        raise InputError(
            f"{store}: split '{split}' has no {task} label of any head; fill "
            f"{', '.join(columns.values())}, or use a store or a model of the other task"
        )
    return labels


def _rows(store: Path, split: str, fold: Fold | None) -> pc.Expression:
    """Which rows of the store the split has."""
    if fold is None:
        return pc.field(SPLIT) == split
    return pc.field(ID).isin(store_folds(store, fold.count).ids(fold, split))


def _mapped_split(
    store: Path, split: str, config: ModelConfig, fold: Fold | None
) -> UtteranceTensors:
    """The split's padded features as files in `cache_folder()`/splits, made where they are not
    there yet."""
    dims = FeatureSpec.load(store).dims
    # Two names in one: what is wanted, and of which state of the store.
    shapes = {m: (config.max_lengths[m], dim, config.cuts(m)) for m, dim in dims.items()}
    part = [] if fold is None else [dataclasses.astuple(fold)]
    what = config_hash(
        str(store.resolve()), split, [(m.value, *s) for m, s in shapes.items()], *part
    )
    folder = cache_folder() / "splits" / f"{what}-{config_hash(store_state(store))}"

    rows = _rows(store, split, fold)
    table = read_table(store, _label_columns(config), where=rows)
    if not folder.is_dir() and table.num_rows:
        try:
            # Workers of a node ask at the same time; each then fills a folder of its own, and the
            # first to finish gives it the name.
            with new_folder(folder, first=True) as scratch:
                _write_arrays(scratch, store, rows, table[ID].to_pylist(), shapes)
        except WriteError as error:
            raise InputError(
                f"train.cache stream: {folder.parent} cannot be written to: "
                f"{error.reason}; set LFMIM_CACHE to a folder with room for the padded "
                "features"
            ) from error

        # Files of the store as it was. Who still has them mapped keeps them until it ends.
        for old in folder.parent.glob(f"{what}-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    lengths = (
        {m: torch.from_numpy(np.load(folder / f"{m}.lengths.npy")) for m in dims}
        if table.num_rows
        else {}
    )
    # All that encode_labels asks of the features is whether they are there; null means absent.
    for m, length in lengths.items():
        table = table.append_column(
            FEATURE_COLUMNS[m], pa.array([n > 0 or None for n in length.tolist()], pa.bool_())
        )
    labels = split_labels(table, store, split, config.task)

    # "c" (copy on write): torch warns of arrays that it may not write, and nothing writes these.
    features = {m: torch.from_numpy(np.load(folder / f"{m}.npy", mmap_mode="c")) for m in dims}
    ids, spec = table[ID].to_pylist(), LabelSpec.load(store)
    return UtteranceTensors(ids, features, lengths, labels, spec, _speakers(table), mapped=True)


def _write_arrays(
    folder: Path,
    store: Path,
    rows: pc.Expression,
    ids: list[str],
    shapes: dict[Modality, tuple[int, int, bool]],
) -> None:
    row_of = {name: i for i, name in enumerate(ids)}
    # A new file of mode w+ reads as zeros, so only what is not padding has to be written.
    arrays = {
        m: np.lib.format.open_memmap(
            folder / f"{m}.npy", mode="w+", dtype=np.float16, shape=(len(ids), t, d)
        )
        for m, (t, d, _) in shapes.items()
    }
    # Room is taken first: the file is sparse, and writing into a map whose disk has become full
    # kills the process with SIGBUS, which no `except` sees.
    for m in shapes:
        with (folder / f"{m}.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)

    lengths = {m: np.zeros(len(ids), dtype=np.int64) for m in shapes}
    for table in _tables(store, rows, [FEATURE_COLUMNS[m] for m in shapes]):
        into = [row_of[name] for name in table[ID].to_pylist()]
        for m, (t, d, cut) in shapes.items():
            padded, length = pad_sequences(sequences(table, m), m, d, t, cut=cut)
            arrays[m][into, : padded.shape[1]] = padded.numpy()
            lengths[m][into] = length.numpy()

    for m, array in arrays.items():
        array.flush()
        np.save(folder / f"{m}.lengths.npy", lengths[m])


def _tables(store: Path, rows: pc.Expression, columns: list[str]) -> Iterator[pa.Table]:
    """The store's `rows`, a few at a time and one part at a time, in no particular order."""
    for part in part_files(store):
        # pyarrow's own defaults (131,072 rows a batch, 16 batches and 4 parts ahead) would hold the
        # very split in memory that is mapped because it does not fit there.
        scanner = open_parts([part]).scanner(
            columns=[ID, *columns],
            filter=rows,
            batch_size=MAPPED_ROWS,
            batch_readahead=1,
            fragment_readahead=0,
            use_threads=False,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield pa.Table.from_batches([batch])
