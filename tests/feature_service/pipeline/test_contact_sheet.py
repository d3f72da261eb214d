"""Crops of stored clips, decoded again; what cannot be shown is told."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from feature_service.pipeline.contact_sheet import crops_of, sample_crops
from feature_service.pipeline.stages import new_row
from lfmim.data.demo_corpus import make_clip
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from tests.support.toy import DIMS, SPEC, toy_rows


@pytest.mark.integration
def test_crops_of_real_clips_and_reasons(tmp_path):
    clip = tmp_path / "clip.mp4"
    make_clip(clip, {"text": "sadness", "audio": "anger", "vision": "happiness"}, key="k")
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    rows = toy_rows(5)
    for row, video, found in zip(
        rows,
        (clip, tmp_path / "gone.mp4", tmp_path / "broken.mp4", clip, ""),
        ([True] * 64, [True] * 64, [True] * 64, [False] * 64, None),
        strict=True,
    ):
        row |= {"video": str(video), "face_found": found}
    store = tmp_path / "store"
    write_spec(
        store,
        dataclasses.replace(SPEC, sampling={"segments": 8, "frames_per_segment": 8, "seed": 0}),
    )
    write_part(store, rows_to_table(rows, store_schema(DIMS), DIMS))
    face, gone, broken, no_face = sample_crops(store, 9)
    assert face.image.shape == (224, 224, 3)
    assert face.image.std() > 10
    assert "face in 64/64" in face.caption
    assert gone.reason == "the video is gone"
    assert broken.image is None
    assert broken.reason
    assert no_face.reason == "no face was found"
    again = sample_crops(store, 2, seed=5)
    assert [c.caption for c in again] == [c.caption for c in sample_crops(store, 2, seed=5)]
    assert len(again) == 2
    of = crops_of(store, {rows[4]["id"], rows[0]["id"]})
    assert list(of) == [rows[0]["id"], rows[4]["id"]]
    np.testing.assert_array_equal(of[rows[0]["id"]].image, face.image)
    assert of[rows[4]["id"]].reason == "the store was not made from a video"


def test_an_imported_store_has_no_clips(toy_store):
    assert sample_crops(toy_store, 4) == []
    (crop,) = crops_of(toy_store, ["test0000"]).values()
    assert (crop.image, crop.reason) == (None, "the store was not made from a video")


@pytest.mark.parametrize("score", [0.25, -1.0, None])
def test_sentiment_scores_travel_through_the_pipeline_as_numbers(score):
    extra = ["sentiment_text", "scene"]
    row = {"id": "a", "video": "", "text": "x", "sentiment_text": score, "scene": 3}
    table = rows_to_table([new_row(row)], store_schema(DIMS, extra), DIMS)
    assert table["sentiment_text"].to_pylist() == [score]
    assert table["scene"].to_pylist() == ["3"]
