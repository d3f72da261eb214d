"""Manifests: tables of utterances or tar shards, checked as a whole before any work starts, some
rows at a time."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lfmim.data.formats import read_csv, read_jsonl, read_parquet
from lfmim.data.shards import Scan, expand_shards, in_threads, parse_member, read_shards
from lfmim.schema import (
    AUDIO_STREAMS,
    DURATION,
    END,
    FACE_FOUND,
    FEATURE_COLUMNS,
    FRAME_INDICES,
    FRAME_READER,
    ID,
    LABEL_COLUMNS,
    MEDIA_SHA256,
    SENTIMENT_COLUMNS,
    SPEAKER,
    SPLIT,
    SPLITS,
    START,
    TEXT,
    VIDEO,
    VIDEO_STREAMS,
    InputError,
    LabelSpec,
    default_labels,
    fitting_labels,
    read_label_spec,
)
from lfmim.storage import as_path, file_system, listing, reaching

READERS: dict[str, Callable[..., Iterator[pd.DataFrame]]] = {
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
KNOWN_COLUMNS = (ID, VIDEO, TEXT, SPLIT, SPEAKER, *LABEL_COLUMNS.values())
RESERVED_COLUMNS = {
    *FEATURE_COLUMNS.values(),
    FACE_FOUND,
    FRAME_INDICES,
    FRAME_READER,
    DURATION,
    MEDIA_SHA256,
    VIDEO_STREAMS,
    AUDIO_STREAMS,
    "stage",
    "error",
    *(f"{raw}{end}" for raw in ("frames", "crops", "waveform") for end in ("", "_shape")),
    "waveform_rate",
    "gpu_percent",
    "uncut_tokens",
}
"""The store's own columns and those a row carries through the pipeline."""


BATCH_ROWS = 8192
"""Rows that are held and checked at a time."""


class Batch(NamedTuple):
    """Checked rows of a manifest, in its order."""

    frame: pd.DataFrame
    """As `read_reported` returns them, with the columns that these rows have."""
    places: list[str]
    """Where each row is, for messages."""
    words: Counter[str]
    """The words of the label columns as they were given, and how often."""


def read_manifest(
    path: str, *, need_media: bool = True, labels: LabelSpec | None = None
) -> pd.DataFrame:
    """`read_reported` without its report."""
    return read_reported(path, need_media=need_media, labels=labels)[0]


def read_reported(
    path: str, *, need_media: bool = True, labels: LabelSpec | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Read and validate a manifest or tar shards (`*.tar`, also as glob or `{000..009}`); local
    path or fsspec URL.

    Returns a frame with `id` (str, unique), `video` (absolute path, URL or shard member, "" if
    absent), `text` ("" if absent), `split` ("" if absent), `speaker`, the four `label_*` columns
    (a class of `labels`, by default those of `manifest_labels`, or None), the `sentiment_*` columns
    that are there (float or None), `start_s` and `end_s` if one is there (float seconds: the row is
    that stretch of its video; None: the whole) and the other columns as they are; and the lines of
    `label_report`. Relative videos are resolved against the manifest and may not leave its folder.
    Raises InputError naming file, row (1-based, header not counted; for shards the sample) and
    field. `need_media=False` skips the check that local videos exist.
    """
    labels = labels or manifest_labels(path)
    batches = list(read_batches(path, need_media=need_media, labels=labels))
    frame = batches[0].frame
    if len(batches) > 1:
        frame = pd.concat([b.frame for b in batches], ignore_index=True)
        # a column that some batches lack
        frame = frame.astype(object).where(frame.notna(), None)
        _check_ids(frame[ID], [place for b in batches for place in b.places], path)
    return frame, label_report(sum((b.words for b in batches), Counter()), labels)


def check_first_rows(path: str, labels: LabelSpec, *, need_media: bool = True) -> None:
    """Raise what `read_reported` would for the first rows, of a small manifest for all: in seconds,
    before a cluster is started. Of tar shards the first is looked at."""
    for _ in read_batches(path, labels=labels, need_media=need_media, scan=map):
        break


def manifest_state(path: str) -> str:
    """A digest that differs once the manifest does: of a table by its bytes, of tar shards, which
    hold the media, by name, size and when they were written. Raises InputError if there is none."""
    digest = hashlib.blake2b(digest_size=16)
    if path.lower().endswith(".tar"):
        for shard in map(as_path, expand_shards(path)):
            digest.update(repr(listing(shard.parent, shard.name)).encode())
        return digest.hexdigest()

    fs, name = file_system(path)
    with reaching(path), fs.open(name, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_batches(
    path: str, *, labels: LabelSpec, need_media: bool = True, scan: Scan = in_threads
) -> Iterator[Batch]:
    """`read_reported` by batches, at least one: for manifests of more rows than memory has room
    for.

    Of two rows with one id, only those within a batch are refused: `refuse_duplicates` is for the
    others. Tar shards are read by `scan`, and no batch holds rows of two of them.
    """
    found: set[str] = set()
    row = 0
    for frame, places in _raw_batches(path, labels, scan):
        found |= set(frame.columns)
        # Of JSONL, whose rows have each their own columns, one is missing where no row has it.
        if path.lower().endswith(".jsonl") and len(frame) and VIDEO not in found:
            frame[VIDEO] = None
        _check_columns(path, frame.columns)
        if frame.empty:
            continue
        batch = _checked(path, frame, places, labels, need_media)
        row += len(frame)
        yield batch

    _check_columns(path, sorted(found))
    if not row:
        raise InputError(f"{path}: the manifest has no rows")


def _raw_batches(
    path: str, labels: LabelSpec, scan: Scan
) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    """Rows as they are written, and where each is."""
    if path.lower().endswith(".tar"):
        for rows, places in read_shards(path, labels, scan):
            for i in range(0, len(rows), BATCH_ROWS):
                frame = pd.DataFrame(rows[i : i + BATCH_ROWS], dtype=object)
                yield frame, places[i : i + BATCH_ROWS]
        return

    row = 1
    for frame in _frames(path, "manifest", (*READERS, ".tar"), BATCH_ROWS):
        yield frame, [f"{path}: row {i}" for i in range(row, row + len(frame))]
        row += len(frame)


def _check_columns(path: str, columns: Iterable[str]) -> None:
    names = list(columns)
    for column in (ID, VIDEO):
        if column not in names:
            raise InputError(
                f"{path}: column '{column}' is missing; found: {', '.join(map(str, names))}"
            )


def _checked(
    path: str, frame: pd.DataFrame, places: list[str], labels: LabelSpec, need_media: bool
) -> Batch:
    frame = frame.where(frame.notna(), None)
    for column in passthrough_columns(frame):
        # The prefixes are those under which stages report their times and nodes in a row.
        if column in RESERVED_COLUMNS or column.startswith(("seconds_", "node_")):
            raise InputError(
                f"{path}: column '{column}' has a name the feature store uses itself; rename it"
            )

    frame[ID] = [cell(v) for v in frame[ID]]
    _check_ids(frame[ID], places, path)
    for column in (TEXT, SPLIT, SPEAKER):
        frame[column] = [cell(v) for v in frame[column]] if column in frame else ""
    for place, value in zip(places, frame[SPLIT], strict=True):
        if value and value not in SPLITS:
            raise InputError(f"{place}, field 'split': {value!r} is not one of {', '.join(SPLITS)}")

    given = [c for c in LABEL_COLUMNS.values() if c in frame]
    words = Counter(cell(v).lower() for c in given for v in frame[c])
    for column in LABEL_COLUMNS.values():
        values = frame[column] if column in frame else [None] * len(frame)
        try:
            frame[column] = _parsed(values, column, places, labels.parse)
        except InputError as error:
            # The words of a batch: which shipped labels would read all of them.
            fitting = fitting_labels(set(words))
            hint = f". The words here fit --labels {' or '.join(fitting)}" if fitting else ""
            raise InputError(f"{error}{hint}") from error
    for column in (c for c in SENTIMENT_COLUMNS.values() if c in frame):
        frame[column] = _parsed(frame[column], column, places, labels.parse_sentiment)

    if START in frame or END in frame:
        frame[START], frame[END] = _stretches(frame, places)
    frame[VIDEO] = [
        _resolve_video(path, place, cell(value), need_media)
        for place, value in zip(places, frame[VIDEO], strict=True)
    ]
    # Where a scheme's library is missing, no clip of it can be read; others may be.
    for url in {v.partition("://")[0]: v for v in frame[VIDEO] if "://" in v}.values():
        file_system(url)
    return Batch(frame, places, words)


def label_report(words: Counter[str], labels: LabelSpec) -> list[str]:
    """Lines for people on what `labels` makes of the `words` of a manifest's label columns: how
    many cells its merges and drops change, word by word; [] if none."""
    merged = [
        f"{n} x '{w}' counted as {labels.merges[w]}"
        for w, n in words.most_common()
        if w in labels.merges
    ]
    dropped = [f"{n} x '{w}' left empty" for w, n in words.most_common() if w in labels.dropped]
    return [f"labels {labels.name}: {line}" for line in (*merged, *dropped)]


def labels_file(manifest: str) -> str:
    """Where a manifest's LabelSpec lies, if it has one: `clips.csv` -> `clips.labels.yaml`."""
    return manifest.rsplit(".", 1)[0] + ".labels.yaml"


def manifest_labels(manifest: str, given: str = "", default: LabelSpec | None = None) -> LabelSpec:
    """The LabelSpec of a manifest: the `given` one (a shipped name or a YAML file), else that of
    its `labels_file`, else `default` (None: CHERMA's). Raises InputError."""
    if given:
        return read_label_spec(given)

    beside = labels_file(manifest)
    with reaching(beside):
        fs, name = file_system(beside)
        if not fs.exists(name):
            return default or default_labels()
        text = fs.cat_file(name)
    return LabelSpec.from_yaml(text, source=beside)


def refuse_duplicates(path: str, batches: Iterable[Batch], suspects: Callable[[str], bool]) -> None:
    """Raise InputError for the first id in `batches` that was there before, of those that
    `suspects` holds of (an id may share its hash with another and be none)."""
    ids, places = [], []
    for batch in batches:
        for value, place in zip(batch.frame[ID], batch.places, strict=True):
            if suspects(value):
                ids.append(value)
                places.append(place)
    _check_ids(ids, places, path)


def _check_ids(ids: Iterable[str], places: list[str], path: str) -> None:
    # Ids are what a rerun is compared by: with two rows of one id, the second would be taken for
    # done once the first is stored.
    first: dict[str, str] = {}
    for place, value in zip(places, ids, strict=True):
        if not value:
            raise InputError(f"{place}, field 'id': empty")
        if value in first:
            before = first[value].removeprefix(f"{path}: ")
            raise InputError(f"{place}, field 'id': duplicate id {value!r} (first in {before})")
        first[value] = place


def _parsed(
    values: Iterable[object], column: str, places: list[str], parse: Callable[..., object]
) -> pd.Series:
    parsed = [
        parse(value, where=f"{place}, field '{column}'")
        for place, value in zip(places, values, strict=True)
    ]
    # As objects: pandas' text and float types turn None into NaN, which is neither an emotion nor,
    # to Arrow, a missing score.
    return pd.Series(parsed, dtype=object)


def _stretches(frame: pd.DataFrame, places: list[str]) -> tuple[pd.Series, pd.Series]:
    """The columns start_s and end_s in seconds; of a row, both or neither."""
    bounds = {
        column: _parsed(frame.get(column, [None] * len(frame)), column, places, _seconds)
        for column in (START, END)
    }
    for place, start, end in zip(places, *bounds.values(), strict=True):
        if (start is None) != (end is None):
            there, lacks = (START, END) if end is None else (END, START)
            raise InputError(
                f"{place}, field '{lacks}': empty, while '{there}' is not; give both for a stretch "
                "of the video, neither for the whole"
            )
        if start is not None and not start < end:
            raise InputError(
                f"{place}, field '{END}': {end:g} is not behind '{START}', which is {start:g}"
            )
    return bounds[START], bounds[END]


def _seconds(value: object, *, where: str) -> float | None:
    text = cell(value)
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"{where}: {text!r} is not a number of seconds, 0 or more")
    return seconds


def read_frame(path: str, kind: str, formats: Sequence[str] = tuple(READERS)) -> pd.DataFrame:
    """A CSV, JSONL or Parquet file as objects. Raises InputError, which calls it `kind` and names
    possible `formats`, and says by row what is wrong."""
    (frame,) = _frames(path, kind, formats, sys.maxsize)
    return frame


def _frames(path: str, kind: str, formats: Sequence[str], rows: int) -> Iterator[pd.DataFrame]:
    """`read_frame` by frames of `rows` rows, at least one."""
    suffix = "." + path.rsplit(".", 1)[-1].lower()
    if suffix not in READERS:
        raise InputError(f"{path}: unknown {kind} format; use one of {', '.join(formats)}")

    try:
        with reaching(path):
            fs, name = file_system(path)
            with fs.open(name, "rb") as f:
                yield from READERS[suffix](f, path, rows)
    # It is a ValueError, and would be taken for one of pandas' below.
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except pd.errors.EmptyDataError as error:
        raise InputError(
            f"{path}: the {kind} is empty; it needs a header line and at least one row"
        ) from error
    # What pandas and pyarrow raise for malformed files (ArrowInvalid is a ValueError), and OSError
    # for what a file system says.
    except (TypeError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as {suffix[1:]}: {error}") from error


def cell(value: Any) -> str:
    """A cell as stripped text; missing -> ""."""
    # Only NaN differs from itself; math.isnan would refuse text.
    return "" if value is None or value != value else str(value).strip()


def _resolve_video(manifest: str, place: str, video: str, need_media: bool) -> str:
    where = f"{place}, field 'video'"
    if not video or "://" in video or parse_member(video):
        return video

    fs, manifest_path = file_system(manifest)
    if video.startswith("/"):
        resolved = video
    else:
        if ".." in video.split("/"):
            raise InputError(
                f"{where}: {video!r} leaves the manifest's folder; use an absolute path if that is "
                "meant"
            )
        folder = manifest_path.rsplit("/", 1)[0] if "/" in manifest_path else "."
        resolved = f"{folder}/{video}"

    # Whether remote media are there is not asked: a request per row before any work. Extraction
    # quarantines those that are not.
    if "://" in manifest and not video.startswith("/"):
        return str(fs.unstrip_protocol(resolved))
    if need_media and not os.path.isfile(resolved):
        raise InputError(f"{where}: no such file: {resolved}")
    return resolved


def passthrough_columns(frame: pd.DataFrame) -> list[str]:
    """Columns that not every manifest has; they are carried into the feature store, as text but for
    NUMBER_COLUMNS."""
    return [c for c in frame.columns if c not in KNOWN_COLUMNS]
