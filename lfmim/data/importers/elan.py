"""ELAN (.eaf): tiers of annotations of a recording -> manifest of its utterances."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.utterances import (
    Interval,
    recording_of,
    tier_columns,
    utterances,
    write_utterances,
)
from lfmim.schema import InputError
from lfmim.storage import local_path, output_file


def read_elan(path: Path) -> tuple[dict[str, list[Interval]], list[str]]:
    """Tiers by name, and where the file says that its recording is, best first. An annotation that
    refers to another has its time. Raises InputError."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError) as error:
        raise InputError(f"{path}: cannot be read as an ELAN file: {error}") from error
    if root.tag != "ANNOTATION_DOCUMENT":
        raise InputError(f"{path}: not an ELAN file: its root is <{root.tag}>")

    try:
        slots = {
            s.get("TIME_SLOT_ID", ""): float(s.get("TIME_VALUE", "nan")) / 1000
            for s in root.iter("TIME_SLOT")
        }
    except ValueError as error:
        raise InputError(f"{path}: a time slot's TIME_VALUE is no number: {error}") from error
    times = {
        a.get("ANNOTATION_ID", ""): tuple(
            slots.get(a.get(f"TIME_SLOT_REF{k}", ""), float("nan")) for k in (1, 2)
        )
        for a in root.iter("ALIGNABLE_ANNOTATION")
    }
    parents = {
        a.get("ANNOTATION_ID", ""): a.get("ANNOTATION_REF", "") for a in root.iter("REF_ANNOTATION")
    }

    tiers: dict[str, list[Interval]] = {}
    for tier in root.iter("TIER"):
        found = tiers.setdefault(tier.get("TIER_ID", ""), [])
        for a in (a for kind in ("ALIGNABLE", "REF") for a in tier.iter(f"{kind}_ANNOTATION")):
            name = _origin(a.get("ANNOTATION_ID", ""), parents)
            start, end = times.get(name, (float("nan"),) * 2)
            # Between two slots ELAN may leave the time of a slot open.
            if start != start or end != end:
                raise InputError(f"{path}: annotation {name!r} has no time; align it in ELAN")
            value = a.findtext("ANNOTATION_VALUE") or ""
            found.append(Interval(start, end, value, tier.get("PARTICIPANT", "")))

    urls = [
        unquote(media.get(name, "")).removeprefix("file://")
        for media in root.findall("HEADER/MEDIA_DESCRIPTOR")
        for name in ("RELATIVE_MEDIA_URL", "MEDIA_URL")
    ]
    return tiers, [url for url in urls if url]


def _origin(name: str, parents: Mapping[str, str]) -> str:
    seen = set[str]()
    while name in parents and name not in seen:
        seen.add(name)
        name = parents[name]
    return name


@register_importer("elan")
def elan(
    *,
    source: str,
    output: str,
    tiers: str = "",
    labels: str = "",
    recording: str = "",
    clips: str = "",
) -> list[str]:
    """An ELAN file -> manifest of the utterances of its recording.

    Args:
        source: the .eaf file.
        output: manifest to write (.csv, .jsonl, .parquet).
        tiers: TIER=COLUMN,... for tiers that are not called text, speaker, emotion, label_text,
            label_audio, label_vision or label_multimodal.
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        recording: the recording; empty: where the .eaf says, or of that name beside it.
        clips: folder with stretches that were cut out, as <id>.mp4 or <id>.wav, instead.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    found, urls = read_elan(given)
    beside = [given.parent / p for url in urls for p in (url, Path(url).name)]
    media = recording_of(recording, beside, "--recording")
    name = media.name if media else Path(urls[0]).name if urls else ""
    rows = utterances(found, tier_columns(found, tiers, source))
    cut = local_path(clips, "--clips") if clips else None
    lines = write_utterances(rows, made, name, labels=labels, media=media, clips=cut, where=source)
    return written(lines, output)
