"""Corrections of predicted recordings, with the features that are kept beside them -> feature store
to train on."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
OTHER_BASE = (
    "Give as --base a store of the encoders and sampling that the recording was predicted with, "
    "such as the one that its model was trained on, or leave --base out."
)
OTHER_MODEL = "Import what each model has predicted into a store of its own."


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


@dataclasses.dataclass(frozen=True)
class _Row:
    """One corrected utterance: where its features are, and head -> what is said of it."""

    features: Path
    where: str
    said: dict[str, Correction]

    @property
    def media_sha256(self) -> str:
        return next(iter(self.said.values())).media_sha256


def import_corrections(
    source: Path, store: Path, *, base: Path | None = None, valid_share: float = 0.2
) -> list[str]:
    """Every *.corrections.jsonl in `source` and below, with the features beside it, -> `store`;
    returns lines of a report.

    A row is an utterance with at least one label; its other heads have none. All rows of a
    recording are in one split, `valid` in about `valid_share` of the recordings and else `train`,
    which follows from the recording alone. The rows of the store `base` come first, as they are.
    Where several files have a row and head, the latest holds. Raises InputError naming file, line
    and field.
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
    first = base or kept[0].features
    for one in kept:
        _check_features(one)
    spec, labels = FeatureSpec.load(first), LabelSpec.load(first)
    for one in kept:
        _check(one, spec, labels, first, remedy=OTHER_BASE if base else OTHER_MODEL)
    rows = _merged(kept, base)

    report = ImportReport(str(source))
    before: Counter[str] = _splits_of(base) if base else Counter()
    report.notes = _notes(found, rows, before, labels, valid_share)
    stores = [*([base] if base else []), *(one.features for one in kept)]
    columns = [c for folder in stores for c in passthrough_of(folder)]
    write_store(
        store,
        spec.dims,
        list(dict.fromkeys([*columns, START, END])),
        itertools.chain(
            _rows_of(base) if base else (), _corrected_rows(rows, labels, valid_share, report)
        ),
        before.total() + len(rows),
        report,
        lambda: spec,
        labels,
    )
    return report.lines()


def split_of(media_sha256: str, valid_share: float) -> str:
    """The split of a recording, whatever others there are: its hash is a number that is as likely
    to be anywhere."""
    return SPLITS[1] if int(media_sha256[:8], 16) < valid_share * 16**8 else SPLITS[0]


def _merged(found: Sequence[_Corrected], base: Path | None) -> dict[str, _Row]:
    """Id -> the corrected utterance, of all files. Raises InputError for a row that `base` has
    already, and for two utterances of one recording that two results number alike."""
    rows: dict[str, _Row] = {}
    there = stored_ids(base) if base else set()
    for one in found:
        for where, c in one.given:
            name = row_id(c.media_sha256, c.row)
            if name in there:
                raise InputError(
                    f"{where}: the row '{name}' is in --base {base} already, which was made of "
                    "corrections; give the store that they were added to"
                )
            row = rows.setdefault(name, _Row(one.features, where, {c.head: c}))
            start, end = next((o.start_s, o.end_s) for o in row.said.values())
            if max(abs(start - c.start_s), abs(end - c.end_s)) > SAME_S:
                raise InputError(
                    f"{where}: corrects another result of the recording than {row.where}: row "
                    f"{c.row} is {c.start_s} to {c.end_s} s here and {start} to {end} s there; "
                    "keep one of the two in --source"
                )
            # Of several who say something of one head. Times are of one format, so text sorts.
            row.said[c.head] = max(row.said.get(c.head, c), c, key=lambda o: o.when)
    return rows


def _check_features(one: _Corrected) -> None:
    if not (one.features / SPEC_FILE).is_file():
        raise InputError(
            f"{one.given[0][0]}: the features of the recording are not kept: no feature store "
            f"{one.features}; {AGAIN}, or take the file out of --source"
        )


def _check(
    one: _Corrected, spec: FeatureSpec, labels: LabelSpec, first: Path, *, remedy: str
) -> None:
    """Raise InputError for features and labels that are not those of the store `first`, and for a
    line that is not of the features beside it."""
    have, want = f"the store {one.features}", f"the store {first}"
    check_spec(FeatureSpec.load(one.features), spec, have=have, want=want, remedy=remedy)
    labels.check(LabelSpec.load(one.features), have=have, want=want)

    bounds = {}
    # A recording of which no row could be predicted has a store without parts.
    if part_files(one.features):
        table = read_table(one.features, [START, END])
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
    found: Sequence[_Corrected],
    rows: Mapping[str, _Row],
    before: Counter[str],
    labels: LabelSpec,
    valid_share: float,
) -> list[str]:
    """Lines of the report. Raises InputError if there is nothing to train on."""
    of_media = Counter(row.media_sha256 for row in rows.values())
    corrected: Counter[str] = Counter()
    for media, count in of_media.items():
        corrected[split_of(media, valid_share)] += count
    train, valid, _ = SPLITS
    if not (before + corrected)[train]:
        raise InputError(
            f"no row to train on: by --valid_share {valid_share:g} the {len(of_media)} corrected "
            "recordings are all for validation; lower it, correct more recordings, or give --base"
        )

    given = [c for row in rows.values() for c in row.said.values()]
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
    rows: Mapping[str, _Row], labels: LabelSpec, valid_share: float, report: ImportReport
) -> Iterator[dict[str, Any]]:
    unread = 0
    for features in dict.fromkeys(row.features for row in rows.values()):
        here = [name for name, row in rows.items() if row.features == features]
        table = read_table(features, where=pc.field(ID).isin(here))
        for row in table_to_rows(table):
            media, said = rows[row[ID]].media_sha256, rows[row[ID]].said.values()
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
