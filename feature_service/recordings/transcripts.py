"""Transcripts as people have them (SRT, WebVTT, Whisper's JSON, CSV, ELAN, Praat) -> cues."""

from __future__ import annotations

import dataclasses
import html
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lfmim.data.importers.elan import read_elan
from lfmim.data.importers.praat import read_textgrid
from lfmim.data.importers.utterances import Interval, utterances
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows
from lfmim.schema import SPEAKER, TEXT, InputError, listed
from lfmim.text_files import decode, parse_json, whole

UNKNOWN = "unknown"
"""The speaker where the transcript does not say."""
START, END = "start", "end"
SHOWN = 5
"""Places that a message names of many."""

TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
"""h:mm:ss.fff, the hours optional; SRT writes the fraction behind a comma."""
ARROW = re.compile(r"\s*(\S+)\s*-->\s*(\S+)")
VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
"""HTML's and WebVTT's marks, karaoke times, and positions as SubStation Alpha writes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cue:
    """What one speaker says in a stretch of a recording; seconds from its start."""

    start_s: float
    end_s: float
    text: str
    speaker: str = UNKNOWN


def read_transcript(path: Path, *, tiers: str = "") -> list[Cue]:
    """The cues of a transcript in the order of their start; the suffix tells the format. They may
    overlap. What has no length or no word is left out, and said.

    `tiers`: names, joined by commas, of the tiers of words in an ELAN or Praat file; by default
    those called 'text', else the only one. Several are several speakers'. Raises InputError naming
    file and place for what cannot be read, ends before it begins, or holds no cue at all.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: no known transcript; give one of {', '.join(READERS)}")
    tiered = reader in (_elan, _textgrid)
    if tiers and not tiered:
        raise InputError(f"{path}: has no tiers; leave their names out")
    if not path.is_file():
        raise InputError(f"{path}: no such file")

    cues, empty = [], []
    for place, cue in reader(path, tiers) if tiered else reader(path):
        if not (math.isfinite(cue.start_s) and math.isfinite(cue.end_s) and cue.start_s >= 0):
            raise InputError(f"{path}: {place}: {cue.start_s} to {cue.end_s} s is no stretch of it")
        if cue.end_s < cue.start_s:
            raise InputError(
                f"{path}: {place}: ends at {cue.end_s:.3f} s, before it begins at "
                f"{cue.start_s:.3f} s; correct its times"
            )
        text = " ".join(whole(cue.text).split())
        if not text or cue.end_s == cue.start_s:
            empty.append(place)
        else:
            speaker = cue.speaker.strip() or UNKNOWN
            cues.append(Cue(cue.start_s, cue.end_s, text, speaker))

    if not cues:
        raise InputError(f"{path}: no cue with words and a length; is this a transcript?")
    if empty:
        logging.getLogger(__name__).warning(
            "%s: %d cues without words or length are left out (%s)",
            path,
            len(empty),
            listed(empty, most=SHOWN),
        )
    # Stable: cues of one start stay in the file's order.
    return sorted(cues, key=lambda c: c.start_s)


Placed = Iterator[tuple[str, Cue]]
"""Where in the file a cue stands, for messages, and the cue."""


def _subtitles(path: Path) -> Placed:
    """SRT and WebVTT: blocks of lines, each with a line of times."""
    lines = _text(path).splitlines()
    n, kinds = 0, ("NOTE", "STYLE", "REGION", "WEBVTT")
    while n < len(lines):
        block = n
        while n < len(lines) and lines[n].strip():
            n += 1
        here = lines[block:n]
        n += 1
        if not here or (path.suffix.lower() == ".vtt" and here[0].split()[0] in kinds):
            continue

        # Before the times stands the cue's number or name, or nothing.
        at = next((k for k, line in enumerate(here[:2]) if "-->" in line), None)
        if at is None:
            # Words behind an empty line: some write one within a cue. They belong to nothing else.
            raise InputError(
                f"{path}: line {block + 1}: {here[0][:40]!r} belongs to no cue: times "
                "'00:00:01,000 --> 00:00:02,000' are expected here; remove the empty line above "
                "it, or the words"
            )
        times = ARROW.match(here[at])
        place = f"line {block + at + 1}"
        if times is None:
            raise InputError(f"{path}: {place}: {here[at]!r} is no pair of times")
        start, end = (seconds_of(t, path, place) for t in times.groups())
        if any("-->" in line for line in here[at + 1 :]):
            raise InputError(f"{path}: {place}: two cues without an empty line between them")
        words = "\n".join(here[at + 1 :])
        speakers = dict.fromkeys(html.unescape(v).strip() for v in VOICE.findall(words))
        yield place, Cue(start, end, html.unescape(TAG.sub("", words)), ", ".join(speakers))


def _whisper(path: Path) -> Placed:
    """Whisper's own JSON and that of its kin: `segments` of start, end, text, perhaps speaker."""
    try:
        found = parse_json(_text(path))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON: {error}") from error
    segments = found.get("segments") if isinstance(found, Mapping) else found
    if not isinstance(segments, list):
        raise InputError(
            f"{path}: no list 'segments' as in Whisper's JSON (whisper --output_format json)"
        )
    for number, part in enumerate(segments, start=1):
        place = f"segment {number}"
        missing = [k for k in (START, END, TEXT) if not isinstance(part, Mapping) or k not in part]
        if missing:
            raise InputError(f"{path}: {place}: has no '{missing[0]}'")
        start, end = (seconds_of(part[k], path, place) for k in (START, END))
        yield place, Cue(start, end, str(part[TEXT] or ""), str(part.get(SPEAKER) or ""))


def _csv(path: Path) -> Placed:
    """Columns start, end, text and perhaps speaker; seconds or h:mm:ss."""
    frame = read_rows(str(path), (START, END, TEXT))
    for number, row in enumerate(frame.to_dict("records"), start=1):
        place = f"row {number}"
        start, end = (seconds_of(row[k], path, f"{place}, field '{k}'") for k in (START, END))
        yield place, Cue(start, end, cell(row[TEXT]), cell(row.get(SPEAKER)))


def _elan(path: Path, tiers: str) -> Placed:
    return _tiers(read_elan(path)[0], tiers, path)


def _textgrid(path: Path, tiers: str) -> Placed:
    return _tiers(read_textgrid(path), tiers, path)


def _tiers(found: Mapping[str, Sequence[Interval]], given: str, path: Path) -> Placed:
    asked = [name.strip() for name in given.split(",") if name.strip()]
    words = asked or [name for name in found if name.lower() == TEXT] or list(found)
    if unknown := [name for name in words if name not in found]:
        raise InputError(f"{path}: no tier {unknown[0]!r}; it has {', '.join(found)}")
    # A tier of words beside one of phones or gestures: which is which only people know.
    if len(words) > 1 and not asked:
        raise InputError(
            f"{path}: which of its tiers hold the words? Name them (tiers), or call one "
            f"'text'. They are {', '.join(found)}"
        )

    for name in words:
        # With a tier per speaker its name is the speaker's, unless ELAN's field says another.
        said = name if len(words) > 1 else ""
        columns = {name: TEXT} | {t: SPEAKER for t in found if t.lower() == SPEAKER}
        for row in utterances(found, columns):
            place = f"tier {name!r}, {row['start_s']:.3f} s"
            speaker = row.get(SPEAKER) or said
            yield place, Cue(row["start_s"], row["end_s"], row[TEXT], speaker)


READERS: dict[str, Callable[..., Placed]] = {
    ".srt": _subtitles,
    ".vtt": _subtitles,
    ".json": _whisper,
    ".csv": _csv,
    ".eaf": _elan,
    ".textgrid": _textgrid,
}


def _text(path: Path) -> str:
    try:
        return decode(path.read_bytes(), str(path), table=True)[0]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def seconds_of(value: object, path: Path, place: str) -> float:
    """Seconds, or h:mm:ss.fff. Raises InputError."""
    text = cell(value)
    if found := TIME.fullmatch(text):
        hours, minutes, seconds = found.groups()
        return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
    try:
        return float(text)
    except ValueError:
        raise InputError(
            f"{path}: {place}: {text!r} is no time; write seconds (12.5) or h:mm:ss.fff"
        ) from None
