"""Waveforms -> frame features of a wav2vec2 or one of its relatives, one vector per 20 ms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2FeatureExtractor

from feature_service.encoders.base import Encoder, register_encoder
from feature_service.encoders.batches import Pass, in_passes
from feature_service.encoders.hidden import Layers
from feature_service.encoders.padding import hide_padding
from feature_service.encoders.weights import from_pretrained, network_of
from feature_service.operators.clip import SAMPLE_RATE
from lfmim.schema import InputError, Modality

HOP, RECEPTIVE_FIELD = 320, 400
"""Samples: 20 ms frame shift, 25 ms receptive field (paper §3.3)."""
CHUNK = 30 * SAMPLE_RATE
STEP = 50
"""Padded lengths are multiples of this many frames, 1 s."""
GPU_FRAMES = 32 * 225
"""Of a pass on a GPU: 32 clips of 4.5 s."""
FAMILIES = ("wav2vec2", "data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wavlm")
"""Convolutions over the waveform, then a transformer; of one make, so of one frame shift."""


@register_encoder(*FAMILIES, modality=Modality.AUDIO)
class Wav2Vec2Encoder(Encoder):
    """Hidden states of the last block, or of `layer`, kept at their true length.

    `budget`: frames of a pass; 0 for one waveform a pass, unpadded. By default 0 on a CPU, where a
    pass of four took longer than four passes, and GPU_FRAMES on a GPU.
    """

    has_layers = True
    gpu_precision = "tf32"
    in_float32 = ("data2vec-audio",)

    def __init__(
        self,
        source: str,
        *,
        revision: str | None = None,
        device: str = "cpu",
        budget: int | None = None,
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

        self.budget = (0 if device == "cpu" else GPU_FRAMES) if budget is None else budget
        # unpadded rows go through the model as it is
        self.lengths = hide_padding(self.model) if self.budget else None

        blocks = self.model.config.num_hidden_layers
        self.layers = Layers.chosen(layer, blocks, field="encoders.audio_layer", default=blocks)
        self.is_last = self.layers == (blocks, blocks)
        if not self.is_last:
            self.settings["layer"] = str(self.layers)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [S] at 16 kHz -> float16 [T, D] with T = (max(S, 400) - 400) // 320 + 1; the same
        bytes in any company and order."""
        pieces, owners = [], []
        for i, wave in enumerate(waveforms):
            found = self._pieces(np.asarray(wave, np.float32))
            pieces += found
            owners += [i] * len(found)
        encoded = in_passes(
            # in frames, the last one begun
            [-(-(len(x) - RECEPTIVE_FIELD + HOP) // HOP) for x in pieces],
            lambda one: self._encode(one, pieces),
            step=STEP,
            budget=self.budget,
            kept=[_frames(len(x)) for x in pieces],
        )
        parts: list[list[np.ndarray]] = [[] for _ in waveforms]
        for i, x_TD in zip(owners, encoded, strict=True):
            parts[i].append(x_TD)
        return [np.concatenate(x) for x in parts]

    def _pieces(self, wave: np.ndarray) -> list[np.ndarray]:
        # the convolutions make one frame of so many samples, and none of fewer
        if len(wave) < RECEPTIVE_FIELD:
            wave = np.pad(wave, (0, RECEPTIVE_FIELD - len(wave)))
        # as Wav2Vec2FeatureExtractor does: over the whole utterance
        if self.normalize:
            wave = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7)
        # Chunks of 30 s bound the memory. Each reads on into the next, so that it gives CHUNK / HOP
        # frames, a whole number: put together they are one 20 ms grid.
        starts = range(0, max(len(wave) - RECEPTIVE_FIELD + 1, 1), CHUNK)
        return [wave[start : start + CHUNK + RECEPTIVE_FIELD - HOP] for start in starts]

    def _encode(self, one: Pass, pieces: list[np.ndarray]) -> torch.Tensor:
        if self.lengths is None:
            mask_BS, x_BS = None, pieces[one.members[0]][None]
        else:
            x_BS = np.zeros((one.rows, (one.length - 1) * HOP + RECEPTIVE_FIELD), np.float32)
            # rows that only fill up have a frame: of none, attention and norm would make NaN
            samples_B = np.full(one.rows, RECEPTIVE_FIELD)
            for row, i in enumerate(one.members):
                x_BS[row, : len(pieces[i])] = pieces[i]
                samples_B[row] = len(pieces[i])
            mask_BS = self.sent(np.arange(x_BS.shape[1]) < samples_B[:, None])
            self.lengths.samples_B = self.sent(samples_B)
            self.lengths.frames_B = self.sent(_frames(samples_B))
        with self.computing():
            out = self.model(
                self.sent(x_BS),
                attention_mask=mask_BS,
                output_hidden_states=not self.is_last,
            )
            x_BTD: torch.Tensor = (
                out.last_hidden_state if self.is_last else self.layers.of(out.hidden_states)
            )
        return x_BTD


def _frames(samples: Any) -> Any:
    """That the convolutions make of so many."""
    return (samples - RECEPTIVE_FIELD) // HOP + 1


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
