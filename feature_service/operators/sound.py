"""The sound of an audio stream: 16 kHz mono, resampled as it is decoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import av
import numpy as np

from feature_service.operators.channels import ChannelPower
from feature_service.operators.clip import SAMPLE_RATE, ClipError, DecodeOptions
from feature_service.operators.container import Span, check_duration, opened_again

BAD_AUDIO = 0.1
"""Share of audio packets that may fail to decode (first and last packets of sound streams often
do)."""

_Kind = tuple[str, str, int]
"""Layout, sample format and rate of a frame of sound: they may change midway."""
_Mixes = dict[_Kind, ChannelPower]


def decode_audio(
    file: BinaryIO, packets: Iterable[Any], options: DecodeOptions
) -> tuple[np.ndarray | None, Span]:
    """The packets' sound as 16 kHz mono, float32 [S], or None, and when it was. Frame by frame: the
    native samples are never held whole.

    Channels are mixed as FFmpeg does, by their mean for stereo. Where that cancels what they hold
    (one of them has the opposite sign), the loudest is taken alone. Raises ClipError if the sound
    is damaged or longer than `max_duration_s`.
    """
    mixes: _Mixes = {}
    wave, span, index = _mono(packets, options, mixes, {})

    # Which channel is the loudest shows at the end only. Sound that cancels is decoded a second
    # time, rather than all sound kept with all its channels.
    best = {kind: (power, power.best_alone()) for kind, power in mixes.items()}
    if any(which is not None for _, which in best.values()):
        with opened_again(file) as again:
            wave, _, _ = _mono(again.demux(again.streams[index]), options, {}, best)
    return wave, span


def _mono(
    packets: Iterable[Any],
    options: DecodeOptions,
    mixes: _Mixes,
    best: Mapping[_Kind, tuple[ChannelPower, int | None]],
) -> tuple[np.ndarray | None, Span, int]:
    """The wave, when it was, and its stream's index.

    `mixes` gets what the mix does to the channels; `best`: the channel that is taken in place of
    the mix."""
    limit = int(options.max_duration_s * SAMPLE_RATE)
    resampler, count, bad, samples, start, index = _resampler(), 0, 0, 0, None, 0
    parts: list[np.ndarray] = []
    for packet in packets:
        count += packet.size > 0
        index = packet.stream_index
        try:
            frames = packet.decode()
        except av.error.EOFError:
            continue
        except (av.error.InvalidDataError, av.error.PatchWelcomeError):
            bad += 1
            continue

        for frame in frames:
            start = frame.time if start is None else start
            kind = frame.layout.name, frame.format.name, frame.sample_rate
            power, which = best.get(kind, (None, None))
            if power is not None and which is not None:
                frame = power.alone(frame, which)
            elif frame.layout.nb_channels > 1 and not best:
                if kind not in mixes:
                    mixes[kind] = ChannelPower(frame.layout.name, _resampler(), SAMPLE_RATE)
                mixes[kind].add(frame)
            try:
                out = resampler.resample(frame)
            except ValueError:  # rate or channels change midway
                out, resampler = resampler.resample(None), _resampler()
                out += resampler.resample(frame)
            parts += [f.to_ndarray()[0] for f in out]
            samples += sum(f.samples for f in out)

        # More need not be decoded, nor held: the check below refuses it.
        if samples > limit:
            break

    # the filter holds the last samples back until it is told that no more come
    if samples:
        parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    wave = np.concatenate(parts) if parts else np.empty(0, np.float32)
    seconds = len(wave) / SAMPLE_RATE
    check_duration(seconds, options)
    if bad > max(2, BAD_AUDIO * count) or (bad and not wave.size):
        raise ClipError(
            "decode", f"the audio stream is damaged: {bad} of {count} packets cannot be decoded"
        )
    return (
        np.ascontiguousarray(wave, np.float32) if wave.size else None,
        Span(start, seconds),
        index,
    )


def _resampler() -> Any:
    # rematrix_maxval: channels that agree mix to themselves, not to something louder (5.1: 3.4x).
    return av.AudioResampler(
        format="flt", layout="mono", rate=SAMPLE_RATE, options={"rematrix_maxval": "1.0"}
    )
