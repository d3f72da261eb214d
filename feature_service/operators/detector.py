"""MTCNN (facenet-pytorch) on reduced frames, and its last network alone on native ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from facenet_pytorch import MTCNN
from PIL import Image

ONET_SIDE = 48
ONET_BATCH = 64


class Faces(NamedTuple):
    """Faces of one frame in its own pixels: `boxes` float32 [N, 4] (x1 y1 x2 y2), `probabilities`
    float32 [N], `landmarks` float32 [N, 5, 2] (eyes, nose, mouth corners). N may be 0."""

    boxes: np.ndarray
    probabilities: np.ndarray
    landmarks: np.ndarray

    def take(self, index: np.ndarray) -> Faces:
        return Faces(self.boxes[index], self.probabilities[index], self.landmarks[index])


NO_FACES = Faces(
    np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty((0, 5, 2), np.float32)
)


class Search(NamedTuple):
    """`side`: longest side of the frame that is searched, in pixels. `min_face`: smallest face as a
    share of it."""

    side: int
    min_face: float


# Pixels and candidates are what a search costs. 320 alone lost a third of the faces of a 1080p clip
# of several people, so frames without a large face are searched again at 640.
LARGE, SMALL = Search(320, 0.1), Search(640, 0.04)


class FaceDetector:
    """Finds faces on reduced frames; `refine` places known ones on native frames."""

    def __init__(self, *, device: str = "cpu", batch_size: int = 16) -> None:
        self.batch_size, self.device = batch_size, device
        # 0.7 (default 0.6): a third fewer candidates for the second network, and no face fewer on
        # the clips tried; at 0.8 fewer frames agreed with a search at native size.
        self.mtcnn = MTCNN(keep_all=True, thresholds=[0.7, 0.7, 0.7], device=device)
        # max-pooling is vectorised in this layout: a quarter off a search on a CPU
        for network in (self.mtcnn.pnet, self.mtcnn.rnet, self.mtcnn.onet):
            network.to(memory_format=torch.channels_last)

    def detect(self, frames: np.ndarray, index: np.ndarray, search: Search = LARGE) -> list[Faces]:
        """All faces of `frames[index]` of uint8 [F, H, W, 3] RGB, by the whole cascade on reduced
        frames."""
        height, width = frames.shape[1:3]
        scale = min(1.0, search.side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        self.mtcnn.min_face_size = max(20, int(max(size) * search.min_face))
        # no room for a face; MTCNN fails on such frames
        if min(size) < self.mtcnn.min_face_size:
            return [NO_FACES] * len(index)

        factor = np.array([width / size[0], height / size[1]], np.float32)
        out: list[Faces] = []
        for start in range(0, len(index), self.batch_size):
            small = [_reduced(frames[i], size) for i in index[start : start + self.batch_size]]
            # A list of arrays of one size is what `detect` takes; `forward` and `extract` raise on
            # batches that mix frames with and without a face, and on arrays where cv2 is absent.
            with torch.inference_mode():
                found = self.mtcnn.detect(small, landmarks=True)

            for boxes, probabilities, points in zip(*found, strict=True):
                # None where a frame has no face, not an empty array
                if boxes is None:
                    out.append(NO_FACES)
                    continue
                native_boxes = boxes.astype(np.float32) * np.tile(factor, 2)
                landmarks = points.astype(np.float32) * factor
                out.append(Faces(native_boxes, probabilities.astype(np.float32), landmarks))
        return out

    def refine(self, frames: np.ndarray, owner: np.ndarray, boxes: np.ndarray) -> Faces:
        """Place one face each near `boxes` float32 [N, 4]; box n lies in frame `owner[n]` of uint8
        [F, H, W, 3].

        One pass of MTCNN's last network over native pixels: each box comes back with its
        probability and landmarks, whatever the probability. It sees the square around the box, as
        in the cascade.
        """
        height, width = frames.shape[1:3]
        # What follows is the third stage of facenet-pytorch's `detect_face`: the network expects
        # its squares cut, scaled and read as they are there.
        square = _squares(boxes)
        patches = np.empty((len(boxes), ONET_SIDE, ONET_SIDE, 3), np.uint8)
        for n, (x1, y1, x2, y2) in enumerate(square.astype(int)):
            # 1-based inclusive corners, clipped to the frame: facenet-pytorch's own convention.
            part = frames[
                owner[n],
                max(y1, 1) - 1 : max(min(y2, height), 1),
                max(x1, 1) - 1 : max(min(x2, width), 1),
            ]
            if part.size == 0:
                patches[n] = 0
                continue
            # BOX is nearest to torch's area interpolation, with which MTCNN itself resizes
            patches[n] = np.asarray(
                Image.fromarray(part).resize((ONET_SIDE, ONET_SIDE), Image.Resampling.BOX)
            )

        outputs = []
        for start in range(0, len(patches), ONET_BATCH):
            x = (
                torch.from_numpy(patches[start : start + ONET_BATCH])
                .to(self.device)
                .permute(0, 3, 1, 2)
                .float()
            )
            with torch.inference_mode():
                outputs.append([y.cpu().numpy() for y in self.mtcnn.onet((x - 127.5) * 0.0078125)])
        if not outputs:
            return NO_FACES

        shift, points, probabilities = (np.concatenate(part) for part in zip(*outputs, strict=True))
        # Corners count from 1 and both belong to the box; landmarks count from 0.
        sides = np.tile(square[:, 2:] - square[:, :2] + 1, 2)
        landmarks = np.stack(
            [
                points[:, :5] * sides[:, :1] + square[:, :1] - 1,
                points[:, 5:] * sides[:, 1:2] + square[:, 1:2] - 1,
            ],
            axis=2,
        )
        return Faces(
            (square + shift * sides).astype(np.float32),
            probabilities[:, 1].astype(np.float32),
            landmarks.astype(np.float32),
        )


def most_prominent(faces: Faces, min_probability: float) -> int | None:
    """Index of the face with the largest area times probability among those of at least
    `min_probability`."""
    if not len(faces.boxes):
        return None
    value = np.where(faces.probabilities >= min_probability, prominence(faces), -1.0)
    best = int(value.argmax())
    return best if value[best] > 0 else None


def prominence(faces: Faces) -> np.ndarray:
    """Area in pixels times probability, [N]."""
    boxes = faces.boxes
    return np.asarray(
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * faces.probabilities
    )


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4]: [N, M]."""
    corner = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(corner[1] - corner[0], 0, None).prod(axis=2)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b))
    # 1e-9: two boxes without any area overlap by 0, not by NaN
    return np.asarray(shared / np.maximum(area_a[:, None] + area_b[None] - shared, 1e-9))


def _reduced(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    # reducing_gap: Pillow first shrinks by a whole factor, to twice the size wanted or more, which
    # is cheaper than filtering all native pixels
    image = Image.fromarray(frame)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))


def _squares(boxes: np.ndarray) -> np.ndarray:
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    side = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    return np.concatenate([centre - side / 2, centre + side / 2], axis=1)
