"""Where somebody speaks: Silero's voice activity detector over a recording's sound, which is heard
in pieces and never held whole."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from feature_service.operators.clip import SAMPLE_RATE
from feature_service.operators.listen import Outline

RATE = SAMPLE_RATE
"""Hz that the detector hears."""
HOP = 512
"""Samples that it judges at once: 32 ms."""
MIN_SPEECH_S = 0.25
"""Shorter sounds are no speech."""
MIN_PAUSE_S = 1.0
"""Shorter pauses do not divide an utterance."""
PAD_S = 0.03
"""Added to both ends: the detector needs a little of a voice to hear it."""
AROUND = 9
"""Values of loudness that are averaged, 0.3 s: a word has quiet sounds, too."""
SILENT = np.empty(0, np.float32)


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """`speech`: stretches (start, end) in seconds, ascending. `loudness` float32 [N]: root mean
    square of every HOP samples, the first at `start_s`. `duration_s`: of the whole recording.
    `pictures`: whether it has some; `picture_size`: width and height, where they were looked at."""

    speech: list[tuple[float, float]]
    loudness: np.ndarray
    start_s: float
    duration_s: float
    pictures: bool = True
    picture_size: tuple[int, int] | None = None

    def loudness_at(self, times_s: np.ndarray) -> np.ndarray:
        """float32 [T], the mean of AROUND values; silence before and after the sound."""
        sums = np.concatenate([[0.0], np.cumsum(self.loudness, dtype=np.float64)])
        at = np.floor((times_s - self.start_s) * RATE / HOP).astype(int) - AROUND // 2
        low, high = (np.clip(x, 0, len(self.loudness)) for x in (at, at + AROUND))
        return np.asarray((sums[high] - sums[low]) / AROUND, np.float32)


def hear(sound: Iterable[np.ndarray | Outline]) -> Heard:
    """A recording, of what `listen` gives. Seconds count from the first of its sound and
    pictures."""
    listener: Listener | None = None
    for part in sound:
        if isinstance(part, Outline):
            outline = part
        else:
            listener = listener or Listener()
            listener.add(part)
    speech, loudness, seconds = listener.result() if listener else ([], SILENT, 0.0)
    start = outline.start_s
    return Heard(
        [(a + start, b + start) for a, b in speech],
        loudness,
        start,
        max(outline.stated_s, start + seconds),
        outline.pictures,
        outline.picture_size,
    )


class Listener:
    """Takes 16 kHz mono samples in pieces of any length by `add`."""

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        # Its import sets the threads of the whole process to one.
        import silero_vad

        torch.set_num_threads(threads)
        self._model = silero_vad.load_silero_vad()
        self._probability, self._loudness = array.array("f"), array.array("f")
        self._rest, self._samples = np.empty(0, np.float32), 0

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self._samples / RATE

    def add(self, piece: np.ndarray) -> None:
        """float32 [S]."""
        self._samples += len(piece)
        wave = np.concatenate([self._rest, piece])
        whole = len(wave) // HOP * HOP
        self._judge(wave[:whole])
        self._rest = wave[whole:]

    def result(self) -> tuple[list[tuple[float, float]], np.ndarray, float]:
        """Stretches of speech in seconds, loudness float32 [N] of every HOP samples, and the
        seconds heard. Nothing can be added behind it."""
        from silero_vad import get_speech_timestamps_from_probs

        if len(self._rest):
            self._judge(np.pad(self._rest, (0, HOP - len(self._rest))))
        found = get_speech_timestamps_from_probs(
            self._probability,
            sampling_rate=RATE,
            min_speech_duration_ms=round(MIN_SPEECH_S * 1000),
            min_silence_duration_ms=round(MIN_PAUSE_S * 1000),
            speech_pad_ms=round(PAD_S * 1000),
            audio_length_samples=self._samples,
        )
        speech = [(part["start"] / RATE, part["end"] / RATE) for part in found]
        return speech, np.frombuffer(self._loudness, np.float32), self.seconds

    @torch.inference_mode()
    def _judge(self, wave: np.ndarray) -> None:
        for part in wave.reshape(-1, HOP):
            self._probability.append(float(self._model(torch.from_numpy(part), RATE)))
            self._loudness.append(float(np.sqrt(np.mean(np.square(part, dtype=np.float64)))))
