"""CH-SIMS, CH-SIMS v2 and MMSA-FET trees -> manifest: `label.csv` (v2: `meta.csv`) beside
`Raw/<video_id>/<clip_id>.mp4`."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from lfmim.data.importers.base import register_importer, written
from lfmim.data.manifest import cell
from lfmim.data.tables import read_rows, write_manifest
from lfmim.schema import (
    ID,
    MULTIMODAL,
    SENTIMENT_COLUMNS,
    SPLIT,
    SPLITS,
    TEXT,
    VIDEO,
    InputError,
    default_labels,
)
from lfmim.storage import local_path, output_file

TABLES = ("label.csv", "meta.csv", "meta(s).csv")
OTHER_NAMES = {"val": "valid"}
SCORES = {"text": "label_T", "audio": "label_A", "vision": "label_V", MULTIMODAL: "label"}


def import_sims(source: Path, output: Path) -> list[str]:
    """Read `source`/label.csv or meta.csv (columns by name), write the manifest `output`; ids are
    `<video_id>$_$<clip_id>`.

    A clip whose video is missing keeps its text. Returns lines of a report. Raises InputError
    naming file, row, field.
    """
    path = next((p for t in TABLES if (p := source / t).is_file()), source / TABLES[0])
    frame = read_rows(str(path), ("video_id", "clip_id", TEXT, "label"))
    rows, missing = [], 0

    for number, record in enumerate(frame.to_dict("records"), start=1):
        where = f"{path}: row {number}"
        # Cells of a CSV come as text: clip "0001" is 0001.mp4, and a number has lost its zeros.
        names = [_name(cell(record[c]), f"{where}, field '{c}'") for c in ("video_id", "clip_id")]
        video = source / "Raw" / names[0] / f"{names[1]}.mp4"
        missing += not video.is_file()

        mode = cell(record.get("mode"))
        mode = OTHER_NAMES.get(mode, mode)
        if mode and mode not in SPLITS:
            raise InputError(f"{where}, field 'mode': {mode!r} is not one of {', '.join(SPLITS)}")
        parse = default_labels().parse_sentiment
        scores = {
            SENTIMENT_COLUMNS[h]: parse(record.get(c), where=f"{where}, field '{c}'")
            for h, c in SCORES.items()
        }

        rows.append(
            {
                ID: "$_$".join(names),
                VIDEO: str(video) if video.is_file() else "",
                TEXT: cell(record[TEXT]),
                SPLIT: mode,
                **{c: math.nan if s is None else s for c, s in scores.items()},
                "video_id": names[0],
                "clip_id": names[1],
                "annotation": cell(record.get("annotation")),
            }
        )

    manifest = pd.DataFrame(rows)
    # Some clips may be gone, but without any, --source is the wrong folder.
    if missing == len(manifest):
        raise InputError(
            f"{source}: no clip of {path.name} is there; expected for example "
            f"Raw/{rows[0]['video_id']}/{rows[0]['clip_id']}.mp4"
        )
    repeated = manifest[ID].duplicated()
    if repeated.any():
        raise InputError(
            f"{path}: row {int(repeated.to_numpy().argmax()) + 1}, field 'clip_id': video_id and "
            "clip_id repeat an earlier row"
        )

    write_manifest(manifest, output)
    unread = [
        str(c)
        for c in frame
        if c not in ("video_id", "clip_id", TEXT, "mode", "annotation", *SCORES.values())
    ]
    return [
        f"{len(manifest)} clips; {missing} videos missing (their rows keep the text)",
        *([f"  columns not carried over: {', '.join(unread)}"] if unread else []),
    ]


def _name(value: str, where: str) -> str:
    if not value or value in (".", "..") or "/" in value or "\\" in value or "\0" in value:
        raise InputError(f"{where}: {value!r} is not a plain name, so it could leave the tree")
    return value


@register_importer("sims")
def sims(*, source: str, output: str) -> list[str]:
    """A CH-SIMS or CH-SIMS v2 tree -> manifest.

    Args:
        source: folder with label.csv or meta.csv, and Raw/.
        output: manifest to write (.csv, .jsonl, .parquet).
    """
    given, made = local_path(source, "--source"), output_file(output, "--output")
    return written(import_sims(given, made), output)
