"""What a vision encoder is shown of a frame: the kinds of crops, and cutting one out."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from lfmim.schema import FeatureSpec, Modality

if TYPE_CHECKING:
    from skimage.transform import SimilarityTransform

# Eyes, nose and mouth corners in a unit square: the usual five-point template, with a margin as in
# RAF-DB.
TEMPLATE = np.array([[0.345, 0.40], [0.655, 0.40], [0.5, 0.575], [0.37, 0.745], [0.63, 0.745]])
MARGINS = {"box": 0.0, "loose": 0.25}
"""Share of the box's longer side that is shown beyond it on each side."""


class Crop(NamedTuple):
    """`kind`: aligned (turned and scaled so that eyes, nose and mouth lie where TEMPLATE has them),
    box (the upright square around the detector's box), loose (that with a margin of a quarter on
    each side) or frame (the whole frame with black bars, no face looked for). `size`: pixels of its
    side."""

    kind: str
    size: int

    @classmethod
    def of(cls, spec: FeatureSpec) -> Crop:
        """That of the features of `spec`; of a store that names none, as they were before there was
        a choice."""
        vision = spec.encoders.get(Modality.VISION)
        kind = vision.settings.get("crop", ALIGNED.kind) if vision else ALIGNED.kind
        return cls(kind, spec.sampling.get("crop_size", ALIGNED.size))

    def around(self, box: np.ndarray, points: np.ndarray) -> SimilarityTransform:
        """Frame -> crop for a face, by its box [4] and landmarks [5, 2] in native pixels."""
        if self.kind != ALIGNED.kind:
            side = (box[2:] - box[:2]).max() * (1 + 2 * MARGINS[self.kind])
            return _centred((box[:2] + box[2:]) / 2, self.size / max(float(side), 1.0), self.size)

        # here, for text and audio encoders know of crops, too, and cut none
        from skimage.transform import SimilarityTransform

        found = SimilarityTransform.from_estimate(points, TEMPLATE * self.size)
        # Landmarks that are all in one place have no estimate; scikit-image says so by a false
        # value, not by raising.
        return found if found else _centred(points.mean(axis=0), 1.0, self.size)

    def cut(self, frame: np.ndarray, to_crop: SimilarityTransform) -> np.ndarray:
        """The crop, uint8 [size, size, 3], of a frame uint8 [H, W, 3]; black beyond its edges."""
        side = self.size
        # inverse: Pillow's AFFINE asks where in the source each pixel of the result lies
        matrix = np.linalg.inv(to_crop.params)
        factor = max(1, int(1.0 / max(float(to_crop.scale), 1e-6)))

        # Only the part of the frame that the crop covers, at multiples of `factor`, with a margin
        # for interpolation.
        corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]) @ matrix[:2].T
        low = np.maximum(np.floor(corners.min(axis=0) / factor).astype(int) - 2, 0) * factor
        high = np.ceil(corners.max(axis=0)).astype(int) + 2 * factor
        part = frame[low[1] : max(high[1], low[1] + 1), low[0] : max(high[0], low[0] + 1)]
        if part.size == 0:  # the face lies outside the frame
            return np.zeros((side, side, 3), np.uint8)

        image = Image.fromarray(part)
        matrix[:2, 2] -= low
        # bilinear sampling of a much larger face would alias: shrink the image first
        if factor > 1:
            image = image.reduce(factor)
            matrix = np.diag([1 / factor, 1 / factor, 1]) @ matrix
        return np.asarray(
            image.transform(
                (side, side),
                Image.Transform.AFFINE,
                tuple(matrix[:2].ravel()),
                Image.Resampling.BILINEAR,
            )
        )


ALIGNED = Crop("aligned", 224)


def whole_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 [F, H, W, 3] -> [F, size, size, 3]: the longer side fills it, the rest is black."""
    crop = Crop("frame", size)
    height, width = frames.shape[1:3]
    to_crop = _centred(np.array([width, height]) / 2, size / max(height, width), size)
    return np.stack([crop.cut(frame, to_crop) for frame in frames])


def _centred(centre: np.ndarray, scale: float, size: int) -> SimilarityTransform:
    from skimage.transform import SimilarityTransform

    return SimilarityTransform(scale=scale, translation=size / 2 - centre * scale)
