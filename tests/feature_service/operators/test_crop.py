"""What a vision encoder is shown: where a known face lands in each kind of crop."""

from __future__ import annotations

import numpy as np
import pytest

from feature_service.operators.crop import ALIGNED, TEMPLATE, Crop, whole_frames
from feature_service.operators.face import FaceCropper, build_cropper
from feature_service.pipeline.contact_sheet import sample_crops
from feature_service.pipeline.stages import CROPS, FRAMES, build_stage, new_row
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.data.store import rows_to_table, store_schema, write_part, write_spec
from lfmim.schema import FACE_FOUND, EncoderSpec, FeatureSpec
from tests.support.clips import write_clip
from tests.support.toy import SPEC

BOX = np.array([100, 40, 160, 140], np.float32)
POINTS = TEMPLATE * 80 + [90, 50]


@pytest.fixture
def frame() -> np.ndarray:
    """A ramp: red is the column, green the row."""
    y, x = np.mgrid[:200, :240]
    return np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8)


def shown(crop: np.ndarray) -> list[float]:
    """Left, top, right and bottom edge in the frame's pixels, from the ramp's middle rows."""
    side, middle = len(crop), len(crop) // 2
    x, y = crop[middle, :, 0].astype(float), crop[:, middle, 1].astype(float)
    step = (x[-2] - x[1]) / (side - 3)
    return [x[1] - 1.5 * step + 0.5, y[1] - 1.5 * step + 0.5, x[-2] + 1.5 * step + 0.5,
            y[-2] + 1.5 * step + 0.5]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "edges"),
    [("box", [80, 40, 180, 140]), ("loose", [55, 15, 205, 165]), ("aligned", [90, 50, 170, 130])],
)
def test_edges_of_a_crop(frame, kind, edges):
    crop = Crop(kind, 112)
    cut = crop.cut(frame, crop.around(BOX, POINTS))
    assert cut.shape == (112, 112, 3)
    assert cut.dtype == np.uint8
    np.testing.assert_allclose(shown(cut), edges, atol=1.5)


def test_beyond_the_frame_is_black(frame):
    crop = Crop("box", 64)
    cut = crop.cut(frame, crop.around(np.array([-50, 20, 50, 120], np.float32), POINTS))
    assert (cut[:, :30] == 0).all()
    assert (cut[:, 34:, 2] > 250).all()


def test_a_whole_frame_is_all_there_between_bars(frame):
    (found,) = whole_frames(frame[None], 120)
    assert (found[:9] == 0).all()
    assert (found[-9:] == 0).all()
    assert (found[12:108, :, 2] > 250).all()
    np.testing.assert_allclose(found[60, [1, -2], 0], [2.5, 236.5], atol=2)


def test_whole_frames_need_no_face():
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    crops, found = build_cropper(Crop("frame", 32))(noise)
    assert (crops.shape, found) == ((3, 32, 32, 3), None)
    crops, found = build_cropper(ALIGNED)(noise)
    assert crops is None
    assert not found.any()


def spec_of(crop: Crop) -> FeatureSpec:
    settings = {"crop": crop.kind}
    vision = EncoderSpec(
        name="v", revision="", weights_sha256="v", dim=8, max_length=0, settings=settings
    )
    sampling = {"segments": 2, "frames_per_segment": 2, "seed": 0, "crop_size": crop.size}
    return FeatureSpec(encoders={**SPEC.encoders, "vision": vision}, sampling=sampling)


def test_extraction_prediction_and_the_contact_sheet_cut_what_the_spec_says(media, tmp_path):
    """The face stage is built from the spec alone, in extraction as for a single clip."""
    config = ExtractConfig(
        manifest="m", store="s", segments=2, frames_per_segment=2, encoders=EncoderConfig()
    )
    video = str(media / "single_face.mp4")
    (row,) = build_stage("decode", config)([new_row({"id": "a", "video": video, "text": ""})])
    frames = row[FRAMES]
    by_kind = {}
    for crop in (ALIGNED, Crop("box", 112), Crop("loose", 96), Crop("frame", 64)):
        (found,) = build_stage("face", config, spec=spec_of(crop))([{**row, FRAMES: frames}])
        assert found[CROPS].shape == (4, crop.size, crop.size, 3)
        by_kind[crop.kind] = found
    assert by_kind["frame"].get(FACE_FOUND) is None
    assert by_kind["box"][FACE_FOUND].all()
    # without a spec, of the configured encoder
    (plain,) = build_stage("face", config)([{**row, FRAMES: frames}])
    np.testing.assert_array_equal(plain[CROPS], by_kind["aligned"][CROPS])
    box = FaceCropper(crop=Crop("box", 112))(frames)
    np.testing.assert_array_equal(box.crops, by_kind["box"][CROPS])

    for crop in (Crop("box", 112), Crop("frame", 64)):
        store = tmp_path / crop.kind
        spec = spec_of(crop)
        write_spec(store, spec)
        stored = {
            "id": "a",
            "video": video,
            "split": "train",
            FACE_FOUND: by_kind[crop.kind].get(FACE_FOUND),
        }
        write_part(store, rows_to_table([stored], store_schema(spec.dims), spec.dims))
        (sheet,) = sample_crops(store, 1)
        assert sheet.image.shape == (crop.size, crop.size, 3)
        # as it is found in this frame alone
        expected, _ = build_cropper(crop)(frames[2:3])
        np.testing.assert_array_equal(sheet.image, expected[0])


def test_a_clip_without_a_face_has_whole_frames(tmp_path):
    clip = write_clip(tmp_path / "c.mp4")
    config = ExtractConfig(manifest="m", store="s", encoders=EncoderConfig(vision_crop="frame"))
    (row,) = build_stage("decode", config)([new_row({"id": "a", "video": str(clip), "text": ""})])
    (row,) = build_stage("face", config)([row])
    assert row[CROPS].shape == (64, 224, 224, 3)
