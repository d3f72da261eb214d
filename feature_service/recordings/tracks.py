"""Faces linked over time: whose is which from frame to frame, and which of them speaks.

By place alone: no face is compared with another, so nothing here is biometric identification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from feature_service.operators.detector import Faces, overlap
from feature_service.recordings.speech import Heard

SAME_FACE = 0.3
"""Overlap (IoU) from which two boxes, one after the other, may be of one face."""
LOST_S = 4.0
"""Seconds without a face, after which one at its place is another. Longer than what is not looked
at: a pause of up to 2 s between two utterances, and up to an eighth of each at their ends."""
CUT = 0.5
"""Share of a picture's colours that is no longer there behind a cut."""
BINS = 6
"""Per channel, for the colours."""
MOUTH = (24, 16)
"""Pixels across and down to which a mouth is brought."""
VOICED = 0.25
"""Correlation of a mouth's motion with the sound, from which it is taken for the one that speaks.
It is weak in real faces: 0.33 in a clip of somebody who talks, up to 0.21 in one of another."""
QUIET, MIN_MOTIONS = 1e-4, 8
"""Added before the logarithm of a loudness; motions without which nothing is said of a mouth."""
PRESENT = 0.5
"""Share of the frames on which a face must be seen to speak."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sight:
    """One face at one time. `box` float32 [4] (x1 y1 x2 y2) and `landmarks` float32 [5, 2] in
    pixels, `motion`: how much its mouth changed since it was last seen, in grey levels; NaN where
    it was not seen before."""

    track: int
    time_s: float
    box: np.ndarray
    landmarks: np.ndarray
    probability: float
    motion: float


@dataclasses.dataclass(slots=True)
class _Track:
    number: int
    time_s: float
    box: np.ndarray
    mouth: np.ndarray


class Tracker:
    """Frames in their order in, faces with their track's number out.

    Each pair of faces now and before is compared by the overlap of their boxes, and the pairing of
    the largest sum is taken (the Hungarian method). A cut ends all tracks. Numbers are never used
    twice.
    """

    def __init__(self) -> None:
        self._live: list[_Track] = []
        self._colours: np.ndarray | None = None
        self._count = 0

    def state(self) -> dict[str, Any]:
        """All that later frames depend on, as JSON has it."""
        live = [[t.number, t.time_s, t.box.tolist(), t.mouth.ravel().tolist()] for t in self._live]
        colours = None if self._colours is None else self._colours.tolist()
        return {"count": self._count, "colours": colours, "live": live}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Tracker:
        """That which goes on from a `state`."""
        new = cls()
        new._count = state["count"]
        new._colours = None if state["colours"] is None else np.array(state["colours"])
        new._live = [
            _Track(n, t, *(np.array(x, np.float32) for x in (box, mouth)))
            for n, t, box, mouth in state["live"]
        ]
        for track in new._live:
            track.mouth = track.mouth.reshape(MOUTH[::-1])
        return new

    def add(self, time_s: float, frame: np.ndarray, faces: Faces) -> list[Sight]:
        """`frame` uint8 [H, W, 3] RGB, shown `time_s` after the recording's start, and all its
        faces."""
        colours = _colours(frame)
        if self._colours is not None and np.minimum(colours, self._colours).sum() < 1 - CUT:
            self._live = []
        self._colours = colours
        self._live = [t for t in self._live if time_s - t.time_s <= LOST_S]

        mine = self._pair(faces.boxes)
        sights = []
        for n, box in enumerate(faces.boxes):
            mouth = _mouth(frame, faces.landmarks[n])
            track, motion = mine.get(n), float("nan")
            if track is None:
                self._count += 1
                track = _Track(self._count, time_s, box, mouth)
                self._live.append(track)
            else:
                motion = float(np.abs(mouth - track.mouth).mean())
                track.time_s, track.box, track.mouth = time_s, box, mouth
            probability = float(faces.probabilities[n])
            sights.append(Sight(track.number, time_s, box, faces.landmarks[n], probability, motion))
        return sights

    def _pair(self, boxes: np.ndarray) -> dict[int, _Track]:
        if not len(boxes) or not self._live:
            return {}
        # Slow to import, and only recordings with pictures need it.
        from scipy.optimize import linear_sum_assignment

        shared = overlap(np.stack([t.box for t in self._live]), boxes)
        # What may not be paired weighs nothing, or it would push a good pair apart.
        shared[shared < SAME_FACE] = 0
        rows, columns = linear_sum_assignment(shared, maximize=True)
        return {
            int(c): self._live[r]
            for r, c in zip(rows, columns, strict=True)
            if shared[r, c] >= SAME_FACE
        }


def by_track(sights: Sequence[Sight]) -> dict[int, list[Sight]]:
    """Track -> its sights in time, the largest face (mean area) first."""
    found: dict[int, list[Sight]] = {}
    for sight in sights:
        found.setdefault(sight.track, []).append(sight)
    return dict(sorted(found.items(), key=lambda item: -_prominence(item[1])))


def speaking(tracks: Mapping[int, Sequence[Sight]], heard: Heard, frames: int) -> int | None:
    """Which of the tracks of a stretch, as `by_track` gives them, speaks; None without any.

    Of those seen on at least PRESENT of its `frames`, the one whose mouth moves most as the sound
    does, where that is at least VOICED; else the one of the largest face. One face alone is that.
    """
    present = [t for t, sights in tracks.items() if len(sights) >= PRESENT * frames]
    moving = {t: voiced(tracks[t], heard) for t in present} if len(present) > 1 else {}
    best = max(moving, key=lambda t: moving[t], default=None)
    if best is not None and moving[best] >= VOICED:
        return best
    return next(iter(present or tracks), None)


def voiced(sights: Sequence[Sight], heard: Heard) -> float:
    """Correlation of a mouth's motion with the logarithm of the sound's loudness; 0 where one of
    them does not change."""
    known = [s for s in sights if not np.isnan(s.motion)]
    if len(known) < MIN_MOTIONS:
        return 0.0
    motion = np.array([s.motion for s in known])
    sound = np.log(heard.loudness_at(np.array([s.time_s for s in known])) + QUIET)
    a, b = motion - motion.mean(), sound - sound.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else 0.0


def _prominence(sights: Sequence[Sight]) -> float:
    boxes = np.stack([s.box for s in sights])
    # Summed, not averaged: a face that was seen once is not the largest.
    return float((boxes[:, 2:] - boxes[:, :2]).prod(axis=1).sum())


def _colours(frame: np.ndarray) -> np.ndarray:
    """Shares of the colours of a picture, [BINS ** 3]; they sum to one."""
    small = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BOX))
    level = small.reshape(-1, 3).astype(int) * BINS // 256
    index = level @ np.array([BINS * BINS, BINS, 1])
    return np.bincount(index, minlength=BINS**3) / len(index)


def _mouth(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The mouth in grey, float32 [16, 24], at the place and size that the landmarks say, so that a
    head that moves does not move it; its brightness taken out."""
    left, right = landmarks[3], landmarks[4]
    centre = (left + right) / 2
    # Of the eyes' distance, which does not change as a mouth does.
    half = 0.5 * max(float(np.linalg.norm(landmarks[1] - landmarks[0])), 4.0)
    box = (
        centre[0] - half,
        centre[1] - half * MOUTH[1] / MOUTH[0],
        centre[0] + half,
        centre[1] + half * MOUTH[1] / MOUTH[0],
    )
    height, width = frame.shape[:2]
    x1, y1 = (max(0, int(v)) for v in box[:2])
    x2, y2 = min(width, int(box[2]) + 1), min(height, int(box[3]) + 1)
    if x2 - x1 < 2 or y2 - y1 < 2:
        return np.zeros(MOUTH[::-1], np.float32)
    grey = Image.fromarray(frame[y1:y2, x1:x2]).convert("L")
    patch = np.asarray(grey.resize(MOUTH, Image.Resampling.BILINEAR), np.float32)
    return np.asarray(patch - patch.mean())
