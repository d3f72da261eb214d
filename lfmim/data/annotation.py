"""Raw annotations -> labels: the paper's voting procedure (§3.1), its discards and the annotators'
agreement."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import HEADS, ID, LABEL_COLUMNS, InputError, default_labels

MODALITY, ANNOTATOR, LABEL = "modality", "annotator", "label"
FIRST, MOST = 3, 4
"""Annotators asked first, and at most."""

Votes = dict[str, dict[str, list[str]]]
"""id -> head -> emotions in the order in which they were given."""


@dataclasses.dataclass(frozen=True)
class Decision:
    """The label, or None and the reason for which the sample is discarded."""

    label: str | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`labels`: id and the four label columns of the samples kept. `discarded`: id, modality,
    votes, reason, a row for each undecided label. `kappa`: Fleiss' kappa per head over `rated`
    samples; NaN where undefined."""

    labels: pd.DataFrame
    discarded: pd.DataFrame
    kappa: dict[str, float]
    rated: dict[str, int]
    samples: int


def decide(votes: Sequence[str]) -> Decision:
    """One label by the paper's majority vote; `votes` in the order of asking.

    3:0 decides and 1:1:1 discards whatever a fourth says; 2:1 asks the fourth: 3:1 decides, 2:2 and
    2:1:1 discard.
    """
    if len(votes) < FIRST:
        return Decision(None, f"{len(votes)} of {FIRST} annotators" if votes else "not annotated")

    # A table may hold a fourth vote where none was due: it must neither undo the 3:0 nor rescue the
    # 1:1:1 of the first three.
    (label, most), *_ = Counter(votes[:FIRST]).most_common()
    if most == FIRST:
        return Decision(label)
    if most == 1:
        return Decision(None, "1:1:1")

    if len(votes) < MOST:
        return Decision(None, "2:1 without a fourth annotator")
    if votes[MOST - 1] == label:
        return Decision(label)
    return Decision(None, "2:2" if votes[MOST - 1] in votes[:FIRST] else "2:1:1")


def read_votes(path: str) -> Votes:
    """A long table `id, modality, annotator, label`; rows of a sample and modality in the order of
    asking.

    An empty label counts as no vote. Raises InputError naming file, row and field.
    """
    frame = read_rows(path, (ID, MODALITY, ANNOTATOR, LABEL))
    votes: Votes = {}
    seen: set[tuple[str, str, str]] = set()

    for row, record in enumerate(frame.to_dict("records"), start=1):
        where = f"{path}: row {row}"
        sample, head, annotator = (
            cell(record[ID]),
            cell(record[MODALITY]).lower(),
            cell(record[ANNOTATOR]),
        )
        for field, value in ((ID, sample), (ANNOTATOR, annotator)):
            if not value:
                raise InputError(f"{where}, field '{field}': empty")
        if head not in HEADS:
            raise InputError(
                f"{where}, field '{MODALITY}': {head!r} is not one of {', '.join(HEADS)}"
            )

        # Told twice, one person's opinion would pass for a majority.
        if (sample, head, annotator) in seen:
            raise InputError(
                f"{where}, field '{ANNOTATOR}': {annotator!r} has labelled {head} of {sample!r} "
                "before"
            )
        seen.add((sample, head, annotator))

        emotion = default_labels().parse(record[LABEL], where=f"{where}, field '{LABEL}'")
        # The entry is made for an empty label, too: a sample that nobody labelled is then discarded
        # with a reason instead of being missing from both tables.
        given = votes.setdefault(sample, {}).setdefault(head, [])
        if emotion is not None:
            given.append(emotion)
        if len(given) > MOST:
            raise InputError(
                f"{where}: {head} of {sample!r} has more than {MOST} votes; the procedure asks no "
                "more"
            )
    return votes


def vote(votes: Votes) -> Outcome:
    """Decide every label; a sample is kept only if all four of its labels are decided (paper
    §3.1)."""
    kept: list[dict[str, str]] = []
    discarded: list[dict[str, str]] = []

    for sample, given in votes.items():
        decisions = {head: decide(given.get(head, [])) for head in HEADS}
        undecided = {head: d for head, d in decisions.items() if d.label is None}
        discarded += [
            {ID: sample, MODALITY: head, "votes": " ".join(given.get(head, [])), "reason": d.reason}
            for head, d in undecided.items()
        ]
        if not undecided:
            # `or ""` is for the type checker alone: every label is decided here.
            kept.append(
                {ID: sample, **{LABEL_COLUMNS[h]: d.label or "" for h, d in decisions.items()}}
            )

    # Fleiss' kappa needs equally many ratings of every sample, and a fourth exists for disputed
    # ones only.
    first = {h: [g[h][:FIRST] for g in votes.values() if len(g.get(h, [])) >= FIRST] for h in HEADS}
    return Outcome(
        labels=pd.DataFrame(kept, columns=[ID, *LABEL_COLUMNS.values()]),
        discarded=pd.DataFrame(discarded, columns=[ID, MODALITY, "votes", "reason"]),
        kappa={h: agreement(rated) for h, rated in first.items()},
        rated={h: len(rated) for h, rated in first.items()},
        samples=len(votes),
    )


def agreement(ratings: Sequence[Sequence[str]]) -> float:
    """Fleiss' kappa of [samples, annotators] emotions (statsmodels); NaN if there is nothing to
    agree on: no sample, or one emotion throughout."""
    classes = default_labels().classes
    codes = np.array([[classes.index(e) for e in row] for row in ratings], dtype=np.int64)

    # With one emotion throughout, chance alone agrees always and kappa is 0/0.
    if not codes.size or (codes == codes.flat[0]).all():
        return float("nan")

    table, _ = aggregate_raters(codes, n_cat=len(classes))
    return float(fleiss_kappa(table))
