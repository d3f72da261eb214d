"""Faces -> coarse blocks, in a recording's pictures as they go by."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
from PIL import Image

from feature_service.operators.detector import SMALL, FaceDetector

EVERY_S, HOLD_S = 0.2, 1.0
"""Seconds between two searches for faces, and how long before and after one its faces are hidden:
they move, and a search may miss one."""
PROBABILITY = 0.7
"""Of a face at least. What is none and is hidden costs little."""
MARGIN = 0.35
"""Share of a face's side that is hidden around it: hair and chin are known, too."""
BLOCKS = 6
"""Across a face. What they hide cannot be computed back."""


class FaceBlur:
    """Pictures go in one by one and come out HOLD_S later, without faces. A face that the detector
    does not find stays as it is."""

    def __init__(self) -> None:
        self.detector = FaceDetector()
        self.waiting: deque[tuple[float, np.ndarray]] = deque()
        self.found: deque[tuple[float, np.ndarray]] = deque()
        self.searched_s = -math.inf

    def __call__(self, at: float, image: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
        """Take `image` uint8 [H, W, 3] RGB of second `at`; yields those that are ready, in their
        order."""
        if at - self.searched_s >= EVERY_S:
            (faces,) = self.detector.detect(image[None], np.array([0]), SMALL)
            self.found.append((at, faces.boxes[faces.probabilities >= PROBABILITY]))
            self.searched_s = at
        self.waiting.append((at, image))
        while self.waiting[0][0] <= at - HOLD_S:
            yield self._next()

    def rest(self) -> Iterator[tuple[float, np.ndarray]]:
        """Those that still wait, at the end."""
        while self.waiting:
            yield self._next()

    def _next(self) -> tuple[float, np.ndarray]:
        at, image = self.waiting.popleft()
        while self.found and self.found[0][0] < at - HOLD_S:
            self.found.popleft()
        near = [boxes for time_s, boxes in self.found if time_s <= at + HOLD_S]
        return at, hidden(image, np.concatenate(near) if near else np.empty((0, 4)))


def hidden(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """`image` uint8 [H, W, 3] with `boxes` [N, 4] (x1 y1 x2 y2 in its pixels), and what is close
    around them, in blocks."""
    out = image.copy()
    height, width = image.shape[:2]
    for x1, y1, x2, y2 in boxes:
        more = MARGIN * max(x2 - x1, y2 - y1)
        left, top = (max(0, math.floor(v - more)) for v in (x1, y1))
        right, bottom = min(width, math.ceil(x2 + more)), min(height, math.ceil(y2 + more))
        if left < right and top < bottom:
            # Of the picture as it was, or faces that overlap would be made finer.
            part = Image.fromarray(image[top:bottom, left:right])
            coarse = part.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
            out[top:bottom, left:right] = coarse.resize(part.size, Image.Resampling.NEAREST)
    return out
