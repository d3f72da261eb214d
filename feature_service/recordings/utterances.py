"""A recording -> utterances: what is said by a transcript or by voice activity, and the silence
between, in which a face may still say something."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from feature_service.recordings.speech import HOP, RATE, Heard
from feature_service.recordings.transcripts import UNKNOWN, Cue
from lfmim.schema import InputError

SPEECH, GAP, LISTENER = "speech", "gap", "listener"
"""Kinds: somebody speaks; nobody does; the face of one who does not, while somebody speaks."""
MAX_SPEECH_S = 15.0
"""Longer speech is split at its quietest point."""
MIN_PART_S = 1.0
"""What splitting leaves at least."""
GAP_S = 2.0
"""Longer stretches without speech are gaps."""
MAX_WINDOW_S = 10.0
"""Longer gaps are divided evenly."""
ROUNDED_S = 1.0
"""Seconds that a transcript may end behind its recording."""


@dataclasses.dataclass(frozen=True, slots=True)
class Utterance:
    """A stretch of a recording in seconds from its start. `text` "": not known."""

    start_s: float
    end_s: float
    kind: str
    text: str = ""
    speaker: str = UNKNOWN


def utterances_of(heard: Heard, cues: Sequence[Cue] | None, *, where: str) -> list[Utterance]:
    """The utterances by their start: speech by the cues, or where there are none (None) as it was
    heard, and the gaps, in which neither is.

    A cue that is split has its whole text in every part: when each word was said is not known.
    Raises InputError naming `where` for a transcript that goes on after the recording's end.
    """
    if cues is None:
        speech = [Utterance(a, b, SPEECH) for a, b in heard.speech]
    else:
        speech = [_of_cue(cue, heard.duration_s, where) for cue in cues]
    parts = [
        dataclasses.replace(u, start_s=a, end_s=b)
        for u in speech
        for a, b in split(u.start_s, u.end_s, heard)
    ]
    # What a transcript leaves out may be speech all the same.
    spoken = [*heard.speech, *((u.start_s, u.end_s) for u in speech)]
    gaps = [Utterance(a, b, GAP) for a, b in windows(spoken, heard.duration_s)]
    return sorted([*parts, *gaps], key=lambda u: (u.start_s, u.end_s))


def _of_cue(cue: Cue, duration_s: float, where: str) -> Utterance:
    end = min(cue.end_s, duration_s)
    if cue.end_s > duration_s + ROUNDED_S or end <= cue.start_s:
        raise InputError(
            f"{where}: a cue ends at {cue.end_s:.1f} s, and the recording at {duration_s:.1f} s; "
            "is it the transcript of another recording?"
        )
    return Utterance(cue.start_s, end, SPEECH, cue.text, cue.speaker)


def split(start_s: float, end_s: float, heard: Heard) -> list[tuple[float, float]]:
    """Parts of at most MAX_SPEECH_S, divided where the sound is quietest in the later half of what
    a part may last."""
    parts = []
    while end_s - start_s > MAX_SPEECH_S:
        last = min(start_s + MAX_SPEECH_S, end_s - MIN_PART_S)
        times = np.arange(start_s + MAX_SPEECH_S / 2, last, HOP / RATE)
        at = float(times[heard.loudness_at(times).argmin()])
        parts.append((start_s, at))
        start_s = at
    return [*parts, (start_s, end_s)]


def windows(spoken: Iterable[tuple[float, float]], duration_s: float) -> list[tuple[float, float]]:
    """The stretches of more than GAP_S without speech, in even windows of at most MAX_WINDOW_S."""
    found: list[tuple[float, float]] = []
    at = 0.0
    for start, end in sorted([*spoken, (duration_s, duration_s)]):
        if start - at > GAP_S:
            count = math.ceil((start - at) / MAX_WINDOW_S)
            edges = np.linspace(at, start, count + 1).tolist()
            found += itertools.pairwise(edges)
        at = max(at, end)
    return found
