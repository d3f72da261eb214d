"""Waveforms -> wav2vec2 frame features, one vector per 20 ms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.encoders.weights import from_pretrained
from feature_service.operators.decode import SAMPLE_RATE
from lfmim.schema import Modality

HOP, RECEPTIVE_FIELD = 320, 400
"""Samples: 20 ms frame shift, 25 ms receptive field (paper §3.3)."""
CHUNK = 30 * SAMPLE_RATE


@register_encoder("wav2vec2", modality=Modality.AUDIO)
class Wav2Vec2Encoder(Encoder):
    """Last hidden states of a wav2vec2, kept at their true length."""

    def __init__(self, source: str, *, revision: str | None = None, device: str = "cpu") -> None:
        super().__init__(source, revision=revision, device=device)
        self.normalize = bool(
            from_pretrained(Wav2Vec2FeatureExtractor, source, self.revision).do_normalize
        )
        self.model = from_pretrained(Wav2Vec2Model, source, self.revision).eval().to(device)
        self.dim = self.model.config.hidden_size

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [S] at 16 kHz -> float16 [T, D] with T = (max(S, 400) - 400) // 320 + 1."""
        # One waveform a pass: the base model's group norm runs over time, so padding would leak
        # into the features, and utterances of one exact length are rare (on a CPU a pass of four
        # such took longer than four passes).
        return [self._encode(np.asarray(w, np.float32)) for w in waveforms]

    def _encode(self, wave: np.ndarray) -> np.ndarray:
        # the convolutions make one frame of so many samples, and none of fewer
        if len(wave) < RECEPTIVE_FIELD:
            wave = np.pad(wave, (0, RECEPTIVE_FIELD - len(wave)))
        # as Wav2Vec2FeatureExtractor does: over the whole utterance
        if self.normalize:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)

        # Chunks of 30 s bound the memory. Each reads on into the next, so that it gives CHUNK / HOP
        # frames, a whole number: put together they are one 20 ms grid.
        starts = range(0, max(len(wave) - RECEPTIVE_FIELD + 1, 1), CHUNK)
        parts = []
        for start in starts:
            piece = torch.from_numpy(wave[start : start + CHUNK + RECEPTIVE_FIELD - HOP]).to(
                self.device
            )
            with torch.inference_mode():
                parts.append(
                    self.model(piece[None]).last_hidden_state[0].to(torch.float16).cpu().numpy()
                )
        return np.concatenate(parts)
