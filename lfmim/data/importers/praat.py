"""Praat (.TextGrid): tiers of intervals of a recording -> manifest of its utterances."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.corpora import MEDIA
from lfmim.data.importers.utterances import (
    Interval,
    recording_of,
    tier_columns,
    utterances,
    write_utterances,
)
from lfmim.schema import InputError
from lfmim.storage import local_path, output_file
from lfmim.text_files import decode

TOKEN = re.compile(r'"((?:[^"]|"")*)"|\[\d*\]|(?<![\w.])(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?![\w])')
"""A text, an index (which says nothing new) or a number; all else in a long file is words for the
reader, which a short file leaves out."""


def read_textgrid(path: Path) -> dict[str, list[Interval]]:
    """Interval tiers by name, of a long or short text file, UTF-8 or UTF-16; tiers of points are
    left out. Raises InputError."""
    try:
        text = decode(path.read_bytes(), str(path), table=True)[0]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if "ooTextFile" not in text[:100] or "TextGrid" not in text[:200]:
        raise InputError(f"{path}: not a TextGrid in text; in Praat: Save as text file...")

    values = _values(text)
    tiers: dict[str, list[Interval]] = {}
    try:
        # "ooTextFile", "TextGrid", xmin, xmax, then the number of tiers.
        *_, count = (next(values) for _ in range(5))
        for _ in range(int(count)):
            kind, name, _, _, size = (next(values) for _ in range(5))
            found = []
            for _ in range(int(size)):
                if kind == "IntervalTier":
                    start, end, value = (next(values) for _ in range(3))
                    found.append(Interval(float(start), float(end), value))
                else:
                    next(values), next(values)
            if kind == "IntervalTier":
                tiers[name] = found
    # RuntimeError: what next() raises inside a generator when there is nothing left.
    except (StopIteration, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path}: not a whole TextGrid; it ends or turns after tier "
            f"{list(tiers)[-1:] or 'none'}"
        ) from error
    return tiers


def _values(text: str) -> Iterator[str]:
    for found in TOKEN.finditer(text):
        if found[1] is not None:
            yield found[1].replace('""', '"')
        elif found[2] is not None:
            yield found[2]


@register_importer("praat")
def praat(
    *,
    source: str,
    output: str,
    recording: str = "",
    tiers: str = "",
    labels: str = "",
    clips: str = "",
) -> list[str]:
    """A Praat TextGrid -> manifest of the utterances of its recording.

    Args:
        source: the .TextGrid file.
        output: manifest to write (.csv, .jsonl, .parquet).
        recording: the recording; empty: a file beside the TextGrid that is called as it is.
        tiers: TIER=COLUMN,... for tiers that are not called text, speaker, emotion, label_text,
            label_audio, label_vision or label_multimodal.
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        clips: folder with stretches that were cut out, as <id>.mp4 or <id>.wav, instead.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    found = read_textgrid(given)
    rows = utterances(found, tier_columns(found, tiers, source))
    cut = local_path(clips, "--clips") if clips else None
    media = recording_of(recording, map(given.with_suffix, MEDIA), "--recording")
    name = media.name if media else given.stem
    lines = write_utterances(rows, made, name, labels=labels, media=media, clips=cut, where=source)
    return written(lines, output)
