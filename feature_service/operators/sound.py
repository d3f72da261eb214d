"""The sound of an audio stream: mono, at the rate that the file has it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import av
import numpy as np

from feature_service.operators.channels import ChannelPower
from feature_service.operators.clip import SAMPLE_RATE, ClipError, DecodeOptions
from feature_service.operators.container import NOTHING, Span, check_duration, opened_again

HIGHEST_RATE, COMMON_DIVISOR, OTHER_RATE = 192_000, 25, 48_000
"""Hz. A higher rate, or one that shares less with SAMPLE_RATE, is brought to OTHER_RATE here: the
filter that resamples 16,001 Hz exactly has 256 million weights. All usual rates pass."""
BAD_AUDIO = 0.1
"""Share of audio packets that may fail to decode (first and last packets of sound streams often
do)."""

_Kind = tuple[str, str, int]
"""Layout, sample format and rate of a frame of sound: they may change midway."""
_Mixes = dict[_Kind, ChannelPower]
Packets = Callable[[], contextlib.AbstractContextManager[Iterable[Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """The samples [low, high) of a stream that is decoded from its sample `first` on."""

    first: int
    low: int
    high: int


@dataclasses.dataclass(frozen=True, slots=True)
class Sound:
    """`wave` float32 [S] at `rate` Hz or None, and when it was. `end`: samples of the stream up to
    where decoding stopped."""

    wave: np.ndarray | None
    rate: int
    span: Span
    end: int


SILENCE = Sound(None, 0, NOTHING, 0)


class Decoding:
    """Packets of sound -> frames, with a count of those that cannot be decoded."""

    def __init__(self) -> None:
        self.count = self.bad = 0

    def frames(self, packets: Iterable[Any]) -> Iterator[list[Any]]:
        """Those of each packet."""
        for packet in packets:
            self.count += packet.size > 0
            try:
                decoded = packet.decode()
            except av.error.EOFError:
                continue
            except (av.error.InvalidDataError, av.error.PatchWelcomeError):
                self.bad += 1
                continue
            yield decoded

    def check(self, *, nothing: bool = False) -> None:
        """Raise ClipError if too many were bad: any, where there came `nothing` of the others."""
        if self.bad > max(2, BAD_AUDIO * self.count) or (self.bad and nothing):
            raise ClipError(
                "decode",
                f"the audio stream is damaged: {self.bad} of {self.count} packets cannot be "
                "decoded",
            )


@contextlib.contextmanager
def from_the_start(file: BinaryIO, index: int) -> Iterator[Iterable[Any]]:
    """The packets of a stream, from a container of their own."""
    with opened_again(file) as again:
        yield again.demux(again.streams[index])


def decode_audio(
    packets: Iterable[Any], again: Packets, options: DecodeOptions, cut: Cut | None = None
) -> Sound:
    """The packets' sound (of a `cut` its samples alone) as mono, frame by frame: the channels are
    never held whole. `again` gives the same packets another time.

    Channels are mixed as FFmpeg does, by their mean for stereo. Where that cancels what they hold
    (one of them has the opposite sign), the loudest is taken alone. Raises ClipError if the sound
    is damaged or longer than `max_duration_s`.
    """
    mixes: _Mixes = {}
    sound = _mono(packets, options, mixes, {}, cut)

    # Which channel is the loudest shows at the end only. Sound that cancels is decoded a second
    # time, rather than all sound kept with all its channels.
    best = {kind: (power, power.best_alone()) for kind, power in mixes.items()}
    if any(which is not None for _, which in best.values()):
        with again() as packets:
            sound = _mono(packets, options, {}, best, cut)
    return sound


def _mono(
    packets: Iterable[Any],
    options: DecodeOptions,
    mixes: _Mixes,
    best: Mapping[_Kind, tuple[ChannelPower, int | None]],
    cut: Cut | None,
) -> Sound:
    """`mixes` gets what the mix does to the channels; `best`: the channel that is taken in place of
    the mix."""
    at, low, high = (cut.first, cut.low, cut.high) if cut else (0, 0, math.inf)
    mixer, decoding, seconds, start = _mixer(), Decoding(), 0.0, None
    # a part for each stretch of one rate: it may change midway
    parts: list[tuple[int, list[np.ndarray]]] = []
    for frames in decoding.frames(packets):
        for frame in frames:
            begins, at = at, at + frame.samples
            if at <= low or begins >= high:
                continue
            start = frame.time if start is None else start
            kind = frame.layout.name, frame.format.name, frame.sample_rate
            power, which = best.get(kind, (None, None))
            if power is not None and which is not None:
                frame = power.alone(frame, which)
            elif frame.layout.nb_channels > 1 and not best:
                if kind not in mixes:
                    mixes[kind] = ChannelPower(frame.layout.name, _mixer(), frame.sample_rate)
                mixes[kind].add(frame)
            try:
                mixed = mixer.resample(frame)
            except ValueError:  # rate or channels change midway
                mixer = _mixer()
                mixed = mixer.resample(frame)

            wave = np.concatenate([f.to_ndarray()[0] for f in mixed])
            wave = wave[max(low - begins, 0) : int(min(high - begins, len(wave)))]
            if not parts or parts[-1][0] != frame.sample_rate:
                parts.append((frame.sample_rate, []))
            parts[-1][1].append(wave)
            seconds += len(wave) / frame.sample_rate

        # More need not be decoded, nor held: the check below refuses it.
        if seconds > options.max_duration_s or at >= high:
            break

    check_duration(seconds, options)
    decoding.check(nothing=not parts)
    if not parts:
        return dataclasses.replace(SILENCE, end=at)
    rate = _handed_on(parts[0][0])
    waves = [_at_rate(np.concatenate(waves), r, rate) for r, waves in parts]
    wave = waves[0] if len(waves) == 1 else np.concatenate(waves)
    return Sound(np.ascontiguousarray(wave, np.float32), rate, Span(start, seconds), at)


def _handed_on(rate: int) -> int:
    usual = rate <= HIGHEST_RATE and math.gcd(rate, SAMPLE_RATE) >= COMMON_DIVISOR
    return rate if usual else OTHER_RATE


def _at_rate(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return wave
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave)[None], "flt", "mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="flt", layout="mono", rate=wanted)
    # the filter holds the last samples back until it is told that no more come
    return np.concatenate(
        [f.to_ndarray()[0] for f in [*resampler.resample(frame), *resampler.resample(None)]]
    )


def _mixer() -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder (5.1: 3.4x).
    return av.AudioResampler(format="flt", layout="mono", options={"rematrix_maxval": "1.0"})
