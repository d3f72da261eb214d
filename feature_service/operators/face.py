"""Frames -> landmark-aligned face crops of the most prominent face (MTCNN, facenet-pytorch)."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image
from skimage.transform import SimilarityTransform

# Eyes, nose and mouth corners in a unit square: the usual five-point template, with a margin as in RAF-DB.
TEMPLATE = np.array([[0.345, 0.40], [0.655, 0.40], [0.5, 0.575], [0.37, 0.745], [0.63, 0.745]])
DETECT_BATCH = 16


@dataclasses.dataclass(frozen=True, slots=True)
class FaceCrops:
    """`crops` uint8 [F, S, S, 3] or None if no frame has a face; `face_found` bool [F]; `boxes` float32 [F, 4]
    (x1 y1 x2 y2) and `landmarks` float32 [F, 5, 2] in native pixels, NaN where no face was found."""

    crops: np.ndarray | None
    face_found: np.ndarray
    boxes: np.ndarray
    landmarks: np.ndarray


class FaceCropper:
    """Detects on reduced frames, crops from the native ones.

    `detect_side`: longest side of the frame the detector sees. `min_face`: smallest face as a share of that side.
    `min_probability`: detections below it are taken for false ones.
    """

    def __init__(
        self, *, device: str = "cpu", crop_size: int = 224, detect_side: int = 320, min_face: float = 0.1,
        min_probability: float = 0.95,
    ) -> None:
        self.crop_size, self.detect_side, self.min_probability = crop_size, detect_side, min_probability
        self.min_face = min_face
        self.mtcnn = MTCNN(keep_all=True, device=device)

    def __call__(self, frames: np.ndarray) -> FaceCrops:
        """`frames` uint8 [F, H, W, 3] RGB. Frames without a face get the crop of the nearest frame that has one."""
        count = len(frames)
        boxes = np.full((count, 4), np.nan, np.float32)
        landmarks = np.full((count, 5, 2), np.nan, np.float32)
        first = np.array([i for i in range(count) if i == 0 or not np.array_equal(frames[i], frames[i - 1])], int)
        for start in range(0, len(first), DETECT_BATCH):
            index = first[start : start + DETECT_BATCH]
            for i, found in zip(index, self._detect(frames[index]), strict=True):
                if found is not None:
                    boxes[i], landmarks[i] = found
        owner = first[np.searchsorted(first, np.arange(count), side="right") - 1]  # repeated frames share a detection
        boxes, landmarks = boxes[owner], landmarks[owner]
        found_F = ~np.isnan(boxes[:, 0])
        if not found_F.any():
            return FaceCrops(None, found_F, boxes, landmarks)
        with_face = np.flatnonzero(found_F)
        nearest = with_face[np.abs(np.arange(count)[:, None] - with_face[None, :]).argmin(axis=1)]
        nearest = owner[nearest]
        cut = {int(i): self._crop(frames[i], landmarks[i]) for i in np.unique(nearest)}
        return FaceCrops(np.stack([cut[int(i)] for i in nearest]), found_F, boxes, landmarks)

    def _detect(self, frames: np.ndarray) -> list[tuple[np.ndarray, np.ndarray] | None]:
        height, width = frames.shape[1:3]
        scale = min(1.0, self.detect_side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        bilinear = Image.Resampling.BILINEAR
        small = [np.asarray(Image.fromarray(f).resize(size, bilinear, reducing_gap=2.0)) for f in frames]
        self.mtcnn.min_face_size = max(20, int(max(size) * self.min_face))
        with torch.inference_mode():
            boxes, probabilities, points = self.mtcnn.detect(small, landmarks=True)
        out: list[tuple[np.ndarray, np.ndarray] | None] = []
        factor = np.array([width / size[0], height / size[1]], np.float32)
        for box, probability, point in zip(boxes, probabilities, points, strict=True):
            if box is None:
                out.append(None)
                continue
            prominence = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) * probability
            prominence = np.where(probability >= self.min_probability, prominence, -1.0)
            best = int(prominence.argmax())
            if prominence[best] <= 0:
                out.append(None)
            else:
                out.append((box[best].astype(np.float32) * np.tile(factor, 2), point[best].astype(np.float32) * factor))
        return out

    def _crop(self, frame: np.ndarray, points: np.ndarray) -> np.ndarray:
        to_crop = SimilarityTransform.from_estimate(points, TEMPLATE * self.crop_size)
        if not to_crop:  # degenerate landmarks: all in one place
            to_crop = SimilarityTransform(translation=self.crop_size / 2 - points.mean(axis=0))
        image, shrink = Image.fromarray(frame), 1.0 / max(float(to_crop.scale), 1e-6)
        matrix = np.linalg.inv(to_crop.params)
        if shrink > 2:  # bilinear sampling of a much larger face would alias: halve the image first
            factor = int(shrink)
            image = image.reduce(factor)
            matrix = np.diag([1 / factor, 1 / factor, 1]) @ matrix
        side = self.crop_size
        return np.asarray(
            image.transform((side, side), Image.Transform.AFFINE, tuple(matrix[:2].ravel()), Image.Resampling.BILINEAR)
        )
