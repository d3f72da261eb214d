"""Frames -> crops of the most prominent face (MTCNN, facenet-pytorch), or of the whole frame."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from feature_service.operators.crop import ALIGNED, Crop, whole_frames
from feature_service.operators.detector import (
    LARGE,
    NO_FACES,
    SMALL,
    FaceDetector,
    Faces,
    Search,
    most_prominent,
    overlap,
    prominence,
)

# Every 3rd, 4th or 6th was no faster on the clips tried, and agreed less with a search of them all.
KEY_STEP = 8
"""One frame in so many is searched for faces; those between follow from their neighbours where
these agree."""
SAME_FACE = 0.3
"""Overlap (IoU) from which two boxes of neighbouring frames are taken for one face."""
RIVAL = 0.5
"""Faces of at least this share of the largest prominence are followed too: the largest may change
on the way."""


@dataclasses.dataclass(frozen=True, slots=True)
class FaceCrops:
    """`crops` uint8 [F, S, S, 3] or None if no frame has a face; `face_found` bool [F]; `boxes`
    float32 [F, 4] (x1 y1 x2 y2) and `landmarks` float32 [F, 5, 2] in native pixels, NaN where no
    face was found."""

    crops: np.ndarray | None
    face_found: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray


class FaceCropper:
    """Detects on reduced frames, crops from the native ones; every result depends on the clip's own
    frames alone.

    `min_probability`: detections below it are taken for false ones. The face of a frame is the one
    with the largest area times probability. Small faces are searched for only on frames that have
    no large one.

    Most frames are not searched. Every KEY_STEP-th is; where two of them show the same faces, the
    last network of the cascade looks for these where they should be on the frames between. A frame
    on which it misses one is searched as well.
    """

    def __init__(
        self,
        *,
        device: str = "cpu",
        crop: Crop = ALIGNED,
        min_probability: float = 0.95,
        key_step: int = KEY_STEP,
    ) -> None:
        self.crop, self.min_probability, self.key_step = crop, min_probability, key_step
        self.detector = FaceDetector(device=device)

    def __call__(self, frames: np.ndarray) -> FaceCrops:
        """`frames` uint8 [F, H, W, 3] RGB. Frames without a face get the crop of the nearest frame
        that has one."""
        faces, first = self.find(frames)
        boxes = np.full((len(frames), 4), np.nan, np.float32)
        landmarks = np.full((len(frames), 5, 2), np.nan, np.float32)
        for i, here in enumerate(faces):
            best = most_prominent(here, self.min_probability)
            if best is not None:
                boxes[i], landmarks[i] = here.boxes[best], here.landmarks[best]
        return self.cut(frames, first, boxes, landmarks)

    def find(self, frames: np.ndarray) -> tuple[list[Faces], np.ndarray]:
        """The faces worth considering of each of `frames` uint8 [F, H, W, 3], and int [F], the
        first of the run of equal frames that each is in."""
        count = len(frames)
        # A clip of fewer frames than are sampled repeats them: finding, cropping and encoding each
        # run of equal ones once took clips of 16 frames from 1.9 to 6 a second.
        first = np.array(
            [i for i in range(count) if i == 0 or not np.array_equal(frames[i], frames[i - 1])], int
        )
        found = self._find(frames, first)
        owner = np.searchsorted(first, np.arange(count), side="right") - 1
        return [found[k] for k in owner], first[owner]

    def cut(
        self, frames: np.ndarray, first: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray
    ) -> FaceCrops:
        """The crops of one face, of which `boxes` float32 [F, 4] and `landmarks` float32 [F, 5, 2]
        are NaN on frames without it; `first` as of `find`."""
        found_F = ~np.isnan(boxes[:, 0])
        if not found_F.any():
            return FaceCrops(None, found_F, boxes, landmarks)

        with_face = np.flatnonzero(found_F)
        gaps = np.abs(np.arange(len(frames))[:, None] - with_face[None, :])
        nearest = first[with_face[gaps.argmin(axis=1)]]
        cut = {
            int(i): self.crop.cut(frames[i], self.crop.around(boxes[i], landmarks[i]))
            for i in np.unique(nearest)
        }
        return FaceCrops(np.stack([cut[int(i)] for i in nearest]), found_F, boxes, landmarks)

    def _find(self, frames: np.ndarray, index: np.ndarray) -> list[Faces]:
        """The faces worth considering of each of `frames[index]`."""
        keys = sorted({*range(0, len(index), self.key_step), len(index) - 1})
        found: dict[int, Faces] = {}
        self._search(frames, index, keys, found)

        expected: dict[int, np.ndarray] = {}
        for a, b in itertools.pairwise(keys):
            pairs = _same_faces(found[a], found[b])
            if len(pairs):
                before, after = found[a].boxes[pairs[:, 0]], found[b].boxes[pairs[:, 1]]
                for i in range(a + 1, b):
                    share = np.float32((index[i] - index[a]) / (index[b] - index[a]))
                    expected[i] = (1 - share) * before + share * after
        self._follow(frames, index, expected, found)
        # 'No face' is only ever the whole cascade's word, never that of a box followed in vain.
        self._search(frames, index, [i for i in range(len(index)) if i not in found], found)
        return [found[i] for i in range(len(index))]

    def _search(
        self, frames: np.ndarray, index: np.ndarray, which: list[int], found: dict[int, Faces]
    ) -> None:
        """Set `found[i]` by the whole cascade on reduced frames, its boxes placed anew on the
        native ones."""
        for search in (LARGE, SMALL):
            which = [i for i in which if not len(found.get(i, NO_FACES).boxes)]
            self._search_size(frames, index, which, search, found)

    def _search_size(
        self,
        frames: np.ndarray,
        index: np.ndarray,
        which: list[int],
        search: Search,
        found: dict[int, Faces],
    ) -> None:
        coarse = dict(zip(which, self.detector.detect(frames, index[which], search), strict=True))
        boxes = {i: faces.boxes for i, faces in coarse.items() if len(faces.boxes)}
        placed = self._place(frames, index, boxes)

        for i in which:
            faces = coarse[i]
            # where the native pixels do not confirm a face, the reduced frame's word stands
            if i in placed:
                sure = placed[i].probabilities >= self.min_probability
                fields = [
                    np.where(sure.reshape(-1, *[1] * (new.ndim - 1)), new, old)
                    for new, old in zip(placed[i], faces, strict=True)
                ]
                faces = Faces(*fields)
            faces = faces.take(faces.probabilities >= self.min_probability)
            if len(faces.boxes):
                value = prominence(faces)
                faces = faces.take(value >= RIVAL * value.max())
            found[i] = faces

    def _follow(
        self,
        frames: np.ndarray,
        index: np.ndarray,
        expected: dict[int, np.ndarray],
        found: dict[int, Faces],
    ) -> None:
        """Set `found[i]` where the last network confirms every box of `expected[i]`."""
        # All or none: with one face lost another may have become the most prominent. And each where
        # it was expected, for the network may have gone over to a neighbour's face.
        for i, faces in self._place(frames, index, expected).items():
            moved = overlap(faces.boxes, expected[i]).diagonal()
            if (faces.probabilities >= self.min_probability).all() and (moved >= SAME_FACE).all():
                found[i] = faces

    def _place(
        self, frames: np.ndarray, index: np.ndarray, boxes: dict[int, np.ndarray]
    ) -> dict[int, Faces]:
        if not boxes:
            return {}
        which = np.repeat(list(boxes), [len(b) for b in boxes.values()])
        faces = self.detector.refine(frames, index[which], np.concatenate(list(boxes.values())))
        return {i: faces.take(which == i) for i in boxes}


Cropper = Callable[[np.ndarray], tuple[np.ndarray | None, np.ndarray | None]]
"""Frames uint8 [F, H, W, 3] -> crops uint8 [F, S, S, 3] or None, and `face_found` bool [F], or None
where no face was looked for."""


def build_cropper(crop: Crop, *, device: str = "cpu") -> Cropper:
    """What makes crops of this kind and size."""
    if crop.kind == "frame":
        return lambda frames: (whole_frames(frames, crop.size), None)
    faces = FaceCropper(device=device, crop=crop)

    def crop_faces(frames: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        found = faces(frames)
        return found.crops, found.face_found

    return crop_faces


def _same_faces(a: Faces, b: Faces) -> np.ndarray:
    """Pairs [N, 2] of indices if the two frames show the same faces at about the same places, else
    none."""
    if len(a.boxes) != len(b.boxes) or not len(a.boxes):
        return np.empty((0, 2), int)
    iou = overlap(a.boxes, b.boxes)
    partner = iou.argmax(axis=1)
    # two that claim one partner: which of them went there cannot be told
    if len(set(partner.tolist())) < len(partner) or (iou.max(axis=1) < SAME_FACE).any():
        return np.empty((0, 2), int)
    return np.stack([np.arange(len(partner)), partner], axis=1)
