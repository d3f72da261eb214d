"""Results as subtitles (WebVTT) and as tiers of ELAN and Praat, named as their importers read
them."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feature_service.recordings.transcripts import UNKNOWN
from feature_service.recordings.utterances import LISTENER
from lfmim.schema import HEADS, LABEL_COLUMNS, MULTIMODAL, SPEAKER, TEXT
from lfmim.storage import new_file, write_text

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""No XML holds them."""
Row = Mapping[str, Any]


def write_annotations(rows: Sequence[Row], stem: Path, *, media: str, end_s: float) -> list[Path]:
    """Write <stem>.vtt, .eaf and .TextGrid of rows of results.COLUMNS; returns them. `media`: the
    recording's path, relative to them if it is. Raises WriteError."""
    vtt, eaf, grid = (stem.with_name(stem.name + s) for s in (".vtt", ".eaf", ".TextGrid"))
    write_text(vtt, webvtt(rows))
    tiers = tiers_of(rows)
    with new_file(eaf) as temporary:
        _elan(tiers, media).write(temporary, encoding="utf-8", xml_declaration=True)
    write_text(grid, _textgrid(tiers, _ms(end_s)))
    return [vtt, eaf, grid]


def webvtt(rows: Sequence[Row]) -> str:
    """A cue per row: who says what, and the emotion with its probability: that of all heads
    together, or of the first that answers. A head that abstains is marked with a '?'."""
    blocks = ["WEBVTT"]
    for row in rows:
        # It stands beside an utterance, whose cue it would lie over.
        if row["kind"] == LISTENER:
            continue
        lines = []
        if row[TEXT]:
            who = "" if row[SPEAKER] == UNKNOWN else f"<v {_escaped(row[SPEAKER])}>"
            lines.append(who + _escaped(row[TEXT]))
        head = next((h for h in (MULTIMODAL, *HEADS) if row[f"label_{h}"]), None)
        if head:
            most, name = max(row[f"probabilities_{head}"]), _escaped(row[f"label_{head}"])
            lines.append(f"[{head}: {name} {most:.0%}{'?' * row[f'abstain_{head}']}]")
        if lines:
            times = f"{_clock(row['start_s'])} --> {_clock(row['end_s'])}"
            blocks.append("\n".join([times, *lines]))
    return "\n\n".join(blocks) + "\n"


Stretch = tuple[int, int, str]
"""Milliseconds from and to, and what is written there."""


def tiers_of(rows: Sequence[Row]) -> dict[str, list[Stretch]]:
    """Tier -> its stretches in time: text, speaker and label_<head>, without what a head abstains
    from. No two stretches of a tier overlap: what would goes to tiers of the same names with a
    number."""
    tiers: dict[str, list[Stretch]] = {}
    ends: list[int] = []
    for row in sorted(rows, key=lambda r: (r["start_s"], r["end_s"])):
        start, end = _ms(row["start_s"]), _ms(row["end_s"])
        if end <= start:
            continue
        layer = next((k for k, last in enumerate(ends) if last <= start), len(ends))
        ends[layer:] = [end, *ends[layer + 1 :]]

        values = {TEXT: row[TEXT], SPEAKER: row[SPEAKER] if row[TEXT] else None}
        values |= {
            column: None if row[f"abstain_{head}"] else row[f"label_{head}"]
            for head, column in LABEL_COLUMNS.items()
        }
        for name, value in values.items():
            if value:
                tier = name if layer == 0 else f"{name} {layer + 1}"
                tiers.setdefault(tier, []).append((start, end, _CONTROL.sub(" ", value)))
    return tiers


def _elan(tiers: Mapping[str, Sequence[Stretch]], media: str) -> ET.ElementTree:
    root = ET.Element(
        "ANNOTATION_DOCUMENT",
        {
            "AUTHOR": "",
            "DATE": "1970-01-01T00:00:00+00:00",  # the same results are the same file
            "FORMAT": "3.0",
            "VERSION": "3.0",
            "xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance",
            "xsi:noNamespaceSchemaLocation": "http://www.mpi.nl/tools/elan/EAFv3.0.xsd",
        },
    )
    header = ET.SubElement(root, "HEADER", {"MEDIA_FILE": "", "TIME_UNITS": "milliseconds"})
    kind = "video/mp4" if media.lower().endswith((".mp4", ".m4v", ".mov")) else "unknown"
    where = {"MEDIA_URL": media, "RELATIVE_MEDIA_URL": media, "MIME_TYPE": kind}
    ET.SubElement(header, "MEDIA_DESCRIPTOR", where)

    times = ET.SubElement(root, "TIME_ORDER")
    slots = sorted({t for parts in tiers.values() for part in parts for t in part[:2]})
    for ms in slots:
        ET.SubElement(times, "TIME_SLOT", {"TIME_SLOT_ID": f"ts{ms}", "TIME_VALUE": str(ms)})
    number = 0
    for name, parts in tiers.items():
        about = {"TIER_ID": name, "LINGUISTIC_TYPE_REF": "default-lt"}
        tier = ET.SubElement(root, "TIER", about)
        for start, end, value in parts:
            number += 1
            given = {
                "ANNOTATION_ID": f"a{number}",
                "TIME_SLOT_REF1": f"ts{start}",
                "TIME_SLOT_REF2": f"ts{end}",
            }
            outer = ET.SubElement(tier, "ANNOTATION")
            inner = ET.SubElement(outer, "ALIGNABLE_ANNOTATION", given)
            ET.SubElement(inner, "ANNOTATION_VALUE").text = value
    alignable = {"LINGUISTIC_TYPE_ID": "default-lt", "TIME_ALIGNABLE": "true"}
    ET.SubElement(root, "LINGUISTIC_TYPE", {**alignable, "GRAPHIC_REFERENCES": "false"})
    ET.indent(root)
    return ET.ElementTree(root)


def _textgrid(tiers: Mapping[str, Sequence[Stretch]], end_ms: int) -> str:
    """Praat's short text format; every tier is filled up with empty intervals."""
    end_ms = max([end_ms, *(part[1] for parts in tiers.values() for part in parts)])
    whole = ["0", _seconds(end_ms)]
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", *whole]
    lines += ["<exists>", str(len(tiers))]
    for name, parts in tiers.items():
        filled: list[Stretch] = []
        at = 0
        for start, end, value in [*parts, (end_ms, end_ms, "")]:
            filled += [(at, start, "")] * (start > at) + [(start, end, value)] * (end > start)
            at = end
        lines += ['"IntervalTier"', _quoted(name), *whole, str(len(filled))]
        for start, end, value in filled:
            lines += [_seconds(start), _seconds(end), _quoted(value)]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _escaped(text: str) -> str:
    return html.escape(_CONTROL.sub(" ", text), quote=False)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f}"


def _clock(seconds: float) -> str:
    minutes, ms = divmod(_ms(seconds), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}.{ms % 1000:03}"
