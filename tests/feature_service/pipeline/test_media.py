"""The real clips through the extraction job, in one manifest."""

from __future__ import annotations

import av
import numpy as np
import pandas as pd
import pytest

from feature_service.pipeline.extract import extract_features
from lfmim.config import ExtractConfig
from lfmim.data.store import quarantined, read_table, sequences
from lfmim.schema import MODALITIES, FeatureSpec, Modality

pytestmark = [pytest.mark.ray]


@pytest.fixture(scope="module")
def stored(media, ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    (folder / "broken.mp4").write_bytes(b"\0" * 1000)
    clips = [
        *sorted(p for p in media.iterdir() if p.suffix in (".mp4", ".mov", ".wav")),
        folder / "broken.mp4",
    ]
    pd.DataFrame(
        {
            "id": [p.name for p in clips],
            "video": [str(p) for p in clips],
            "text": "今天天气真好。",
            "note": "kept",
        }
    ).to_csv(folder / "m.csv", index=False)
    config = ExtractConfig(manifest=str(folder / "m.csv"), store=str(folder / "store"))
    return config, extract_features(config), folder / "store", clips


def test_every_row_is_stored_or_quarantined_and_a_rerun_does_nothing(stored):
    config, summary, store, clips = stored
    assert (summary.rows_in, summary.stored, sum(summary.quarantined.values())) == (
        len(clips),
        len(clips) - 1,
        1,
    )
    assert quarantined(store)["id"].to_pylist() == ["broken.mp4"]
    again = extract_features(config)
    assert (again.already_done, again.stored) == (len(clips), 0)


def test_shapes_and_values(stored):
    _, _, store, _ = stored
    table, dims = read_table(store), FeatureSpec.load(store).dims
    assert set(table["note"].to_pylist()) == {"kept"}
    for m in MODALITIES:
        for name, x in zip(table["id"].to_pylist(), sequences(table, m), strict=True):
            if m is Modality.VISION and (name.endswith(".wav") or name == "no_face.mp4"):
                assert x is None
                continue
            assert x.shape[1] == dims[m]
            assert np.isfinite(x).all()
            if m is not Modality.AUDIO:
                assert len(x) == (64 if m is Modality.VISION else 9)


def test_faces(stored):
    table = read_table(stored[2], ["face_found"])
    found = dict(
        zip(table["id"].to_pylist(), map(np.array, table["face_found"].to_pylist()), strict=True)
    )
    assert found["talking_head.mp4"].all()
    assert found["single_face.mp4"].all()
    assert not found["no_face.mp4"].any()
    assert 0 < found["noface_face.mov"].sum() < 64


def test_audio_has_its_true_length_to_20_ms(stored):
    _, _, store, clips = stored
    table = read_table(store)
    lengths = {
        n: len(x)
        for n, x in zip(table["id"].to_pylist(), sequences(table, Modality.AUDIO), strict=True)
    }
    for path in clips[:-1]:
        with av.open(str(path)) as container:
            samples = sum(f.samples for f in container.decode(audio=0))
            seconds = samples / container.streams.audio[0].rate
        # wav2vec2 has no vector for the last 5 ms of its 25 ms receptive field.
        assert abs(lengths[path.name] - (seconds - 0.005) / 0.02) <= 1, path.name
