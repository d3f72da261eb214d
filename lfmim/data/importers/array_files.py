"""Arrays by utterance, in whatever file they lie: .npy, .npz, .safetensors, tables, data sets of
Hugging Face."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import safetensors

from lfmim.data.importers.dump import trim
from lfmim.data.tables import read_rows
from lfmim.schema import ID, SPLIT, InputError

KINDS = (
    "a folder of <id>.npy, an .npy with a row per row of --source, an .npz or .safetensors with an "
    "array per id, a table (.parquet, .csv, .jsonl) with a column 'id', or a data set's folder of "
    ".arrow or .parquet"
)
GIVEN = "arrays:"
"""How the encoder's name begins of a modality that was given as arrays: nothing here can compute it
from a video."""
ENCODER_KEY = b"encoder"
"""Key in a Parquet file's metadata that says what computed its arrays."""
SPLIT_FOLDERS = {"train": "train", "validation": "valid", "valid": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """What a file holds, read an utterance at a time."""

    path: Path
    names: Sequence[str]
    load: Callable[[str], Any]
    """Utterance -> its array-like value; None if the file says that it has none."""
    where: Callable[[str], str]
    """Utterance -> the place in the file, for messages."""
    encoder: str = ""
    """What computed them, if the file says so."""

    def sequence(self, name: str, dim: int = 0) -> np.ndarray | None:
        """float32 [T, D] of an utterance, a vector [D] as [1, D]; None if it is absent or empty.
        Raises InputError for anything else, and for a width other than `dim` (0: any)."""
        value = self.load(name)
        if value is None or (isinstance(value, float) and value != value):
            return None
        x = _numbers(value)
        if x is None or x.ndim not in (1, 2):
            shape = "" if x is None else f" but of shape {list(x.shape)}"
            raise InputError(f"{self.where(name)}: no array [T, D] or [D] of numbers{shape}")

        x = x[None] if x.ndim == 1 else x
        if not x.size:
            return None
        if dim and x.shape[1] != dim:
            raise InputError(
                f"{self.where(name)}: width {x.shape[1]}, shape {list(x.shape)}, where those "
                f"before it have {dim}"
            )
        return x


def open_arrays(path: Path, ids: Sequence[str]) -> ArrayFile:
    """Open a file or folder of arrays; `ids` are those of the utterances in order, which only an
    .npy needs. Raises InputError."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    try:
        if path.is_dir() and any(path.rglob("*.npy")):
            return _folder(path)
        if path.suffix == ".npy":
            return _rows_of_array(path, ids)
        if path.suffix == ".npz":
            archive = np.load(path, allow_pickle=False)
            return ArrayFile(path, archive.files, archive.__getitem__, _key(path))
        if path.suffix == ".safetensors":
            tensors = safetensors.safe_open(path, framework="numpy")
            names: list[str] = tensors.keys()  # type: ignore[no-untyped-call]
            return ArrayFile(path, names, tensors.get_tensor, _key(path))
        if path.is_dir() or path.suffix in (".parquet", ".csv", ".jsonl"):
            return _table(path)
    except InputError:
        raise
    # What numpy, pyarrow and safetensors raise for damaged files.
    except (OSError, ValueError, EOFError, pa.ArrowException, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    raise InputError(f"{path}: unknown kind of arrays; give {KINDS}")


def read_dataset(path: Path) -> pd.DataFrame:
    """Columns of numbers and text of a data set that `datasets` saved (a folder of .arrow files, or
    of such folders, one per split) or of a folder of Parquet files; numbers of classes become their
    names. Raises InputError."""
    table = _dataset(path)
    kept = [f.name for f in table.schema if not pa.types.is_nested(f.type)]
    frame = pd.DataFrame({c: pd.Series(table[c].to_pylist(), dtype=object) for c in kept})

    described = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    for column, feature in described.get("info", {}).get("features", {}).items():
        if column in frame and isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature["names"]
            # -1 is how `datasets` says that a label is not known.
            frame[column] = [None if v is None or v < 0 else names[v] for v in frame[column]]
    return frame


def _folder(path: Path) -> ArrayFile:
    files = {p.relative_to(path).with_suffix("").as_posix(): p for p in sorted(path.rglob("*.npy"))}

    def load(name: str) -> Any:
        try:
            # allow_pickle: an array of objects is a pickle, so reading it would run what it names.
            return np.load(files[name], allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{files[name]}: no array of numbers ({error})") from error

    return ArrayFile(path, list(files), load, lambda name: str(files[name]))


def _rows_of_array(path: Path, ids: Sequence[str]) -> ArrayFile:
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    if whole.ndim not in (2, 3) or len(whole) != len(ids):
        raise InputError(
            f"{path}: shape {list(whole.shape)} where [{len(ids)}, D] or [{len(ids)}, T, D] is "
            "expected: a row per utterance, in the order of --source"
        )
    place = {name: i for i, name in enumerate(ids)}

    def load(name: str) -> Any:
        x = np.asarray(whole[place[name]])
        # Utterances differ in length, so in one array they are padded.
        return trim(x, leading=False) if x.ndim == 2 else x

    return ArrayFile(path, list(ids), load, lambda name: f"{path}: row {place[name] + 1}")


def _table(path: Path) -> ArrayFile:
    encoder = ""
    if path.is_dir():
        frame = _dataset(path).to_pandas()
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        encoder = (table.schema.metadata or {}).get(ENCODER_KEY, b"").decode()
        frame = table.to_pandas()
    else:
        frame = read_rows(str(path), (ID,))
    if ID not in frame:
        raise InputError(f"{path}: column 'id' is missing; found: {', '.join(map(str, frame))}")

    names = [str(v).strip() for v in frame[ID]]
    place = {name: i for i, name in enumerate(names)}
    if len(place) != len(names):
        row = next(i for i, name in enumerate(names) if place[name] != i)
        raise InputError(f"{path}: row {row + 1}, column 'id': {names[row]!r} is there twice")
    others = [c for c in frame if c != ID]
    lists = [c for c in others if any(isinstance(v, list | np.ndarray) for v in frame[c].head(50))]
    if len(lists) > 1:
        raise InputError(f"{path}: several columns hold arrays ({', '.join(lists)}); keep one")

    if lists:
        (column,) = lists
        values = frame[column].tolist()
        return ArrayFile(
            path,
            names,
            lambda name: values[place[name]],
            lambda name: f"{path}: row {place[name] + 1}, column '{column}'",
            encoder,
        )

    numbers = frame[others].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    empty = frame[others].isna().to_numpy() | (frame[others] == "").to_numpy()
    bad = np.argwhere(np.isnan(numbers) & ~empty)
    if len(bad):
        row, at = bad[0]
        raise InputError(
            f"{path}: row {row + 1}, column '{others[at]}': {frame[others[at]][row]!r} is no number"
        )
    where = f"columns '{others[0]}' to '{others[-1]}'" if others else "no column of numbers"
    return ArrayFile(
        path,
        names,
        lambda name: None if empty[place[name]].all() else numbers[place[name]],
        lambda name: f"{path}: row {place[name] + 1}, {where}",
        encoder,
    )


def _dataset(path: Path) -> pa.Table:
    """All rows of a data set's folder; of folders named after splits with the column 'split'."""
    folders = {p: SPLIT_FOLDERS.get(p.name, "") for p in path.iterdir() if p.is_dir()}
    parts = {path: "", **{p: s for p, s in sorted(folders.items()) if s}}
    tables = []

    for folder, split in parts.items():
        for file in sorted([*folder.glob("*.arrow"), *folder.glob("*.parquet")]):
            if file.suffix == ".parquet":
                table = pq.read_table(file)
            else:
                with pa.memory_map(str(file)) as source, ipc.open_stream(source) as stream:
                    table = stream.read_all()
            if split and SPLIT not in table.column_names:
                table = table.append_column(SPLIT, pa.array([split] * len(table), pa.string()))
            tables.append(table)

    if not tables:
        raise InputError(f"{path}: no .arrow or .parquet file there; give {KINDS}")
    return pa.concat_tables(tables, promote_options="default")


def _numbers(value: Any) -> np.ndarray | None:
    # pandas gives a list of lists as an array of arrays.
    with contextlib.suppress(TypeError, ValueError):
        if isinstance(value, np.ndarray) and value.dtype == object:
            value = [np.asarray(row, dtype=np.float32) for row in value]
        return np.asarray(value, dtype=np.float32)
    return None


def _key(path: Path) -> Callable[[str], str]:
    return lambda name: f"{path}: array '{name}'"
