"""Waveforms -> frame features of Whisper's encoder, ten vectors a second."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from transformers import WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Network

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.encoders.hidden import Layers
from feature_service.encoders.weights import from_pretrained
from feature_service.operators.decode import SAMPLE_RATE
from lfmim.schema import InputError, Modality

WINDOW = 30 * SAMPLE_RATE
"""Samples of one pass: Whisper was trained on 30 s, filled up with silence, and takes no other
length."""
HOP = 320
"""Samples per frame of the network, 20 ms."""
FRAMES_PER_VECTOR = 5


@register_encoder("whisper", modality=Modality.AUDIO)
class WhisperEncoder(Encoder):
    """Hidden states of Whisper's encoder after its middle block, where emotion is read best (the
    last one is about words), or after `layer`.

    Of the 50 frames a second five are averaged to a vector: 30 s are then 300 vectors, not 1,500,
    of which a model takes 100. A clip's own frames only, none of the silence that fills the window.
    What is longer than 30 s is cut into windows of 30 s, each encoded by itself.
    """

    has_layers = True

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        batch_size: int | None = None,
        layer: str = "",
    ) -> None:
        super().__init__(source, revision=revision, device=device)
        self.mel = from_pretrained(WhisperFeatureExtractor, source, self.revision)
        if (self.mel.sampling_rate, self.mel.n_samples) != (SAMPLE_RATE, WINDOW):
            raise InputError(
                f"encoder {source!r}: its preprocessor_config.json describes another input than "
                f"30 s at {SAMPLE_RATE} Hz"
            )
        # Of checkpoints of the whole Whisper the encoder's part.
        self.model = from_pretrained(
            Network, source, self.revision, key_mapping={r"^(model\.)?encoder\.": ""}
        ).eval()

        blocks = self.model.config.encoder_layers
        self.layers = Layers.chosen(
            layer, blocks, field="encoders.audio_layer", default=blocks // 2
        )
        # Later blocks change nothing here: computing them took as long again. The last norm belongs
        # to the last block.
        if self.layers.last < blocks:
            self.model.layers = self.model.layers[: self.layers.last]
            self.model.layer_norm = nn.Identity()
        self.model.to(device)

        self.batch_size = batch_size or (1 if device == "cpu" else 16)
        self.dim = self.model.config.d_model
        self.settings |= {
            "layer": str(self.layers),
            "frames_per_vector": FRAMES_PER_VECTOR,
            "window_s": WINDOW // SAMPLE_RATE,
        }

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [S] at 16 kHz -> float16 [T, D], T the sum over windows of 30 s of
        ceil(ceil(S / 320) / 5); the same bytes in any company and order."""
        windows = [
            np.asarray(wave[start : start + WINDOW], np.float32)
            for wave in waveforms
            for start in range(0, max(len(wave), 1), WINDOW)
        ]
        encoded: list[np.ndarray] = []
        for start in range(0, len(windows), self.batch_size):
            encoded += self._encode(windows[start : start + self.batch_size])

        out, at = [], 0
        for wave in waveforms:
            count = max(-(-len(wave) // WINDOW), 1)
            out.append(np.concatenate(encoded[at : at + count]))
            at += count
        return out

    def _encode(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        # All windows are of one length, and the last pass is filled up to the size of the others:
        # with one shape a row does not depend on those beside it.
        given = [*windows, *[np.zeros(1, np.float32)] * (self.batch_size - len(windows))]
        mel = self.mel(given, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.inference_mode():
            states = self.model(mel.to(self.device), output_hidden_states=True).hidden_states
            x_BTD = self.layers.of(states)

        out = []
        for x_TD, window in zip(x_BTD, windows, strict=False):
            frames = max(-(-len(window) // HOP), 1)
            parts = x_TD[:frames].split(FRAMES_PER_VECTOR)
            pooled = torch.stack([part.mean(dim=0) for part in parts])
            out.append(pooled.to(torch.float16).cpu().numpy())
        return out
