"""What a mix to mono does to the channels of a sound."""

from __future__ import annotations

from typing import Any

import av
import numpy as np

WINDOW = 0.5
"""Seconds over which channels are compared."""
CANCELLED = 0.5
"""A mix with less than this share of the power that unrelated channels would give has lost what
they hold."""
LOST = 0.1
"""Share of the sound that a mix may lose before one channel is better than it."""

ALIKE = 0.9
"""Channels with at least this share of the loudest's power count as equally loud: the first is
taken."""


class ChannelPower:
    """Compares the power of a mono mix with that of its channels, window by window; frames of one
    layout, sample format and rate come through `add`.

    `resampler`: a fresh one, which makes the mix.
    """

    def __init__(self, layout: str, resampler: Any, sample_rate: int) -> None:
        count = av.AudioLayout(layout).nb_channels
        # One sample of each channel alone: the mix is what each weighs.
        eye = np.eye(count, dtype=np.float32).reshape(1, -1)
        unit = av.AudioFrame.from_ndarray(eye, format="flt", layout=layout)
        unit.sample_rate = sample_rate
        self._weights = np.concatenate([f.to_ndarray()[0] for f in resampler.resample(unit)])
        # PyAV's arrays of 8 planes and more end in a crash
        self._packed = av.AudioResampler(format="flt")

        self._power = np.zeros(count)
        self._whole = self._lost = 0.0
        self._clear()

    def add(self, frame: Any) -> None:
        channels = self._channels(frame).astype(float)
        self._samples += channels.shape[1]
        self._sums += channels.sum(axis=1)
        self._products += channels @ channels.T
        # Window by window: a recording may have opposite channels in one half only.
        if self._samples >= WINDOW * frame.sample_rate:
            self._close()

    def best_alone(self) -> int | None:
        """The channel that is better than the mix, because the mix cancels what the channels hold;
        else None."""
        self._close()
        if self._lost <= LOST * self._whole:
            return None
        return int(np.flatnonzero(self._power >= ALIKE * self._power.max())[0])

    def alone(self, frame: Any, which: int) -> Any:
        """A mono frame of one channel at its native rate."""
        samples = np.ascontiguousarray(self._channels(frame)[which : which + 1])
        alone = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        alone.sample_rate, alone.time_base, alone.pts = (
            frame.sample_rate,
            frame.time_base,
            frame.pts,
        )
        return alone

    def _channels(self, frame: Any) -> np.ndarray:
        """Native samples, float32 [C, N]."""
        packed = [
            f.to_ndarray().reshape(-1, len(self._weights)).T for f in self._packed.resample(frame)
        ]
        return np.concatenate(packed, axis=1)

    def _clear(self) -> None:
        count = len(self._weights)
        self._samples, self._sums, self._products = 0, np.zeros(count), np.zeros((count, count))

    def _close(self) -> None:
        if not self._samples:
            return
        # Covariances, not products: a constant offset is power that a mix never cancels, and would
        # hide sound that it does.
        covariance = self._products - np.outer(self._sums, self._sums) / self._samples
        unrelated = self._weights**2 * covariance.diagonal()
        mixed = self._weights @ covariance @ self._weights

        self._power += unrelated
        self._whole += float(unrelated.sum())
        self._lost += float(unrelated.sum()) * bool(mixed < CANCELLED * unrelated.sum())
        self._clear()
