"""ELAN (.eaf): tiers of annotations of a recording -> manifest of its utterances."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from lfmim.data.importers.base import register_importer, written
from lfmim.data.importers.utterances import Interval, tier_columns, utterances, write_utterances
from lfmim.schema import InputError
from lfmim.storage import local_path, output_file


def read_elan(path: Path) -> tuple[dict[str, list[Interval]], str]:
    """Tiers by name, and the recording's name as the file has it. An annotation that refers to
    another has its time. Raises InputError."""
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

    media = root.find("HEADER/MEDIA_DESCRIPTOR")
    url = "" if media is None else media.get("RELATIVE_MEDIA_URL") or media.get("MEDIA_URL") or ""
    return tiers, Path(url).name


def _origin(name: str, parents: Mapping[str, str]) -> str:
    seen = set[str]()
    while name in parents and name not in seen:
        seen.add(name)
        name = parents[name]
    return name


@register_importer("elan")
def elan(
    *, source: str, output: str, tiers: str = "", labels: str = "", clips: str = ""
) -> list[str]:
    """An ELAN file -> manifest of the utterances of its recording.

    Args:
        source: the .eaf file.
        output: manifest to write (.csv, .jsonl, .parquet).
        tiers: TIER=COLUMN,... for tiers that are not called text, speaker, emotion, label_text,
            label_audio, label_vision or label_multimodal.
        labels: label spec, a shipped name or a YAML file; empty: cherma.
        clips: folder with the stretches that were cut out, as <id>.mp4 or <id>.wav.
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    found, recording = read_elan(given)
    rows = utterances(found, tier_columns(found, tiers, source))
    cut = local_path(clips, "--clips") if clips else None
    lines = write_utterances(rows, made, recording, labels=labels, clips=cut, where=source)
    return written(lines, output)
