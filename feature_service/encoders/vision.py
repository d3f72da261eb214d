"""Face crops -> ResNet features, one vector per frame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from feature_service.encoders.weights import (
    WeightedEncoder,
    load_resnet,
    resolved_revision,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VisionEncoder(WeightedEncoder):
    """Globally pooled features of a ResNet (paper §3.3: ResNet-18 trained on RAF-DB, 512-d)."""

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
    ) -> None:
        revision = resolved_revision(source, revision)
        self.model = (
            load_resnet(source, revision).eval().to(device, memory_format=torch.channels_last)
        )
        self.device, self.batch_size = device, batch_size or (8 if device == "cpu" else 64)
        self.mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
        self.source, self.revision = source, revision
        self.dim = self.model.config.hidden_sizes[-1]

    def __call__(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """uint8 [F, S, S, 3] per utterance -> float16 [F, D]; frames are batched across utterances.

        Every pass has `batch_size` frames, the last one filled up: with one shape a frame's
        features do not depend on the frames beside it.
        """
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
            if count < self.batch_size:
                batch = np.concatenate(
                    [batch, np.zeros((self.batch_size - count, *batch.shape[1:]), np.uint8)]
                )
            x = torch.from_numpy(batch).to(self.device)
            x = x.permute(0, 3, 1, 2).float().div_(255).sub_(self.mean).div_(self.std)
            with torch.inference_mode():
                pooled = self.model(
                    x.contiguous(memory_format=torch.channels_last)
                ).pooler_output.flatten(1)
            parts.append(pooled[:count].to(torch.float16).cpu().numpy())
        return list(np.split(np.concatenate(parts)[owner], np.cumsum([len(c) for c in crops])[:-1]))
