"""Corrections of predicted recordings, with the features that are kept beside them -> feature store
to train on."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lfmim.data.corrections import CORRECTIONS, FEATURES, Correction, read_corrections, row_id
from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.dump import ImportReport, check_new, quarantined_rows, write_store
from lfmim.data.store import (
    check_spec,
    open_part,
    part_files,
    passthrough_of,
    read_table,
    stored_ids,
    table_to_rows,
)
from lfmim.schema import (
    END,
    FEATURE_COLUMNS,
    HEADS,
    ID,
    LABEL_COLUMNS,
    MEDIA_SHA256,
    MULTIMODAL,
    SPEAKER,
    SPEC_FILE,
    SPLIT,
    SPLITS,
    START,
    FeatureSpec,
    InputError,
    LabelSpec,
    Modality,
)
from lfmim.storage import input_path, local_path, output_folder

NOBODY = (None, "", "unknown")
"""Speakers that are none."""
SAME_S = 0.01
"""Seconds by which a corrected utterance and the row of its features may differ."""
AGAIN = "predict the recording again with `lfmim predict --keep_features`"


@dataclasses.dataclass(frozen=True)
class _Corrected:
    """One file of corrections, and the features beside it."""

    file: Path
    features: Path
    said: list[tuple[str, Correction]]
    """File and line, and what stands there: the last word on each row and head."""

    @classmethod
    def read(cls, file: Path) -> _Corrected:
        lines = enumerate(read_corrections(file), start=1)
        last = {(c.media_sha256, c.row, c.head): (f"{file}: line {i}", c) for i, c in lines}
        features = file.with_name(file.name.removesuffix(CORRECTIONS) + FEATURES)
        return cls(file, features, list(last.values()))

    @property
    def given(self) -> list[tuple[str, Correction]]:
        """What was not taken back."""
        return [(where, c) for where, c in self.said if c.label is not None]

    @property
    def rows(self) -> dict[str, list[Correction]]:
        """Id of an utterance -> what is said of its heads."""
        rows: dict[str, list[Correction]] = {}
        for _, c in self.given:
            rows.setdefault(row_id(c.media_sha256, c.row), []).append(c)
        return rows


def import_corrections(
    source: Path, store: Path, *, base: Path | None = None, valid_share: float = 0.2
) -> list[str]:
    """Every *.corrections.jsonl in `source` and below, with the features beside it, -> `store`;
    returns lines of a report.

    A row is an utterance with at least one label; its other heads have none. All rows of a
    recording are in one split, `valid` in about `valid_share` of the recordings and else `train`,
    which follows from the recording alone. The rows of the store `base` come first, as they are.
    Raises InputError naming file, line and field.
    """
    if not 0 <= valid_share < 1:
        raise InputError(f"--valid_share {valid_share}: is not in [0, 1)")
    check_new(store)
    found = [_Corrected.read(file) for file in sorted(source.rglob(f"*{CORRECTIONS}"))]
    if not any(one.given for one in found):
        raise InputError(
            f"{source}: no *{CORRECTIONS} there or below that has a label; correct an utterance on "
            "the page of a recording first"
        )
    kept = [one for one in found if one.given]
    _check_apart(kept, base)

    first = base or kept[0].features
    for one in kept:
        _check_features(one)
    spec, labels = FeatureSpec.load(first), LabelSpec.load(first)
    for one in kept:
        _check(one, spec, labels, first)

    report = ImportReport(str(source))
    before: Counter[str] = _splits_of(base) if base else Counter()
    report.notes = _notes(found, before, labels, valid_share)
    stores = [*([base] if base else []), *(one.features for one in kept)]
    columns = [c for folder in stores for c in passthrough_of(folder)]
    write_store(
        store,
        spec.dims,
        list(dict.fromkeys([*columns, START, END])),
        itertools.chain(
            _rows_of(base) if base else (), _corrected_rows(kept, labels, valid_share, report)
        ),
        sum(before.values()) + sum(len(one.rows) for one in kept),
        report,
        lambda: spec,
        labels,
    )
    return report.lines()


def split_of(media_sha256: str, valid_share: float) -> str:
    """The split of a recording, whatever others there are: its hash is a number that is as likely
    to be anywhere."""
    return SPLITS[1] if int(media_sha256[:8], 16) < valid_share * 16**8 else SPLITS[0]


def _check_apart(found: Sequence[_Corrected], base: Path | None) -> None:
    """Raise InputError for a recording in two files, and for a row that `base` has already."""
    first: dict[str, Path] = {}
    there = stored_ids(base) if base else set()
    for one in found:
        for where, c in one.given:
            if first.setdefault(c.media_sha256, one.file) != one.file:
                raise InputError(
                    f"{where}: corrects the recording that {first[c.media_sha256]} corrects, by "
                    "another result; keep one of the two in --source"
                )
            if row_id(c.media_sha256, c.row) in there:
                raise InputError(
                    f"{where}: the row '{row_id(c.media_sha256, c.row)}' is in --base {base} "
                    "already, which was made of corrections; give the store that they were added to"
                )


def _check_features(one: _Corrected) -> None:
    if not (one.features / SPEC_FILE).is_file():
        raise InputError(
            f"{one.given[0][0]}: the features of the recording are not kept: no feature store "
            f"{one.features}; {AGAIN}, or take the file out of --source"
        )


def _check(one: _Corrected, spec: FeatureSpec, labels: LabelSpec, first: Path) -> None:
    """Raise InputError for features and labels that are not those of the store `first`, and for a
    line that is not of the features beside it."""
    have, want = f"the store {one.features}", f"the store {first}"
    check_spec(FeatureSpec.load(one.features), spec, have=have, want=want)
    labels.check(LabelSpec.load(one.features), have=have, want=want)

    rows = one.rows
    table = read_table(one.features, [START, END], where=pc.field(ID).isin(list(rows)))
    bounds = {row[ID]: (row.get(START), row.get(END)) for row in table.to_pylist()}
    for where, c in one.given:
        name = row_id(c.media_sha256, c.row)
        if name not in bounds:
            raise InputError(f"{where}: {one.features} has no row '{name}'; {AGAIN}")
        start, end = bounds[name]
        if start is None or max(abs(start - c.start_s), abs(end - c.end_s)) > SAME_S:
            raise InputError(
                f"{where}: is of {c.start_s} to {c.end_s} s, and row '{name}' of {one.features} of "
                f"{start} to {end} s: the recording was predicted otherwise since; correct the "
                "result of now, and take the line back or out"
            )
        if labels.parse(c.label, where=f"{where}, field 'label'") is None:
            raise InputError(
                f"{where}, field 'label': {c.label!r} is no class: the labels {labels.name!r} drop "
                "it"
            )


def _splits_of(base: Path) -> Counter[str]:
    return Counter(split or "" for split in read_table(base, [SPLIT])[SPLIT].to_pylist())


def _notes(
    found: Sequence[_Corrected], before: Counter[str], labels: LabelSpec, valid_share: float
) -> list[str]:
    """Lines of the report. Raises InputError if there is nothing to train on."""
    of_media = Counter(rows[0].media_sha256 for one in found for rows in one.rows.values())
    corrected: Counter[str] = Counter()
    for media, count in of_media.items():
        corrected[split_of(media, valid_share)] += count
    train, valid, _ = SPLITS
    if not (before + corrected)[train]:
        raise InputError(
            f"no row to train on: by --valid_share {valid_share:g} the {len(of_media)} corrected "
            "recordings are all for validation; lower it, correct more recordings, or give --base"
        )

    given = [c for one in found for _, c in one.given]
    heads = Counter(c.head for c in given)
    known = [c for c in given if c.predicted is not None]
    same = sum(labels.parse(c.label, where="") == c.predicted for c in known)
    notes = [
        f"{len(of_media)} recordings, {corrected.total()} corrected utterances",
        "rows by split: "
        + ", ".join(
            f"{split or 'no split'} {(before + corrected)[split]} ({corrected[split]} corrected)"
            for split in (*SPLITS, "")
            if (before + corrected)[split]
        ),
        "labels: " + ", ".join(f"{h} {heads[h]}" for h in HEADS if heads[h]),
        f"{len(known) - same} change what the head said, {same} confirm it, "
        f"{len(given) - len(known)} answer where it said nothing",
        f"{sum(not c.seen for c in given)} were given without the predictions being seen",
        f"{sum(len(one.said) - len(one.given) for one in found)} were taken back: left out",
    ]
    if not (before + corrected)[valid]:
        notes.append(
            "no row is in valid, by which training chooses its epoch: correct more recordings, "
            "raise --valid_share, or give --base"
        )
    return notes


def _rows_of(base: Path) -> Iterator[dict[str, Any]]:
    for part in part_files(base):
        yield from table_to_rows(open_part(part).read())
    yield from quarantined_rows(base)


def _corrected_rows(
    found: Sequence[_Corrected], labels: LabelSpec, valid_share: float, report: ImportReport
) -> Iterator[dict[str, Any]]:
    unread = 0
    for one in found:
        rows = one.rows
        table = read_table(one.features, where=pc.field(ID).isin(list(rows)))
        for row in table_to_rows(table):
            said = rows[row[ID]]
            media = said[0].media_sha256
            row |= {MEDIA_SHA256: media, SPLIT: split_of(media, valid_share)}
            # Of two recordings nobody knows whether one speaks in both: folds by speaker keep each
            # together at least.
            if row.get(SPEAKER) in NOBODY:
                row[SPEAKER] = f"recording-{media[:16]}"
            row |= dict.fromkeys(LABEL_COLUMNS.values())
            row |= {LABEL_COLUMNS[c.head]: labels.parse(c.label, where="") for c in said}
            unread += sum(
                c.head != MULTIMODAL and row.get(FEATURE_COLUMNS[Modality(c.head)]) is None
                for c in said
            )
            yield row
    if unread:
        report.notes.append(
            f"{unread} labels are of a modality that the row lacks: training passes over them"
        )


@register_importer("corrections")
def corrections(*, source: str, store: str, base: str = "", valid_share: float = 0.2) -> list[str]:
    """Corrections of predicted recordings, with their features -> feature store to train on.

    Args:
        source: folder with results of `lfmim predict --keep_features` that were corrected; those in
            folders below count as well.
        store: folder of the feature store to make.
        base: feature store whose rows come before them, such as the one that the model was trained
            on; empty: none.
        valid_share: share of the recordings, about, that is for validation, each as a whole.
    """
    given, made = local_path(source, "--source"), output_folder(store, "--store")
    if not given.is_dir():
        raise InputError(f"--source {source}: no such folder")
    named = input_path(base, "--base") if base else None
    lines = import_corrections(given, made, base=named, valid_share=valid_share)
    return written(lines, store)
