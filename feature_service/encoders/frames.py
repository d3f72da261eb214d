"""What the vision families share: crops of many utterances through one network, frame by frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from feature_service.encoders.base import Encoder


class FrameEncoder(Encoder):
    """One vector per frame. A subclass sets `model`, `dim`, `batch_size` and `crop`, and defines
    `features`."""

    batch_size: int

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """uint8 [B, S, S, 3] RGB on `device` -> [B, D]."""
        raise NotImplementedError

    def __call__(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [F, S, S, 3] per utterance -> float16 [F, D], the same bytes in any company and
        order; frames are batched across utterances."""
        if not crops:
            return []
        frames = np.concatenate(crops)
        # Short clips and faceless frames repeat crops; each run of equal ones is encoded once.
        new = np.array(
            [i == 0 or not np.array_equal(frames[i], frames[i - 1]) for i in range(len(frames))]
        )
        owner, frames = np.cumsum(new) - 1, frames[new]

        parts = []
        for start in range(0, len(frames), self.batch_size):
            batch = frames[start : start + self.batch_size]
            count = len(batch)
            # The last pass is filled up: with one shape a frame's features do not depend on the
            # frames beside it.
            if count < self.batch_size:
                batch = np.concatenate(
                    [batch, np.zeros((self.batch_size - count, *batch.shape[1:]), np.uint8)]
                )
            with torch.inference_mode():
                pooled = self.features(torch.from_numpy(batch).to(self.device))
            parts.append(pooled[:count].to(torch.float16).cpu().numpy())
        return list(np.split(np.concatenate(parts)[owner], np.cumsum([len(c) for c in crops])[:-1]))
