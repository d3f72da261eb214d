"""The published CHERMA features -> feature store.

`{train,dev,test}.json` lists of {"audio_file": "X.wav", "txt_label", "audio_label", "visual_label",
"video_label"}; features in `text/<split>/X.npy`, `audio/<split>/X.npy`, `visual/<split>/X.mp4.npy`.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.dump import (
    CLEANING,
    ERROR,
    ImportReport,
    check_new,
    clean,
    trim,
    write_store,
)
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    LABEL_COLUMNS,
    SPLIT,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
    default_labels,
)
from lfmim.storage import local_path, output_folder
from lfmim.text_files import decode, parse_json

FILES = {"train": "train", "dev": "valid", "test": "test"}
"""Name in the dump -> split."""
LABELS = {
    "text": "txt_label",
    "audio": "audio_label",
    "vision": "visual_label",
    "multimodal": "video_label",
}
FOLDERS = {
    Modality.TEXT: ("text", ".npy"),
    Modality.AUDIO: ("audio", ".npy"),
    Modality.VISION: ("visual", ".mp4.npy"),
}


def import_cherma(source: Path, store: Path) -> ImportReport:
    """Read the folder `source` a file at a time; write `store`. `dev` becomes `valid`.

    All-zero vectors at the end are padding. A missing file is an absent modality; a damaged one
    quarantines its row. Raises InputError naming file, row and field.
    """
    check_new(store)

    report = ImportReport(str(source))
    entries = _entries(source, report)
    if not entries:
        raise InputError(f"{source}: no {', '.join(f'{f}.json' for f in FILES)} with entries there")
    dims = {m: d for m in Modality if (d := _width(source, entries, m))}
    if not dims:
        raise InputError(
            f"{source}: no feature file of an entry there; expected for example "
            + str(_path(source, Modality.TEXT, entries[0]))
        )

    # Filled by _rows, file by file as they are read: a pass for hashing alone would read the dump
    # twice. So the spec can only be made after the last row.
    hashes = {m: hashlib.sha256() for m in dims}

    write_store(
        store,
        dims,
        ["dump_split"],
        _rows(source, entries, dims, hashes, report),
        len(entries),
        report,
        lambda: _spec(dims, hashes),
    )
    return report


def _entries(source: Path, report: ImportReport) -> list[dict[str, Any]]:
    """Rows without features; what a file or a field of another name may hold is noted."""
    out: list[dict[str, Any]] = []
    unread: Counter[str] = Counter()
    seen: dict[str, str] = {}

    for name, split in FILES.items():
        path = source / f"{name}.json"
        if not path.is_file():
            continue

        for row, entry in enumerate(_listed(path), start=1):
            where = f"{path}: row {row}"
            key = _key(entry, where)
            if key in seen:
                raise InputError(f"{where}, field 'audio_file': duplicate, first in {seen[key]}")
            seen[key] = where

            labels = {
                LABEL_COLUMNS[h]: default_labels().parse(
                    entry.get(f), where=f"{where}, field '{f}'"
                )
                for h, f in LABELS.items()
            }
            out.append({ID: key, SPLIT: split, "dump_split": name, **labels})
            unread.update(set(entry) - {"audio_file", "video_file", *LABELS.values()})

    # Told, not refused: the rest can be used, but labels under a name that is not known here would
    # be lost in silence.
    report.notes += [
        f"field '{field}' of {n} entries was not read: its name is not known here"
        for field, n in sorted(unread.items())
    ]
    report.notes += [
        f"{path.name} was not read: the files known are {', '.join(f'{f}.json' for f in FILES)}"
        for path in sorted(source.glob("*.json"))
        if path.stem not in FILES
    ]

    if out and not any(row[column] for row in out for column in LABEL_COLUMNS.values()):
        report.notes.append(
            f"no label is there (fields looked for: {', '.join(LABELS.values())}), so no model can "
            "be trained on this store as it is"
        )

    return out


def _listed(path: Path) -> list[Any]:
    try:
        listed = parse_json(decode(path.read_bytes(), str(path))[0])
    # It is a ValueError, too, and says more than the message below.
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(listed, list):
        raise InputError(f"{path}: a list of entries is expected")
    return listed


def _key(entry: Any, where: str) -> str:
    audio = entry.get("audio_file") if isinstance(entry, dict) else None
    if not isinstance(audio, str) or not audio:
        raise InputError(f"{where}, field 'audio_file': missing")
    # The name becomes part of paths that are read.
    if Path(audio).name != audio or "\\" in audio or "\0" in audio:
        raise InputError(
            f"{where}, field 'audio_file': {audio!r} leaves the dump; give a plain file name"
        )

    # Features of all three modalities are named after it, the frames' too; `video_file` names no
    # feature file.
    return audio.removesuffix(".wav")


def _path(source: Path, modality: Modality, entry: dict[str, Any]) -> Path:
    folder, ending = FOLDERS[modality]
    return source.joinpath(folder, str(entry["dump_split"]), f"{entry[ID]}{ending}")


def _width(source: Path, entries: list[dict[str, Any]], modality: Modality) -> int:
    for path in (p for e in entries if (p := _path(source, modality, e)).is_file()):
        try:
            # Mapped, so that only the header is read.
            return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[1])
        # A damaged file says nothing of the others' width; _rows quarantines its row.
        except (ValueError, OSError, EOFError, IndexError):
            continue
    return 0


def _rows(
    source: Path,
    entries: list[dict[str, Any]],
    dims: dict[Modality, int],
    hashes: dict[Modality, Any],
    report: ImportReport,
) -> Iterator[dict[str, Any]]:
    for entry in entries:
        row = dict(entry)

        for m, dim in dims.items():
            path = _path(source, m, entry)
            try:
                content = path.read_bytes()
            # No file is how the dump says that the modality is absent.
            except FileNotFoundError:
                continue
            except OSError as error:
                row[ERROR] = f"{m}: the file cannot be read ({error.strerror})"
                break

            # allow_pickle: an array of objects is a pickle, so reading it would run what it names.
            # MemoryError: a damaged header may state any shape.
            try:
                x = np.asarray(np.load(io.BytesIO(content), allow_pickle=False), dtype=np.float32)
            except (ValueError, TypeError, OSError, EOFError, MemoryError):
                row[ERROR] = f"{m}: the file is no array of numbers"
                break
            if x.ndim != 2 or x.shape[1] != dim:
                row[ERROR] = f"{m}: shape {list(x.shape)} where [T, {dim}] is expected"
                break

            # With the id: the same files under exchanged names are another corpus.
            hashes[m].update(entry[ID].encode() + b"\0" + content)
            cleaned = clean(x, m, report)
            # CHERMA is padded at the end only: zeros before are data.
            kept = trim(cleaned, leading=False)
            report.padding[m] += len(x) - len(kept)
            row[FEATURE_COLUMNS[m]] = kept if len(kept) else None

        yield row


def _spec(dims: dict[Modality, int], hashes: dict[Modality, Any]) -> FeatureSpec:
    # Which encoders made the dump is not in it; the hash of a modality's files in place of theirs
    # makes a model of one dump refuse another.
    encoders = {
        m.value: EncoderSpec(
            name=f"cherma:{FOLDERS[m][0]}",
            revision="",
            dim=dim,
            max_length=0,
            weights_sha256=hashes[m].hexdigest(),
        )
        for m, dim in dims.items()
    }

    return FeatureSpec(
        encoders=encoders,
        sampling={"imported": "cherma", **CLEANING},
        library_versions={"numpy": np.__version__},
    )


@register_importer("cherma")
def cherma(*, source: str, store: str) -> list[str]:
    """The published CHERMA features -> feature store.

    Args:
        source: folder with train.json, dev.json, test.json, text/, audio/, visual/.
        store: folder of the feature store to make.
    """
    given, made = local_path(source, "--source"), output_folder(store, "--store")
    return written(import_cherma(given, made).lines(), store)
