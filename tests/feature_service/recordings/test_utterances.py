"""Where a recording is cut: by its transcript or its voice, within limits of length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_service.recordings.speech import HOP, RATE, Heard
from feature_service.recordings.transcripts import Cue
from feature_service.recordings.utterances import (
    GAP,
    GAP_S,
    MAX_SPEECH_S,
    MAX_WINDOW_S,
    SPEECH,
    Utterance,
    split,
    utterances_of,
    windows,
)
from lfmim.schema import InputError


def heard(speech, duration=60.0, quiet=()):
    loudness = np.full(round(duration * RATE / HOP), 0.1, np.float32)
    for at in quiet:
        loudness[round((at - 0.2) * RATE / HOP) : round((at + 0.2) * RATE / HOP)] = 0.001
    return Heard(speech, loudness, 0.0, duration)


def test_speech_by_voice_and_gaps_between():
    found = utterances_of(heard([(1.0, 4.0), (5.5, 8.0), (30.0, 40.0)], 41.0), None, where="t")
    assert [(u.kind, u.start_s, round(u.end_s, 3)) for u in found] == [
        (SPEECH, 1.0, 4.0),
        (SPEECH, 5.5, 8.0),
        *((GAP, pytest.approx(8 + 22 / 3 * k), round(8 + 22 / 3 * (k + 1), 3)) for k in range(3)),
        (SPEECH, 30.0, 40.0),
    ]
    assert {u.speaker for u in found} == {"unknown"}


def test_a_transcript_comes_first_but_speech_outside_it_is_no_gap():
    cues = [Cue(1.0, 3.0, "a", "Ann"), Cue(2.0, 4.0, "b", "Bob"), Cue(11.5, 13.2, "c")]
    found = utterances_of(heard([(1.1, 3.9), (7.0, 8.0)], 13.0), cues, where="t")
    assert found == [
        Utterance(1.0, 3.0, SPEECH, "a", "Ann"),
        Utterance(2.0, 4.0, SPEECH, "b", "Bob"),
        Utterance(4.0, 7.0, GAP),
        Utterance(8.0, 11.5, GAP),
        Utterance(11.5, 13.0, SPEECH, "c"),
    ]


def test_another_recordings_transcript_is_refused():
    with pytest.raises(InputError, match=r"talk.srt: a cue ends at 90.0 s, and the recording at"):
        utterances_of(heard([]), [Cue(80.0, 90.0, "a")], where="talk.srt")


def test_long_speech_is_split_where_it_is_quietest():
    parts = split(2.0, 40.0, heard([], quiet=(5.0, 12.0, 22.3, 36.0)))
    assert [b for _, b in parts] == pytest.approx([12.0, 22.3, 36.0, 40.0], abs=0.2)


def test_every_part_of_a_long_cue_has_its_text():
    found = utterances_of(heard([], 30.0), [Cue(0.0, 29.0, "long", "Ann")], where="t")
    assert len(found) == 3
    assert {(u.text, u.speaker) for u in found} == {("long", "Ann")}


stretches = st.lists(st.tuples(st.floats(0, 500), st.floats(0.1, 60)), max_size=8)


@given(stretches, st.floats(1, 600))
def test_windows_are_what_is_left_within_limits(parts, duration):
    spoken = [(a, min(a + n, duration)) for a, n in parts if a < duration]
    found = windows(spoken, duration)
    assert all(0 <= a < b <= duration and b - a <= MAX_WINDOW_S + 1e-6 for a, b in found)
    assert all(b <= c + 1e-9 for (_, b), (c, _) in itertools.pairwise(found))
    assert not any(a < d - 1e-9 and c < b - 1e-9 for a, b in found for c, d in spoken)
    rest = duration - sum(b - a for a, b in found)
    union, at = 0.0, 0.0
    for a, b in sorted(spoken):
        union, at = union + max(0, b - max(a, at)), max(at, b)
    assert rest <= union + GAP_S * (len(spoken) + 1) + 1e-6


@given(st.floats(0, 100), st.floats(0.1, 200))
def test_parts_follow_each_other_within_limits(start, length):
    parts = split(start, start + length, heard([], 300.0, quiet=(50.0, 61.0)))
    assert parts[0][0] == start
    assert parts[-1][1] == start + length
    assert all(b == c for (_, b), (c, _) in itertools.pairwise(parts))
    assert all(0 < b - a <= MAX_SPEECH_S + 1e-6 for a, b in parts)
