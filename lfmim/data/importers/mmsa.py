"""MMSA and MMSA-FET feature pickles (CH-SIMS, CH-SIMS v2, MOSI, MOSEI) -> feature store.

`{"train" | "valid" | "test": {"id", "raw_text", "text" [N, L, D], "audio" [N, T, D], "vision" [N,
T, D], "text_bert" [N, 3, L], "audio_lengths", "vision_lengths", "regression_labels",
"regression_labels_T" ...}}`, arrays or lists.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
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
    file_sha256,
    trim,
    write_store,
)
from lfmim.data.importers.restricted_pickle import read_pickle
from lfmim.schema import (
    FEATURE_COLUMNS,
    ID,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPLIT,
    SPLITS,
    TEXT,
    EncoderSpec,
    FeatureSpec,
    InputError,
    Modality,
)
from lfmim.storage import local_path, output_folder
from lfmim.text_files import whole

SCORES = {
    MULTIMODAL: "regression_labels",
    **{m.value: f"regression_labels_{m.value[0].upper()}" for m in Modality},
}
"""Head -> key of its sentiment scores."""
OTHER_NAMES = {
    "dev": "valid",
    "val": "valid",
    "validation": "valid",
    **{name.removeprefix("regression_"): name for name in SCORES.values()},
}
"""What other published pickles call a split, or scores (`labels`, `labels_T`: MulT's)."""
FIELDS = (
    ID,
    *Modality,
    "raw_text",
    "text_bert",
    "audio_lengths",
    "vision_lengths",
    *SCORES.values(),
)
"""What is read of a split."""
MOSI_RANGE = 3.0
"""MOSI and MOSEI are scored from -3 to 3."""


def import_mmsa(source: Path, store: Path) -> ImportReport:
    """Read the pickle `source`, which must fit into memory, through the restricted unpickler; write
    `store`.

    True lengths come from `text_bert`'s mask, `audio_lengths` and `vision_lengths`; without them
    all-zero vectors at both ends are padding. Raises InputError naming file, split and field.
    """
    check_new(store)

    data, report = read_pickle(source), ImportReport(str(source))
    splits = _known_names(data, SPLITS, report) if isinstance(data, dict) else {}
    if not splits:
        raise InputError(
            f"{source}: not an MMSA pickle: it has none of the keys {', '.join(SPLITS)}"
        )
    # The pickle fills the memory as it is; this frees what no field of a split keeps.
    del data
    splits = {s: _check_split(splits[s], s, report) for s in SPLITS if s in splits}
    dims = {m: d for m in Modality if (d := _width(source, splits, m))}
    if not dims:
        raise InputError(f"{source}: none of the features {', '.join(Modality)} is there")

    report.sha256 = file_sha256(source)
    scale = _score_scale(source, splits, report)
    _check_ids(source, splits)

    scores = [
        SENTIMENT_COLUMNS[h] for h, key in SCORES.items() if any(key in d for d in splits.values())
    ]

    write_store(
        store,
        dims,
        ["video_id", "clip_id", *scores],
        _rows(splits, dims, scale, report),
        sum(len(d[ID]) for d in splits.values()),
        report,
        lambda: _spec(source, report, dims),
    )
    return report


def _known_names(
    content: dict[Any, Any], names: Collection[str], report: ImportReport, place: str = ""
) -> dict[str, Any]:
    """What `content` holds under `names` and other names of the same; the rest is noted if it holds
    rows."""
    out: dict[str, Any] = {}
    for key, value in content.items():
        name = OTHER_NAMES.get(key, key) if isinstance(key, str) else ""
        # Of a field, the proper name wins and the other is told as not read. Of a split it is an
        # error below: `dev` beside `valid` is rows, and leaving some out is no choice of ours.
        if name != key and name in content and names is FIELDS:
            name = ""

        if name in out:
            raise InputError(
                f"{report.source}: {place}{key!r} is not the only key for '{name}'; keep one of "
                "them"
            )

        if name in names:
            out[name] = value
            if name != key:
                report.notes.append(f"{place}{key!r} was read as '{name}'")
        elif rows := _rows_in(value):
            report.notes.append(
                f"{place}{key!r} ({rows} entries) was not read: its name is not known here"
            )
    return out


def _rows_in(value: Any) -> int:
    """How many entries a split or a field holds; 0 for what is no list, array or dictionary of
    such."""
    if isinstance(value, dict):
        return max((_rows_in(v) for v in value.values()), default=0)
    if isinstance(value, np.ndarray):
        return int(value.shape[0]) if value.ndim else 0
    # Not text, though it has a length: a remark in the pickle is no data that goes unread.
    return len(value) if isinstance(value, list | tuple | set | frozenset) else 0


def _check_split(split: Any, name: str, report: ImportReport) -> dict[str, Any]:
    where = f"{report.source}, split '{name}'"
    if not isinstance(split, dict) or ID not in split:
        raise InputError(f"{where}: a dictionary with the key 'id' is expected")

    fields = _known_names(split, FIELDS, report, f"split '{name}': ")
    fields[ID] = [_text(v) for v in np.asarray(fields[ID], dtype=object).reshape(-1)]
    n = len(fields[ID])

    for field, value in fields.items():
        if not (isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)):
            raise InputError(f"{where}, field '{field}': an array or list is expected")
        if len(value) != n:
            raise InputError(f"{where}, field '{field}': {len(value)} entries for {n} ids")
    return fields


def _text(value: Any) -> str:
    # Ids may be bytes or arrays of one element, of which str() would make "b'x'" and "['x']".
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return whole(
        value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    ).strip()


def _check_ids(source: Path, splits: Mapping[str, dict[str, Any]]) -> None:
    seen: dict[str, str] = {}
    for split, data in splits.items():
        for i, key in enumerate(data[ID], start=1):
            if not key or key in seen:
                raise InputError(
                    f"{source}, split '{split}', entry {i}, field 'id': "
                    + (f"{key!r} is in split '{seen[key]}' already" if key else "empty")
                )
            seen[key] = split


def _width(source: Path, splits: Mapping[str, dict[str, Any]], modality: Modality) -> int:
    for split, data in splits.items():
        if modality in data and len(data[modality]):
            x = _sequence(data[modality][0])
            if x is None or not x.shape[1]:
                raise InputError(
                    f"{source}, split '{split}', field '{modality}': entry 1 is no array [T, D]"
                )
            return int(x.shape[1])
    return 0


def _sequence(value: Any) -> np.ndarray | None:
    """[T, D] of numbers; one vector [D] is a sequence of one. None if it is neither."""
    try:
        x = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    x = x[None] if x.ndim == 1 else x
    return x if x.ndim == 2 else None


def _score_scale(source: Path, splits: Mapping[str, dict[str, Any]], report: ImportReport) -> float:
    # One scale for the whole file: split by split, one whose scores happen to lie within [-1, 1]
    # would be left as it is beside others divided by 3.
    largest, count = 0.0, 0
    for split, data in splits.items():
        for key in (k for k in SCORES.values() if k in data):
            try:
                values = np.asarray(data[key], dtype=np.float64).reshape(-1)
            except (TypeError, ValueError) as error:
                raise InputError(
                    f"{source}, split '{split}', field '{key}': not numbers ({error})"
                ) from error
            if len(values) != len(data[ID]):
                raise InputError(
                    f"{source}, split '{split}', field '{key}': one score per entry is expected"
                )

            data[key] = values
            largest = max(largest, float(np.nanmax(np.abs(values), initial=0.0)))
            count += int(np.isfinite(values).sum())

    if not count:
        report.notes.append(
            f"no sentiment score is there (keys looked for: {', '.join(SCORES.values())}), so no "
            "model can be trained on this store as it is"
        )

    if largest > MOSI_RANGE:
        raise InputError(
            f"{source}: a sentiment score of {largest:g}; known scales are [-1, 1] and [-3, 3]"
        )
    if largest > 1:
        report.notes.append("sentiment scores are from -3 to 3 there and were divided by 3")
        return MOSI_RANGE
    return 1.0


def _rows(
    splits: dict[str, dict[str, Any]],
    dims: Mapping[Modality, int],
    scale: float,
    report: ImportReport,
) -> Iterator[dict[str, Any]]:
    for split, data in splits.items():
        for i, key in enumerate(data[ID]):
            video, _, clip = key.rpartition("$_$")
            row: dict[str, Any] = {
                ID: key,
                SPLIT: split,
                "video_id": video or None,
                "clip_id": clip if video else None,
            }

            row[TEXT] = _text(data["raw_text"][i]) if "raw_text" in data else ""
            for head, column in SENTIMENT_COLUMNS.items():
                score = float(data[SCORES[head]][i]) / scale if SCORES[head] in data else math.nan
                row[column] = None if math.isnan(score) else score

            for m in (m for m in dims if m in data):
                x = _sequence(data[m][i])
                if x is None or x.shape[1] != dims[m]:
                    row[ERROR] = f"{m}: not an array [T, {dims[m]}] of numbers"
                    break

                # Before the padding is looked for, which is told by zeros: SIMS has -inf and NaN in
                # its audio.
                x = clean(x, m, report)
                try:
                    kept = _without_padding(x, m, data, i)
                except (TypeError, ValueError, IndexError):
                    row[ERROR] = f"{m}: its length or mask is no number"
                    break
                report.padding[m] += len(x) - len(kept)
                row[FEATURE_COLUMNS[m]] = kept if len(kept) else None

            yield row


def _without_padding(x: np.ndarray, modality: Modality, data: dict[str, Any], i: int) -> Any:
    # text_bert is BERT's input: token ids, attention mask, segments. Where the text features were
    # aligned to another length, the mask says nothing about them.
    if modality is Modality.TEXT and "text_bert" in data:
        mask = np.asarray(data["text_bert"][i], dtype=np.float32)
        if mask.ndim == 2 and len(mask) == 3 and mask.shape[1] == len(x):
            return x[mask[1] > 0]

    lengths = data.get(f"{modality}_lengths")
    if lengths is None:
        return trim(x)

    n = min(max(int(np.asarray(lengths[i]).reshape(-1)[0]), 0), len(x))
    front, back = x[:n], x[len(x) - n :]
    # MMSA-FET pads at the end, older files at the beginning. A length does not say which; where the
    # zeros are does.
    kept = back if not front.any() or (not x[: len(x) - n].any() and x[n:].any()) else front
    return kept if kept.any() else x[:0]


def _spec(source: Path, report: ImportReport, dims: Mapping[Modality, int]) -> FeatureSpec:
    # Which encoders made a dump is not in it; its hash in place of theirs makes a model of one dump
    # refuse another.
    encoders = {
        m.value: EncoderSpec(
            name=f"mmsa:{source.name}",
            revision="",
            weights_sha256=report.sha256,
            dim=dim,
            max_length=0,
        )
        for m, dim in dims.items()
    }

    return FeatureSpec(
        encoders=encoders,
        sampling={"imported": "mmsa", **CLEANING},
        library_versions={"numpy": np.__version__},
    )


@register_importer("mmsa")
def mmsa(*, source: str, store: str) -> list[str]:
    """An MMSA or MMSA-FET pickle -> feature store; it is read without running anything it names.

    Args:
        source: the pickle (CH-SIMS, CH-SIMS v2, MOSI, MOSEI).
        store: folder of the feature store to make.
    """
    given, made = local_path(source, "--source"), output_folder(store, "--store")
    return written(import_mmsa(given, made).lines(), store)
