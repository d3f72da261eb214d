"""Results in every format hold the same, and are read back by what reads such files."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from feature_service.recordings.annotations import tiers_of, write_annotations
from feature_service.recordings.results import COLUMNS, disagreement, result_row, write_results
from feature_service.recordings.tracks import Sight
from feature_service.recordings.transcripts import Cue, read_transcript
from feature_service.recordings.utterances import GAP, SPEECH, Utterance
from lfmim.data.importers.elan import read_elan
from lfmim.data.importers.praat import read_textgrid
from lfmim.data.importers.utterances import tier_columns, utterances

CLASSES = ("anger", "joy", "neutral")
SURE, UNSURE = np.array([0.1, 0.8, 0.1]), np.array([0.3, 0.3, 0.4])
FACE = [
    Sight(3, t, np.array([1, 2, 3, 4.5], np.float32), np.zeros((5, 2)), 1.0, 0.0) for t in (5, 6)
]


def rows():
    made = lambda n, u, p, **more: result_row(  # noqa: E731
        n, u, p, classes=CLASSES, calibrated=["text"], **more
    )
    said = Utterance(0.5, 2.25, SPEECH, 'Say "hi" <b> & --> go', "Ann")
    over = Utterance(2.0, 4.0, SPEECH, "我也是", "Bob")
    return [
        made(1, said, {"text": SURE, "audio": UNSURE, "multimodal": SURE}, text_source="given"),
        made(2, over, {"text": UNSURE, "multimodal": UNSURE}, text_source="given"),
        made(3, Utterance(5.0, 8.0, GAP), {"vision": SURE}, face=FACE),
        made(4, Utterance(9.0, 9.5, SPEECH), {}, error="decode: damaged"),
    ]


def test_an_absent_head_is_null_and_a_present_one_says_whether_it_is_calibrated_or_abstains():
    first, second, gap, bad = rows()
    assert (first["label_text"], first["calibrated_text"], first["abstain_text"]) == (
        "joy",
        True,
        False,
    )
    assert (second["calibrated_multimodal"], second["abstain_multimodal"]) == (False, True)
    for what in ("label", "probabilities", "calibrated", "abstain"):
        assert gap[f"{what}_audio"] is None
        assert bad[f"{what}_multimodal"] is None
    assert (gap["text"], gap["text_source"], gap["speaker"], gap["track"]) == (
        None,
        None,
        "unknown",
        3,
    )
    assert gap["boxes"][0] == {"time_s": 5, "x1": 1, "y1": 2, "x2": 3, "y2": 4.5}
    assert [r["disagreement"] is None for r in rows()] == [False, True, True, True]


def test_disagreement_is_nought_for_the_same_and_one_for_strangers():
    a, b, c = np.eye(3)
    assert disagreement([a, a, a]) == 0
    assert disagreement([a, b]) == pytest.approx(1)
    assert disagreement([a, b, c]) == pytest.approx(1)
    assert disagreement([a]) is None
    p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
    # by hand: H(.75, .25) - (1 + 0) / 2
    assert disagreement([p, q]) == pytest.approx(0.811278 - 0.5, abs=1e-6)


def test_parquet_csv_and_json_hold_the_same(tmp_path):
    about = {"recording": "talk.mp4", "duration_s": 10.0, "model": "m"}
    parquet, csv, whole = write_results(rows(), tmp_path / "t.x", classes=CLASSES, about=about)
    assert [p.name for p in (parquet, csv, whole)] == ["t.x.parquet", "t.x.csv", "t.x.json"]
    table = pq.read_table(parquet)
    assert table.schema.equals(COLUMNS)
    found = json.loads(whole.read_text(encoding="utf-8"))
    assert found["utterances"] == table.to_pylist()
    assert (found["schema"], found["version"], found["classes"]) == (
        "lfmim-recording",
        1,
        list(CLASSES),
    )
    head = {k: v for k, v in found.items() if k != "utterances"}
    assert json.loads(table.schema.metadata[b"lfmim-recording"]) == head

    frame = pd.read_csv(csv, dtype=str, keep_default_na=False)
    assert list(frame["track"]) == ["", "", "3", ""]
    assert (
        float(frame["probability_text_joy"][0]) == found["utterances"][0]["probabilities_text"][1]
    )
    assert frame["probability_audio_joy"][2] == frame["label_audio"][2] == ""


def said(row):
    """What the importers should read of a row: heads that abstain say nothing."""
    labels = {
        f"label_{h}": row[f"label_{h}"]
        for h in ("text", "audio", "vision", "multimodal")
        if row[f"label_{h}"] and not row[f"abstain_{h}"]
    }
    text = {"text": row["text"]} if row["text"] else {}
    return {"start_s": row["start_s"], "end_s": row["end_s"], **labels, **text}


def test_the_importers_read_what_is_written_for_elan_and_praat(tmp_path):
    _, eaf, grid = write_annotations(rows(), tmp_path / "t", media="t.mp4", end_s=10.0)
    tiers, media = read_elan(eaf)
    assert set(media) == {"t.mp4"}
    filled = {name: [p for p in parts if p.value] for name, parts in read_textgrid(grid).items()}
    assert filled == tiers
    for found in (tiers, read_textgrid(grid)):
        # the second speaks while the first does, and has tiers of her own
        assert {"text", "speaker", "text 2", "speaker 2", "label_vision"} <= set(found)
        read = utterances(found, tier_columns(found, "", "t"))
        speakers = [r.pop("speaker") for r in read]
        assert speakers == ["Ann", ""]
        assert read == [said(rows()[0]), said(rows()[2])]


def test_tiers_do_not_overlap_and_fill_the_recording(tmp_path):
    _, _, grid = write_annotations(rows(), tmp_path / "t", media="t.mp4", end_s=10.0)
    for parts in read_textgrid(grid).values():
        assert parts[0].start == 0
        assert parts[-1].end == 10
        assert all(a.end == b.start for a, b in itertools.pairwise(parts))
    assert tiers_of([]) == {}


def test_subtitles_can_be_read_as_a_transcript(tmp_path):
    vtt, _, _ = write_annotations(rows(), tmp_path / "t", media="t.mp4", end_s=10.0)
    assert read_transcript(vtt) == [
        Cue(0.5, 2.25, 'Say "hi" <b> & --> go [multimodal: joy 80%]', "Ann"),
        Cue(2.0, 4.0, "我也是 [multimodal: neutral 40%?]", "Bob"),
        Cue(5.0, 8.0, "[vision: joy 80%]"),
    ]
