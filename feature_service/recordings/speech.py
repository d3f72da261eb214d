"""Where somebody speaks: Silero's voice activity detector over a recording's sound, which is heard
in pieces and never held whole."""

from __future__ import annotations

import array
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import av
import numpy as np
import torch

from feature_service.operators.clip import ClipError
from feature_service.operators.container import open_container, video_streams
from feature_service.operators.sound import Decoding

RATE = 16_000
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


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """`speech`: stretches (start, end) in seconds, ascending. `loudness` float32 [N]: root mean
    square of every HOP samples, the first at `start_s`. `duration_s`: of the whole recording.
    `pictures`: whether it has some, not decoded."""

    speech: list[tuple[float, float]]
    loudness: np.ndarray
    start_s: float
    duration_s: float
    pictures: bool = True

    def loudness_at(self, times_s: np.ndarray) -> np.ndarray:
        """float32 [T], the mean of AROUND values; silence before and after the sound."""
        sums = np.concatenate([[0.0], np.cumsum(self.loudness, dtype=np.float64)])
        at = np.floor((times_s - self.start_s) * RATE / HOP).astype(int) - AROUND // 2
        low, high = (np.clip(x, 0, len(self.loudness)) for x in (at, at + AROUND))
        return np.asarray((sums[high] - sums[low]) / AROUND, np.float32)


def hear(file: BinaryIO, *, max_s: float = math.inf) -> Heard:
    """The first sound of an open recording; its pictures are not decoded. Seconds count from the
    first of its sound and pictures. Raises ClipError for what is no media, damaged, or longer than
    `max_s` seconds."""
    try:
        opened = open_container(file)
    except (av.FFmpegError, ValueError) as error:
        raise ClipError("decode", f"is no audio or video file, or damaged ({error})") from error
    with opened as container:
        try:
            return _heard(container, max_s)
        except av.FFmpegError as error:
            raise ClipError("decode", f"the stream is damaged ({error})") from error


def _heard(container: Any, max_s: float) -> Heard:
    stated = (container.duration or 0) / av.time_base
    _check_length(stated, max_s)
    videos = video_streams(container)
    if not container.streams.audio:
        return Heard([], np.empty(0, np.float32), 0.0, stated, bool(videos))
    sound, listener = _Sound(container, container.streams.audio[0]), Listener()
    for piece in sound:
        listener.add(piece)
        # A header may lie.
        _check_length(listener.seconds, max_s)
    speech, loudness, seconds = listener.result()

    starts = [s.start_time * s.time_base for s in videos if s.start_time is not None]
    first = sound.first_s or 0.0
    start = first - min([first, *map(float, starts[:1])])
    speech = [(a + start, b + start) for a, b in speech]
    return Heard(speech, loudness, start, max(stated, start + seconds), bool(videos))


def _check_length(seconds: float, max_s: float) -> None:
    if seconds > max_s:
        raise ClipError("decode", f"is longer than {max_s:g} s; cut it into several")


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


class _Sound:
    """A stream's pieces as 16 kHz mono. `first_s`: when it begins on the container's clock, once
    the first piece is there."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.container, self.stream = container, stream
        self.first_s: float | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        decoding = Decoding()
        resampler: Any = None
        kind: tuple[str, str, int] | None = None
        for frames in decoding.frames(self.container.demux(self.stream)):
            for frame in frames:
                if self.first_s is None:
                    self.first_s = frame.time
                # rate or channels may change midway
                its = frame.layout.name, frame.format.name, frame.sample_rate
                if kind != its:
                    kind = its
                    yield from _mixed(resampler.resample(None) if resampler else [])
                    resampler = _resampler(frame.layout.nb_channels)
                yield from _mixed(resampler.resample(frame))
        # the filter holds the last samples back until it is told that no more come
        if resampler:
            yield from _mixed(resampler.resample(None))
        decoding.check()


def _resampler(channels: int) -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder (5.1: 3.4x).
    return av.AudioResampler(
        format="fltp",
        layout="mono" if channels == 1 else "stereo",
        rate=RATE,
        options={"rematrix_maxval": "1.0"},
    )


def _mixed(frames: Iterable[Any]) -> Iterator[np.ndarray]:
    for frame in frames:
        channels = frame.to_ndarray()
        mix = channels.mean(axis=0)
        # Channels of opposite sign cancel; what one of them holds is heard by itself.
        power = channels.var(axis=1)
        if len(channels) > 1 and mix.var() < power.sum() / len(channels) ** 2 / 2:
            mix = channels[power.argmax()]
        yield np.ascontiguousarray(mix, np.float32)
