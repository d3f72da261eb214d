"""Features kept by a real prediction, with corrections, beside a store really extracted."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from recording import write_recording

from feature_service.pipeline.extract import extract_features
from feature_service.pipeline.stages import build_feature_spec
from feature_service.recordings import job
from feature_service.recordings.faces import LARGEST
from feature_service.recordings.predict import Settings, UtterancePredictor
from lfmim.config import ExtractConfig
from lfmim.data.corrections import Correction, append_correction, row_id
from lfmim.data.importers.corrections import import_corrections
from lfmim.data.store import read_table, sequences, stored_ids, write_spec
from lfmim.schema import MODALITIES, InputError, LabelSpec
from tests.support.models import tiny_predictor

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_they_join_a_store_of_the_same_encoders_and_no_other(media, ray_cluster, tmp_path):
    talk, result = tmp_path / "talk.mp4", tmp_path / "result"
    write_recording(talk, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=9)
    predictor = tiny_predictor()
    utterances = UtterancePredictor(
        predictor, ExtractConfig(manifest="-", store="-"), Settings(face=LARGEST)
    )
    task = job.tasks_of([str(talk)], "", result)[0]
    done = job.predict_recording(utterances, task, about={"model": "m"}, keep_features=True)
    sha256 = json.loads(done.result.read_text())["media_sha256"]
    bounds = [(row["start_s"], row["end_s"]) for row in done.rows]
    assert len(bounds) > 2
    spoken = next(n for n, row in enumerate(done.rows) if row["kind"] == "speech")
    label = predictor.meta.labels.classes[0]
    correction = Correction(
        media_sha256=sha256,
        row=spoken,
        start_s=bounds[spoken][0],
        end_s=bounds[spoken][1],
        head="vision",
        label=label,
        predicted=done.rows[spoken]["label_vision"],
        model="m",
        who="Ann",
        when="2026-11-28T01:02:03Z",
        seen=True,
    )
    append_correction(result / "talk.corrections.jsonl", correction)

    # The same stretches as rows of a manifest.
    rows = [
        {"id": f"r{n}", "video": str(talk), "split": "train", "start_s": a, "end_s": b}
        for n, (a, b) in enumerate(bounds)
    ]
    config = ExtractConfig(manifest=str(tmp_path / "m.csv"), store=str(tmp_path / "base"))
    pd.DataFrame(rows).assign(label_multimodal=label).to_csv(config.manifest, index=False)
    assert extract_features(config).stored == len(rows)

    report = import_corrections(result, tmp_path / "corrected", base=tmp_path / "base")
    assert f"  rows by split: train {len(rows) + 1} (1 corrected)" in report
    assert stored_ids(tmp_path / "corrected") == {r["id"] for r in rows} | {row_id(sha256, spoken)}
    made = read_table(tmp_path / "corrected").sort_by("id")
    ids = made["id"].to_pylist()
    kept, first = ids.index(row_id(sha256, spoken)), ids.index(f"r{spoken}")
    for m in MODALITIES:
        of_all = sequences(made, m)
        # Frames are drawn by recording and bounds, so the two are one to the bit.
        if m != "text":
            assert of_all[kept] is not None
            np.testing.assert_array_equal(of_all[kept], of_all[first])
    assert len(read_table(result / "talk.features")) == len(bounds)

    for field, value in (("seed", 1), ("frames_per_segment", 4)):
        other = build_feature_spec(dataclasses.replace(config, **{field: value}))
        write_spec(tmp_path / field, other, LabelSpec.load(tmp_path / "base"))
        with pytest.raises(InputError, match=rf"sampling\.{field}: .* vs {value}.*Give as --base"):
            import_corrections(result, tmp_path / "refused", base=tmp_path / field)
    assert not (tmp_path / "refused").exists()
