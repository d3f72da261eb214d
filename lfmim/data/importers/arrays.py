"""Arrays that users computed themselves -> feature store, alone or joined to one that is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lfmim.data.importers.array_files import GIVEN, ArrayFile, open_arrays, read_dataset
from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import Labeller
from lfmim.data.importers.dump import (
    CLEANING,
    ImportReport,
    check_new,
    clean,
    quarantined_rows,
    write_store,
)
from lfmim.data.manifest import (
    RESERVED_COLUMNS,
    cell,
    manifest_labels,
    passthrough_columns,
    read_manifest,
)
from lfmim.data.store import open_part, part_files, passthrough_of, table_to_rows
from lfmim.data.tables import read_rows
from lfmim.schema import (
    DEFAULT_LABELS,
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPLIT,
    SPLITS,
    TEXT,
    VIDEO,
    EncoderSpec,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.storage import input_path, local_path, output_folder


class _Source:
    """A modality's arrays, checked as they are read; their hash grows with them."""

    def __init__(self, modality: Modality, file: ArrayFile, ids: Sequence[str]) -> None:
        self.modality, self.file = modality, file
        self.names = set(file.names)
        self.hash = hashlib.sha256()
        self.dim = next(
            (x.shape[1] for i in ids if i in self.names and (x := file.sequence(i)) is not None), 0
        )
        if not self.dim:
            raise InputError(
                f"{file.path}: holds no array of an id that is known, for example {ids[0]!r}; it "
                f"has {', '.join(map(repr, list(file.names)[:3])) or 'nothing'}"
            )

    def read(self, name: str, report: ImportReport) -> np.ndarray | None:
        """float16 [T, D]; None if absent. Raises InputError."""
        x = self.file.sequence(name, self.dim) if name in self.names else None
        if x is None:
            return None
        self.hash.update(name.encode() + b"\0" + x.tobytes())
        return clean(x, self.modality, report)

    def encoder(self, given: str) -> EncoderSpec:
        # Which code computed them only the user knows: a name says that two files are comparable,
        # and without one no other file is.
        name = given or self.file.encoder
        named = hashlib.sha256(f"{name}\0{self.modality}\0{self.dim}".encode())
        return EncoderSpec(
            name=f"{GIVEN}{name or self.file.path.name}",
            revision="",
            weights_sha256=(named if name else self.hash).hexdigest(),
            dim=self.dim,
            max_length=0,
        )


def import_arrays(
    source: Path,
    store: Path,
    files: Mapping[Modality, Path],
    *,
    labels: str = "",
    encoder: str = "",
) -> ImportReport:
    """A table of ids, with the columns of a manifest as far as there are any, and a file of arrays
    per modality -> `store`.

    `encoder` names what computed the arrays. An utterance that a file lacks lacks the modality. Of
    a cell of another width, or without numbers, InputError names row and column.
    """
    check_new(store)
    labeller = Labeller(labels, DEFAULT_LABELS)
    rows, extra = _utterances(source, labeller)
    ids = [row[ID] for row in rows]
    report = ImportReport(str(source), notes=labeller.lines())
    sources = _open(files, ids, report)

    def filled() -> Iterator[dict[str, Any]]:
        for row in rows:
            yield row | {FEATURE_COLUMNS[m]: s.read(row[ID], report) for m, s in sources.items()}

    write_store(
        store,
        {m: s.dim for m, s in sources.items()},
        extra,
        filled(),
        len(rows),
        report,
        lambda: FeatureSpec(
            encoders={m.value: s.encoder(encoder) for m, s in sources.items()},
            sampling={"imported": "arrays", **CLEANING},
            library_versions={"numpy": np.__version__},
        ),
        labeller.spec,
    )
    return report


def import_join(
    store: Path,
    output: Path,
    files: Mapping[Modality, Path],
    *,
    manifest: str = "",
    encoder: str = "",
) -> list[str]:
    """The feature store `store` with arrays in place of, or beside, its modalities and with the
    splits, labels and other columns of `manifest` -> `output`; returns lines of a report.

    A modality that no row of the store has is left out. Rows that `manifest` does not list are left
    out and counted. Raises InputError.
    """
    if store.resolve() == output.resolve():
        raise InputError(f"--output {output}: is the store that is read; name another")
    check_new(output)
    spec, parts = FeatureSpec.load(store), part_files(store)
    ids = [i for p in parts for i in open_part(p).read([ID])[ID].to_pylist()]
    if not ids:
        raise InputError(f"{store}: the feature store holds no rows")

    report = ImportReport(str(store))
    sources = _open(files, ids, report)
    kept = _present(store, [m for m in spec.dims if m not in sources])
    for m in (m for m in spec.dims if m not in kept):
        report.notes.append(f"{m}: {'replaced' if m in sources else 'no row has it: left out'}")
    dims = {m: sources[m].dim if m in sources else spec.dims[m] for m in (*kept, *sources)}
    if not dims:
        raise InputError(f"{store}: no row has any modality, and no arrays are given")

    new, extra = _columns(store, manifest, set(ids), report)
    write_store(
        output,
        {m: dims[m] for m in Modality if m in dims},
        extra,
        _joined(store, kept, sources, new, report),
        len(new) if new is not None else len(ids),
        report,
        lambda: FeatureSpec(
            encoders={m.value: spec.encoders[m.value] for m in kept}
            | {m.value: s.encoder(encoder) for m, s in sources.items()},
            sampling=spec.sampling,
            library_versions=spec.library_versions,
        ),
        manifest_labels(manifest) if manifest else LabelSpec.load(store),
    )
    return report.lines()


def _open(
    files: Mapping[Modality, Path], ids: Sequence[str], report: ImportReport
) -> dict[Modality, _Source]:
    sources = {m: _Source(m, open_arrays(path, ids), ids) for m, path in files.items()}
    known = set(ids)
    for m, source in sources.items():
        if unknown := len(source.names - known):
            report.notes.append(f"{m}: {unknown} arrays belong to no id that is known")
    return sources


def _utterances(source: Path, labeller: Labeller) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of a store without features, and the columns that are carried through."""
    frame = read_dataset(source) if source.is_dir() else read_rows(str(source), (ID,))
    if ID not in frame:
        raise InputError(f"{source}: column 'id' is missing; found: {', '.join(map(str, frame))}")
    # Arrays in the table itself are features, which their own options name.
    arrays = [c for c in frame if any(isinstance(v, list | np.ndarray) for v in frame[c].head(50))]
    frame = frame.drop(columns=arrays)
    extra = passthrough_columns(frame)
    for column in (c for c in extra if c in RESERVED_COLUMNS):
        raise InputError(
            f"{source}: column '{column}' has a name the feature store uses itself; rename it"
        )

    rows: list[dict[str, Any]] = []
    first: dict[str, int] = {}
    for number, record in enumerate(frame.to_dict("records"), start=1):
        where = f"{source}: row {number}"
        row: dict[str, Any] = {c: cell(record.get(c)) for c in (ID, VIDEO, TEXT, SPLIT, SPEAKER)}
        if not row[ID] or first.setdefault(row[ID], number) != number:
            raise InputError(f"{where}, field 'id': {row[ID]!r} is empty or there twice")
        if row[SPLIT] and row[SPLIT] not in SPLITS:
            raise InputError(
                f"{where}, field 'split': {row[SPLIT]!r} is not one of {', '.join(SPLITS)}"
            )
        for column in LABEL_COLUMNS.values():
            row[column] = labeller(record.get(column), f"{where}, field '{column}'")
        for column in extra:
            value = record[column]
            if column in SENTIMENT_COLUMNS.values():
                row[column] = labeller.spec.parse_sentiment(
                    value, where=f"{where}, field '{column}'"
                )
            else:
                row[column] = None if value is None else cell(value)
        rows.append(row)
    return rows, extra


def _present(store: Path, modalities: Sequence[Modality]) -> list[Modality]:
    def there(path: str, m: Modality) -> bool:
        column = open_part(path).read([FEATURE_COLUMNS[m]])[0]
        return bool(column.null_count < len(column))

    return [m for m in modalities if any(there(path, m) for path in part_files(store))]


def _columns(
    store: Path, manifest: str, ids: set[str], report: ImportReport
) -> tuple[dict[str, dict[str, Any]] | None, list[str]]:
    """The manifest's columns by id (None without one), and the columns to carry through."""
    extra = passthrough_of(store)
    if not manifest:
        return None, extra

    frame = read_manifest(manifest, need_media=False)
    more = passthrough_columns(frame)
    new = {}
    for record in frame.to_dict("records"):
        row = {k: record[k] for k in (SPLIT, SPEAKER, *LABEL_COLUMNS.values())}
        for column in more:
            value = record[column]
            plain = value is None or column in SENTIMENT_COLUMNS.values()
            row[column] = value if plain else str(value)
        new[record[ID]] = row

    report.notes += [
        f"{n} rows {what}"
        for n, what in (
            (len(ids - set(new)), "of the store are not in the manifest: left out"),
            (len(set(new) - ids), "of the manifest are not in the store"),
        )
        if n
    ]
    return {k: v for k, v in new.items() if k in ids}, list(dict.fromkeys([*extra, *more]))


def _joined(
    store: Path,
    kept: Sequence[Modality],
    sources: Mapping[Modality, _Source],
    new: Mapping[str, dict[str, Any]] | None,
    report: ImportReport,
) -> Iterator[dict[str, Any]]:
    left = set(FEATURE_COLUMNS.values()) - {FEATURE_COLUMNS[m] for m in kept}
    for path in part_files(store):
        table = open_part(path).read()
        for row in table_to_rows(table.drop_columns([c for c in table.column_names if c in left])):
            if new is not None and row[ID] not in new:
                continue
            row |= new[row[ID]] if new is not None else {}
            yield row | {FEATURE_COLUMNS[m]: s.read(row[ID], report) for m, s in sources.items()}

    for row in quarantined_rows(store):
        if new is None or row[ID] in new:
            yield row


def _files(text: str, audio: str, vision: str) -> dict[Modality, Path]:
    given = dict(zip(Modality, (text, audio, vision), strict=True))
    return {m: local_path(name, f"--{m}") for m, name in given.items() if name}


@register_importer("arrays")
def arrays(
    *,
    source: str,
    store: str,
    text: str = "",
    audio: str = "",
    vision: str = "",
    labels: str = "",
    encoder: str = "",
) -> list[str]:
    """Arrays of your own, with a table of ids and labels -> feature store.

    Args:
        source: table with id and, as far as there are any, the other columns of a manifest; or the
            folder of a Hugging Face data set.
        store: folder of the feature store to make.
        text: arrays of the text: a folder of <id>.npy, an .npy, .npz, .safetensors, a table or a
            data set's folder (docs/datasets/arrays.md).
        audio: arrays of the sound.
        vision: arrays of the picture.
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        encoder: what computed the arrays; stores of the same name are taken as comparable. Empty:
            only with the same arrays.
    """
    given, made = local_path(source, "--source"), output_folder(store, "--store")
    files = _files(text, audio, vision)
    if not files:
        raise InputError("give one or more of --text, --audio, --vision")
    report = import_arrays(given, made, files, labels=labels, encoder=encoder)
    return written(report.lines(), store)


@register_importer("join")
def join(
    *,
    store: str,
    output: str,
    text: str = "",
    audio: str = "",
    vision: str = "",
    manifest: str = "",
    encoder: str = "",
) -> list[str]:
    """A feature store with a modality of arrays, or with the splits and labels of another manifest
    -> new feature store.

    Args:
        store: the feature store; it stays as it is.
        output: folder of the feature store to make.
        text: arrays of the text (docs/datasets/arrays.md).
        audio: arrays of the sound.
        vision: arrays of the picture.
        manifest: manifest of the same ids whose splits, labels and other columns are taken.
        encoder: what computed the arrays; stores of the same name are taken as comparable. Empty:
            only with the same arrays.
    """
    given, made = input_path(store, "--store"), output_folder(output, "--output")
    files = _files(text, audio, vision)
    if not files and not manifest:
        raise InputError("give one or more of --text, --audio, --vision, --manifest")
    lines = import_join(given, made, files, manifest=manifest, encoder=encoder)
    return written(lines, output)
