"""Which faces of a stretch are predicted, and what a vision encoder is shown of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from feature_service.operators.crop import ALIGNED, Crop, whole_frames
from feature_service.operators.detector import most_prominent
from feature_service.operators.face import FaceCropper
from feature_service.recordings.speech import Heard
from feature_service.recordings.tracks import PRESENT, Sight, Tracker, by_track, speaking
from feature_service.recordings.utterances import SPEECH

FaceRule = Literal["speaking", "largest"]
SPEAKING: FaceRule = "speaking"
LARGEST: FaceRule = "largest"
"""The face that an utterance's own row is about: that of `tracks.speaking`, the others having rows
of their own; or at each frame the largest, whoever it is, as in a feature store."""


class Eyes(NamedTuple):
    """What is looked for on frames."""

    crop: Crop = ALIGNED
    rule: FaceRule = SPEAKING


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """`crops` uint8 [F, S, S, 3], one for each frame of the stretch, and where the face was."""

    crops: np.ndarray
    sights: Sequence[Sight]


class FaceFinder:
    """Stretches of a recording in their order in, faces out; `tracker` links them."""

    def __init__(self, eyes: Eyes) -> None:
        # Never on a GPU: the search is Python more than network, and kept one 2 to 3 % busy.
        self.cropper = FaceCropper(crop=eyes.crop)
        self.rule = eyes.rule
        self.tracker = Tracker()

    def follow(self, state: Mapping[str, Any] | None) -> None:
        """Go on from a tracker's state, or None with a new recording."""
        self.tracker = Tracker.of(state) if state else Tracker()

    def __call__(
        self, frames: np.ndarray, indices: np.ndarray, times: np.ndarray, kind: str, heard: Heard
    ) -> list[Shown]:
        """The face that the stretch's row is about, then those of the others that are seen on half
        of its frames; [] if there is none. `frames` uint8 [F, H, W, 3], their `indices` int [F] and
        `times` float [F] in seconds, as of a DecodedClip; `kind` of the utterance. Where whole
        frames are shown, they are it."""
        if self.cropper.crop.kind == "frame":
            return [Shown(whole_frames(frames, self.cropper.crop.size), ())]
        faces, first = self.cropper.find(frames)
        # A short stretch repeats its frames.
        _, once, owner = np.unique(indices, return_index=True, return_inverse=True)
        seen = [self.tracker.add(float(times[i]), frames[i], faces[i]) for i in once]

        if self.rule == LARGEST:
            best = [most_prominent(faces[i], self.cropper.min_probability) for i in once]
            largest = [
                [] if b is None else [sights[b]] for b, sights in zip(best, seen, strict=True)
            ]
            chosen = [largest] if any(largest) else []
        else:
            numbers = self._order([s for sights in seen for s in sights], len(once), kind, heard)
            chosen = [[[s for s in sights if s.track == n] for sights in seen] for n in numbers]
        return [self._shown(frames, first, owner, mine) for mine in chosen]

    def _order(self, sights: list[Sight], frames: int, kind: str, heard: Heard) -> list[int]:
        """Tracks to be predicted, the utterance's own first."""
        tracks = by_track(sights)
        present = [n for n, its in tracks.items() if len(its) >= PRESENT * frames]
        # Nobody speaks in a gap: it is the largest's.
        own = (present or list(tracks))[:1]
        if kind == SPEECH and present:
            own = [n for n in [speaking(tracks, heard, frames)] if n is not None]
        return [*own, *(n for n in present if n not in own)]

    def _shown(
        self,
        frames: np.ndarray,
        first: np.ndarray,
        owner: np.ndarray,
        mine: Sequence[Sequence[Sight]],
    ) -> Shown:
        """`mine`: of each different frame the sight of one face, or none."""
        boxes = np.full((len(frames), 4), np.nan, np.float32)
        landmarks = np.full((len(frames), 5, 2), np.nan, np.float32)
        for i, k in enumerate(owner):
            for sight in mine[k]:
                boxes[i], landmarks[i] = sight.box, sight.landmarks
        crops = self.cropper.cut(frames, first, boxes, landmarks).crops
        assert crops is not None  # only faces that were seen come here
        return Shown(crops, [s for sights in mine for s in sights])
