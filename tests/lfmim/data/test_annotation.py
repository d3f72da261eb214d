"""The voting procedure of the paper's §3.1 and the annotators' agreement."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lfmim.data.annotation import agreement, decide, read_votes, vote
from lfmim.schema import HEADS, InputError
from tests.support.toy import EMOTIONS


@pytest.mark.parametrize(
    ("votes", "label", "reason"),
    [
        ("aaa", "a", ""),
        ("aaab", "a", ""),
        ("abc", None, "1:1:1"),
        ("abca", None, "1:1:1"),
        ("aaba", "a", ""),
        ("abaa", "a", ""),
        ("baaa", "a", ""),
        ("aabb", None, "2:2"),
        ("aabc", None, "2:1:1"),
        ("aab", None, "2:1 without a fourth annotator"),
        ("aa", None, "2 of 3 annotators"),
        ("", None, "not annotated"),
    ],
)
def test_every_case_of_the_procedure(votes, label, reason):
    decision = decide(list(votes))
    assert (decision.label, decision.reason) == (label, reason)


@given(st.lists(st.sampled_from("abcd"), min_size=4, max_size=4))
def test_three_of_at_most_four_decide(votes):
    """The paper: '3 annotators out of 3 or 4 agree on each label', in any order of the first
    three."""
    best, count = Counter(votes).most_common(1)[0]
    decisions = {decide([*first, votes[3]]).label for first in itertools.permutations(votes[:3])}
    assert decisions == {best if count >= 3 else None}


ROWS = "id,modality,annotator,label\n"


def table(tmp_path, rows: list[tuple[str, str, str, str]]) -> str:
    path = tmp_path / "votes.csv"
    path.write_text(ROWS + "".join(",".join(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def all_heads(sample: str, labels: list[str], heads=HEADS) -> list[tuple[str, str, str, str]]:
    return [(sample, h, f"r{i}", label) for h in heads for i, label in enumerate(labels)]


def test_a_sample_is_kept_only_if_all_four_labels_are_decided(tmp_path):
    rows = all_heads("kept", ["anger", "anger", "愤怒"])
    rows += all_heads("fourth", ["fear", "anger", "fear", "fear"])
    rows += all_heads("lost", ["fear"] * 3, HEADS[1:]) + all_heads(
        "lost", ["fear", "anger", "sadness"], HEADS[:1]
    )
    rows += all_heads("partial", ["fear"] * 3, HEADS[:3])
    rows += all_heads("empty", ["fear", "fear", ""])
    outcome = vote(read_votes(table(tmp_path, rows)))
    assert outcome.labels.values.tolist() == [["kept", *["anger"] * 4], ["fourth", *["fear"] * 4]]
    reasons = {(r.id, r.modality): r.reason for r in outcome.discarded.itertuples()}
    assert reasons == {
        ("lost", "text"): "1:1:1",
        ("partial", "multimodal"): "not annotated",
        **{("empty", h): "2 of 3 annotators" for h in HEADS},
    }
    assert outcome.samples == len(set(outcome.labels["id"]) | set(outcome.discarded["id"])) == 5
    assert outcome.rated == {"text": 4, "audio": 4, "vision": 4, "multimodal": 3}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", "text", "r", "bored")], "row 1, field 'label'"),
        ([("a", "smell", "r", "anger")], "row 1, field 'modality'"),
        ([("", "text", "r", "anger")], "row 1, field 'id'"),
        ([("a", "text", "r", "anger")] * 2, "row 2, field 'annotator'"),
        (
            [("a", "text", f"r{i}", "anger") for i in range(5)],
            "row 5: text of 'a' has more than 4 votes",
        ),
    ],
)
def test_bad_tables_are_named(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_votes(table(tmp_path, rows))


def test_kappa_of_a_worked_example():
    """Fleiss (1971) by hand: 2 samples, 3 raters: [3, 0] and [1, 2]; P = (1 + 1/3)/2, Pe = (4/6)² +
    (2/6)²."""
    kappa = agreement([["anger"] * 3, ["anger", "fear", "fear"]])
    p, chance = (1 + 1 / 3) / 2, (4 / 6) ** 2 + (2 / 6) ** 2
    assert kappa == pytest.approx((p - chance) / (1 - chance))
    assert agreement([[e] * 3 for e in EMOTIONS]) == pytest.approx(1)
    assert math.isnan(agreement([]))
    assert math.isnan(agreement([["fear"] * 3] * 4))
