"""Face crops of stored clips, made again from their videos: to see with one's own eyes what was
encoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

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
    """Crops of `count` stored rows that have a video, chosen by `seed`, in id order.

    The frames are sampled as the store's spec says. A clip that is gone, cannot be decoded or has
    no face is told, not left out.
    """
    spec = FeatureSpec.load(store)
    sampling, rule = spec.sampling, CropRule.of(spec)
    table = read_table(store, [VIDEO, START, END, FACE_FOUND, LABEL_COLUMNS[Modality.VISION]])
    rows = [r for r in table.to_pylist() if r[VIDEO]]
    # a store of imported features was made from no clips, and its spec has no sampling
    if not rows or not count or "segments" not in sampling:
        return []

    chosen = np.random.default_rng(seed).choice(len(rows), min(count, len(rows)), replace=False)
    config = ExtractConfig(
        manifest="-",
        store=str(store),
        **{k: sampling[k] for k in ("segments", "frames_per_segment", "seed")},
    )
    decode, cropper = build_stage("decode", config), build_cropper(rule)
    return [_crop(rows[i], decode, cropper, faces=rule.kind != "frame") for i in sorted(chosen)]


def _crop(stored: dict[str, Any], decode: Any, cropper: Cropper, *, faces: bool) -> Crop:
    found = stored[FACE_FOUND] or []
    label = stored[LABEL_COLUMNS[Modality.VISION]] or "no label"
    shown = f"face in {sum(found)}/{len(found)} frames" if faces else "the whole frame"
    caption = f"{stored[ID]} · {label} · {shown}"
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
