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
from feature_service.operators.clip import SAMPLE_RATE
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
    gpu_precision = "tf32"

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
        if not windows:
            return []
        encoded: list[torch.Tensor] = []
        for start in range(0, len(windows), self.batch_size):
            encoded += self._encode(windows[start : start + self.batch_size])
        # On a GPU the passes are only queued until here.
        whole = torch.cat(encoded).cpu().numpy()
        counts = [-(-_frames(wave) // FRAMES_PER_VECTOR) for wave in windows]

        out, at, first = [], 0, 0
        for wave in waveforms:
            count = max(-(-len(wave) // WINDOW), 1)
            vectors = sum(counts[first : first + count])
            out.append(whole[at : at + vectors])
            first, at = first + count, at + vectors
        return out

    def _encode(self, windows: list[np.ndarray]) -> list[torch.Tensor]:
        # All windows are of one length, and the last pass is filled up to the size of the others:
        # with one shape a row does not depend on those beside it.
        given = [*windows, *[np.zeros(1, np.float32)] * (self.batch_size - len(windows))]
        mel = self.mel(
            given, sampling_rate=SAMPLE_RATE, return_tensors="np", device=self.device
        ).input_features
        with self.computing():
            states = self.model(self.sent(mel), output_hidden_states=True).hidden_states
            x_BTD = self.layers.of(states)
        return [
            _means(x_TD[: _frames(window)]).to(torch.float16)
            for x_TD, window in zip(x_BTD, windows, strict=False)
        ]


def _frames(window: np.ndarray) -> int:
    """Of the clip itself, none of the silence that fills the window."""
    return max(-(-len(window) // HOP), 1)


def _means(x_TD: torch.Tensor) -> torch.Tensor:
    """Of FRAMES_PER_VECTOR frames each, the last of those that are left."""
    whole = len(x_TD) // FRAMES_PER_VECTOR * FRAMES_PER_VECTOR
    means = x_TD[:whole].view(-1, FRAMES_PER_VECTOR, x_TD.shape[1]).mean(dim=1)
    return means if whole == len(x_TD) else torch.cat([means, x_TD[whole:].mean(0, keepdim=True)])
