"""Waveforms -> frame features of a wav2vec2 or one of its relatives, one vector per 20 ms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2FeatureExtractor

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.encoders.hidden import Layers
from feature_service.encoders.weights import from_pretrained, network_of
from feature_service.operators.decode import SAMPLE_RATE
from lfmim.schema import InputError, Modality

HOP, RECEPTIVE_FIELD = 320, 400
"""Samples: 20 ms frame shift, 25 ms receptive field (paper §3.3)."""
CHUNK = 30 * SAMPLE_RATE
FAMILIES = ("wav2vec2", "data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wavlm")
"""Convolutions over the waveform, then a transformer; of one make, so of one frame shift."""


@register_encoder(*FAMILIES, modality=Modality.AUDIO)
class Wav2Vec2Encoder(Encoder):
    """Hidden states of the last block, or of `layer`, kept at their true length."""

    has_layers = True

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        layer: str = "",
    ) -> None:
        super().__init__(source, revision=revision, device=device)
        self.normalize = bool(
            from_pretrained(Wav2Vec2FeatureExtractor, source, self.revision).do_normalize
        )
        network = network_of(source, self.revision, FAMILIES)
        self.model = from_pretrained(network, source, self.revision).eval().to(device)
        self.dim = self.model.config.hidden_size
        _check_frames(source, self.model.config)

        blocks = self.model.config.num_hidden_layers
        self.layers = Layers.chosen(layer, blocks, field="encoders.audio_layer", default=blocks)
        self.is_last = self.layers == (blocks, blocks)
        if not self.is_last:
            self.settings["layer"] = str(self.layers)

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
                out = self.model(piece[None], output_hidden_states=not self.is_last)
            x_TD = (out.last_hidden_state if self.is_last else self.layers.of(out.hidden_states))[0]
            parts.append(x_TD.to(torch.float16).cpu().numpy())
        return np.concatenate(parts)


def _check_frames(source: str, config: Any) -> None:
    """Raise InputError if the convolutions have another frame shift or receptive field."""
    hop = math.prod(config.conv_stride)
    field = 1 + sum(
        (kernel - 1) * math.prod(config.conv_stride[:i])
        for i, kernel in enumerate(config.conv_kernel)
    )
    if (hop, field) != (HOP, RECEPTIVE_FIELD):
        raise InputError(
            f"encoder {source!r}: its convolutions make a frame of {field} samples every {hop}; "
            f"only models with one of {RECEPTIVE_FIELD} every {HOP} are known here"
        )
