"""Face crops of stored clips, made again from their videos: to see with one's own eyes what was
encoded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from feature_service.operators.crop import Crop as CropRule
from feature_service.operators.face import Cropper, build_cropper
from feature_service.pipeline.stages import ERROR, FRAMES, build_stage, new_row
from lfmim.config import ExtractConfig
from lfmim.data.store import read_table
from lfmim.evaluation.store_report import Crop
from lfmim.schema import (
    END,
    FACE_FOUND,
    ID,
    LABEL_COLUMNS,
    START,
    TEXT,
    VIDEO,
    FeatureSpec,
    Modality,
)


def sample_crops(store: Path, count: int, *, seed: int = 0) -> list[Crop]:
    """Crops of `count` stored rows that have a video, chosen by `seed`, in id order; [] of a store
    that was not made from clips."""
    rows = [r for r in _stored(store) if r[VIDEO]]
    if not rows or not count or "segments" not in FeatureSpec.load(store).sampling:
        return []
    chosen = np.random.default_rng(seed).choice(len(rows), min(count, len(rows)), replace=False)
    return _crops(store, [rows[i] for i in sorted(chosen)])


def crops_of(store: Path, ids: Collection[str]) -> dict[str, Crop]:
    """Crops of the stored rows of these ids, by id."""
    rows = _stored(store, where=pc.field(ID).isin(list(ids)))
    return dict(zip((r[ID] for r in rows), _crops(store, rows), strict=True))


def _stored(store: Path, where: pc.Expression | None = None) -> list[dict[str, Any]]:
    columns = [VIDEO, START, END, FACE_FOUND, LABEL_COLUMNS[Modality.VISION]]
    return list(read_table(store, columns, where=where).to_pylist())


def _crops(store: Path, rows: Sequence[dict[str, Any]]) -> list[Crop]:
    """A crop per row. Frames are sampled as the store's spec says; a clip that is gone, cannot be
    decoded or has no face is told, not left out."""
    spec = FeatureSpec.load(store)
    sampling, rule = spec.sampling, CropRule.of(spec)
    # A store of imported features was made from no clips, and its spec has no sampling. Nothing is
    # decoded for it, and no detector loaded.
    if "segments" not in sampling or not any(r[VIDEO] for r in rows):
        return [Crop(r[ID], None, "the store was not made from a video") for r in rows]

    config = ExtractConfig(
        manifest="-",
        store=str(store),
        **{k: sampling[k] for k in ("segments", "frames_per_segment", "seed")},
    )
    decode, cropper = build_stage("decode", config), build_cropper(rule)
    return [_crop(r, decode, cropper, faces=rule.kind != "frame") for r in rows]


def _crop(stored: dict[str, Any], decode: Any, cropper: Cropper, *, faces: bool) -> Crop:
    found = stored[FACE_FOUND] or []
    label = stored[LABEL_COLUMNS[Modality.VISION]] or "no label"
    shown = f"face in {sum(found)}/{len(found)} frames" if faces else "the whole frame"
    caption = f"{stored[ID]} · {label} · {shown}"
    if not stored[VIDEO]:
        return Crop(caption, None, "the store was not made from a video")
    # of a URL only the decoder can tell, and does so in its error
    if "://" not in stored[VIDEO] and not Path(stored[VIDEO]).is_file():
        return Crop(caption, None, "the video is gone")
    given = {key: stored.get(key) for key in (ID, VIDEO, START, END)}
    (row,) = decode([new_row({**given, TEXT: ""})])
    frames = row.get(FRAMES)
    if row[ERROR] or frames is None:
        return Crop(caption, None, row[ERROR] or "no video stream")

    usable = np.flatnonzero(found) if faces else np.arange(len(frames))
    if not len(usable):
        return Crop(caption, None, "no face was found")
    middle = usable[len(usable) // 2]
    crops = cropper(frames[middle : middle + 1])[0] if middle < len(frames) else None
    if crops is None:
        return Crop(caption, None, "the face is not found again: the video has changed")
    return Crop(caption, crops[0])
