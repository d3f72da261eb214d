"""Feature store -> a split as tensors: in memory, or memory-mapped for splits larger than
memory."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import torch

from lfmim.config import ModelConfig, cache_folder, config_hash
from lfmim.data.batches import UtteranceTensors, encode_labels, join_sequences
from lfmim.data.manifest import cell
from lfmim.data.splits import Fold, store_folds
from lfmim.data.store import open_parts, part_files, read_table, sequences, store_state
from lfmim.progress import at_step
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
from lfmim.storage import WriteError, is_remote, make_folder, new_folder, reaching

MAPPED_ROWS = 64
"""Utterances in memory at a time while a split is written for mapping, besides one row group of the
store."""
PARTS_AHEAD = 4
"""Parts of an object store that are fetched at once, each whole."""
MEMORY_SHARE = 1 / 16
"""Of the memory that this process may have: `auto` maps a split that may take more. A node has
several workers, and while a split is loaded it is in memory twice."""
LAYOUT = 2
"""Of the mapped files; in their folder's name, so that those of another layout are made anew."""

Shape = tuple[int, int, bool]
"""Most vectors of a sequence, values of a vector, whether longer sequences are cut."""


def load_split(
    store: Path,
    split: str,
    config: ModelConfig,
    cache: str = "auto",
    fold: Fold | None = None,
    state: object = None,
) -> UtteranceTensors:
    """A split of a feature store in id order, as a model of `config` takes it (lengths, labels of
    its task). Of a `fold` of the store it is that fold's, whatever the column `split` says.

    In memory, or in memory-mapped files, which all workers of a node share: with `cache` "stream",
    or "auto" where it may take more than MEMORY_SHARE. The same values either way, the same order.
    `state` is the store's (`store_state`) where the caller has asked already. Raises InputError if
    the split is empty or without labels, or if the files cannot be written.
    """
    dims = FeatureSpec.load(store).dims
    shapes = {m: (config.max_lengths[m], dim, config.cuts(m)) for m, dim in dims.items()}
    rows = _rows(store, split, fold)
    if cache == "stream" or (cache == "auto" and _is_large(store, rows, shapes)):
        return _mapped_split(store, split, config, fold, shapes, state or store_state(store))

    features, starts, lengths = {}, {}, {}
    table: pa.Table = None
    # One modality at a time: Arrow's copy of a column and the sorted one are as large as what is
    # made of them.
    for m, (longest, dim, cut) in shapes.items():
        column = FEATURE_COLUMNS[m]
        read = read_table(
            store, [column, *(_label_columns(config) if table is None else [])], where=rows
        )
        joined, length = join_sequences(sequences(read, m), m, dim, longest, cut=cut)
        features[m], lengths[m] = torch.from_numpy(joined), torch.from_numpy(length)
        starts[m] = lengths[m].cumsum(0) - lengths[m]
        if table is None:
            table = read.drop_columns([column])
        table = table.append_column(column, _there(length))
        del read
    pa.default_memory_pool().release_unused()
    labels = split_labels(table, store, split, config.task)
    ids, spec = table[ID].to_pylist(), LabelSpec.load(store)
    return UtteranceTensors(ids, features, starts, lengths, labels, spec, _speakers(table))


def _there(lengths: np.ndarray) -> pa.Array:
    """What stands for a column of features for `encode_labels`, which asks only whether they are
    there; null means absent."""
    return pa.array([n > 0 or None for n in lengths.tolist()], pa.bool_())


def _is_large(store: Path, rows: pc.Expression, shapes: dict[Modality, Shape]) -> bool:
    """Whether the split may take more than MEMORY_SHARE of the memory."""
    # Each sequence as long as it can be: what they are is known only once they are read.
    row_bytes = sum(longest * dim * 2 for longest, dim, _ in shapes.values())
    limit = MEMORY_SHARE * _memory()
    parts = part_files(store)
    with reaching(store):
        if not parts or open_parts(parts).count_rows() * row_bytes <= limit:
            return False
        count: int = open_parts(parts).count_rows(filter=rows)
    return count * row_bytes > limit


def _memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's."""
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        # "max" where there is no limit, and no file where there are no such groups.
        with contextlib.suppress(OSError, ValueError):
            return min(int(Path(limit).read_text()), psutil.virtual_memory().total)
    return int(psutil.virtual_memory().total)


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
    store: Path,
    split: str,
    config: ModelConfig,
    fold: Fold | None,
    shapes: dict[Modality, Shape],
    state: object,
) -> UtteranceTensors:
    """The split's features as files in `cache_folder()`/splits, made where they are not there
    yet."""
    # Two names in one: what is wanted, and of which state of the store.
    part = [] if fold is None else [dataclasses.astuple(fold)]
    what = config_hash(
        LAYOUT, str(store.resolve()), split, [(m.value, *s) for m, s in shapes.items()], *part
    )
    folder = cache_folder() / "splits" / f"{what}-{config_hash(state)}"

    rows = _rows(store, split, fold)
    table = read_table(store, _label_columns(config), where=rows)
    if table.num_rows and not folder.is_dir():
        try:
            # Workers of a node ask at the same time: one fills, the others wait for it.
            with _alone(folder.parent / f".{what}.lock"):
                if not folder.is_dir():
                    # `first`: on a file system without locks each fills a folder of its own.
                    with new_folder(folder, first=True) as scratch:
                        _write_vectors(scratch, store, rows, table[ID].to_pylist(), shapes)
                    # Of the store as it was. Who still has them mapped keeps them until it ends.
                    for old in folder.parent.glob(f"{what}-*"):
                        if old != folder:
                            shutil.rmtree(old, ignore_errors=True)
        except WriteError as error:
            raise InputError(
                f"train.cache: {folder.parent} cannot be written to: {error.reason}; set "
                "LFMIM_CACHE to a folder with room for the split's features, or use --train.cache "
                "host, which holds them in the memory of each worker"
            ) from error

    features, starts, lengths = {}, {}, {}
    for m, (_, dim, _) in shapes.items() if table.num_rows else ():
        start, length = np.load(folder / f"{m}.rows.npy")
        starts[m], lengths[m] = torch.from_numpy(start), torch.from_numpy(length)
        # "c" (copy on write): torch warns of arrays that it may not write; nothing writes these.
        flat = np.memmap(folder / f"{m}.f16", dtype=np.float16, mode="c")
        features[m] = torch.from_numpy(flat.reshape(-1, dim))
        table = table.append_column(FEATURE_COLUMNS[m], _there(length))

    labels = split_labels(table, store, split, config.task)
    ids, spec = table[ID].to_pylist(), LabelSpec.load(store)
    speakers = _speakers(table)
    return UtteranceTensors(ids, features, starts, lengths, labels, spec, speakers, mapped=True)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same `lock`."""
    make_folder(lock.parent)
    try:
        file = open(lock, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise WriteError(lock, error.strerror or str(error)) from error
    with file:
        # Some network file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_vectors(
    folder: Path,
    store: Path,
    rows: pc.Expression,
    ids: list[str],
    shapes: dict[Modality, Shape],
) -> None:
    """Per modality a file of all vectors, in the order in which the store is read, and where each
    sample's begin and how many they are, int64 [2, N] in the order of `ids`.

    Raises InputError if the disk has too little room for the whole.
    """
    row_of = {name: i for i, name in enumerate(ids)}
    where = {m: np.zeros((2, len(ids)), dtype=np.int64) for m in shapes}
    written = dict.fromkeys(shapes, 0)
    done = size = 0

    with contextlib.ExitStack() as stack:
        files = {m: stack.enter_context(open(folder / f"{m}.f16", "wb")) for m in shapes}
        for table in _tables(store, rows, [FEATURE_COLUMNS[m] for m in shapes]):
            into = [row_of[name] for name in table[ID].to_pylist()]
            for m, (longest, dim, cut) in shapes.items():
                vectors, length = join_sequences(sequences(table, m), m, dim, longest, cut=cut)
                where[m][:, into] = written[m] + length.cumsum() - length, length
                written[m] += len(vectors) - 1
                size += files[m].write(vectors[:-1].tobytes())
            done += len(into)
            # What a job that seems stuck is at; and said here, it counts as getting on.
            at_step(f"writing {done} of {len(ids)} samples to {folder.parent}")
            _check_room(folder, size, done, len(ids))
        for m, (_, dim, _) in shapes.items():
            files[m].write(bytes(2 * dim))

    for m, numbers in where.items():
        np.save(folder / f"{m}.rows.npy", numbers)


def _check_room(folder: Path, size: int, done: int, rows: int) -> None:
    """Raise InputError if `size` bytes of the first `done` of all `rows` tell that the rest will
    not fit."""
    left = size * (rows - done) // max(done, 1)
    free = shutil.disk_usage(folder).free
    if left > free:
        raise InputError(
            f"train.cache: the split's features take about {(size + left) / 2**30:.1f} GiB, and "
            f"the disk of {folder.parent} has {(free + size) / 2**30:.1f} GiB for them; set "
            "LFMIM_CACHE to a folder on a larger disk (one that all nodes see serves all), or "
            "shorten the sequences (model.max_audio, model.max_vision, model.max_text)"
        )


def _tables(store: Path, rows: pc.Expression, columns: list[str]) -> Iterator[pa.Table]:
    """The store's `rows`, a few at a time, in no particular order; of an object store a part at a
    time."""
    if is_remote(store):
        yield from _fetched(store, rows, [ID, *columns])
        return

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


def _fetched(store: Path, rows: pc.Expression, columns: list[str]) -> Iterator[pa.Table]:
    """`_tables` of an object store: the wait for one part is spent on the next ones."""

    def fetch(part: str) -> pa.Table:
        return open_parts([part]).to_table(columns=columns, filter=rows)

    with reaching(store), ThreadPoolExecutor(PARTS_AHEAD) as pool:
        coming: deque[Future[pa.Table]] = deque()
        for part in part_files(store):
            if len(coming) == PARTS_AHEAD:
                yield coming.popleft().result()
            coming.append(pool.submit(fetch, part))
        while coming:
            yield coming.popleft().result()
