"""A recording's utterances: which heads answer, from the features that a job would store."""

from __future__ import annotations

import dataclasses
import json

import av
import numpy as np
import pytest
import torch
from recording import write_recording

from feature_service.operators.crop import Crop
from feature_service.operators.listen import listen
from feature_service.pipeline.predict import for_model
from feature_service.pipeline.stages import build_stage, new_row, stages_of
from feature_service.recordings.faces import LARGEST, SPEAKING, Eyes, FaceFinder
from feature_service.recordings.predict import Settings, UtterancePredictor
from feature_service.recordings.speech import Heard, hear
from feature_service.recordings.transcripts import Cue
from feature_service.recordings.utterances import GAP, SPEECH, Utterance, utterances_of
from lfmim.config import ExtractConfig
from lfmim.schema import FEATURE_COLUMNS, HEADS, MODALITIES, InputError, Modality
from tests.support.models import tiny_predictor

CONFIG = ExtractConfig(manifest="-", store="-")
SAID = Utterance(0.0, 2.4, SPEECH, "今天真高兴", "Ann")


@pytest.fixture(scope="module")
def recording(media, tmp_path_factory):
    """A poem and a sentence with pauses over a face: 320x240, ten pictures a second."""
    path = tmp_path_factory.mktemp("recording") / "talk.mp4"
    speech = sorted(media.glob("*.wav"))
    truth = write_recording(path, speech, [media / "single_face.mp4"], seconds=9)
    assert len(truth) == 2
    return path


@pytest.fixture(scope="module")
def heard(recording):
    with open(recording, "rb") as file:
        return hear(listen(file))


@pytest.fixture(scope="module")
def utterances():
    return UtterancePredictor(tiny_predictor(), CONFIG, Settings(face=LARGEST))


def look(predictor, utterance, path, heard, tracker=None):
    decoded = predictor.decoded(utterance, path)
    return predictor.reader.look(decoded, utterance.kind, heard, tracker)


def rows(predictor, number, utterance, path, heard):
    seen = look(predictor, utterance, path, heard)
    return [p.row for p in predictor.rows(number, utterance, seen)]


def test_speech_has_four_heads_and_a_gap_the_face_alone(recording, heard, utterances):
    first = look(utterances, SAID, recording, heard)
    silence = Utterance(2.4, 4.0, GAP)
    second = look(utterances, silence, recording, heard, first.tracker)
    ((said, _),) = utterances.rows(1, SAID, first)
    ((gap, _),) = utterances.rows(2, silence, second)
    assert all(said[f"label_{head}"] for head in HEADS)
    assert (said["text_source"], said["text_confidence"]) == ("transcript", None)
    assert (said["calibrated_audio"], said["calibrated_text"]) == (True, False)
    assert 0 <= said["disagreement"] <= 1
    assert [bool(gap[f"label_{head}"]) for head in HEADS] == [False, False, True, False]
    assert gap["track"] == said["track"] == 1
    times = [box["time_s"] for box in gap["boxes"]]
    assert times == sorted(set(times))
    assert times[0] >= 2.4
    assert times[-1] < 4.0


def test_without_a_transcript_there_is_no_text_head(recording, heard, utterances):
    found = utterances_of(heard, None, where="talk")
    spoken = next(u for u in found if u.kind == SPEECH)
    (row,) = rows(utterances, 1, spoken, recording, heard)
    assert (row["text"], row["text_source"], row["label_text"]) == (None, None, None)
    assert row["label_audio"]
    assert row["label_multimodal"]
    cues = [Cue(spoken.start_s, spoken.end_s, "word")]
    assert [u.text for u in utterances_of(heard, cues, where="t") if u.kind == SPEECH] == ["word"]


def test_the_features_are_those_that_a_job_stores(recording, heard, utterances):
    """To the bit: the same manifest row, under any id, from another folder."""
    config = for_model(CONFIG, utterances.predictor)
    stretch = {"start_s": SAID.start_s, "end_s": SAID.end_s}
    given = {"id": "row 7", "video": str(recording), "text": SAID.text, **stretch}
    (row,) = [new_row(given)]
    for name in stages_of(config):
        (row,) = build_stage(name, config)([row])
    features = {m: [row[FEATURE_COLUMNS[m]]] for m in MODALITIES}
    wanted = utterances.predictor.predict(features)

    (mine,) = rows(utterances, 1, SAID, recording, heard)
    for head in HEADS:
        assert mine[f"probabilities_{head}"] == wanted[head][0].tolist(), head


def test_what_cannot_be_used_is_a_row_with_its_reason(recording, heard, utterances):
    beyond = Utterance(90.0, 91.0, SPEECH)
    (row,) = rows(utterances, 1, beyond, recording, heard)
    assert row["error"].startswith("decode: its stretch ends at 91.000 s, the recording at")
    assert row["label_multimodal"] is None


def test_a_gap_without_a_face_is_no_row(media, heard, utterances):
    gap = Utterance(0.0, 2.0, GAP)
    assert rows(utterances, 1, gap, media / "no_face.mp4", heard) == []


def test_a_model_of_sound_alone_and_one_that_needs_everything(recording, heard):
    deaf = UtterancePredictor(tiny_predictor([Modality.AUDIO]), CONFIG, Settings())
    assert not deaf.sees
    (row,) = rows(deaf, 1, SAID, recording, heard)
    assert [bool(row[f"label_{head}"]) for head in HEADS] == [False, True, False, True]
    assert row["track"] is None
    needy = UtterancePredictor(tiny_predictor(name="tfn"), CONFIG, Settings())
    (row,) = rows(needy, 1, Utterance(0.0, 2.0, GAP), recording, heard)
    assert row["label_vision"] is None
    assert "needs every modality" in row["error"]


def test_a_recogniser_gives_the_text_and_how_sure_it_is(recording, heard, utterances, monkeypatch):
    asked = []

    def recognise(wave):
        asked.append(len(wave) / 16_000)
        return "又见面了", 0.75

    monkeypatch.setattr(utterances, "recogniser", recognise)
    silent = Utterance(0.5, 2.0, SPEECH)
    (row,) = rows(utterances, 1, silent, recording, heard)
    assert (row["text"], row["text_source"]) == ("又见面了", "recognised")
    assert row["text_confidence"] == 0.75
    assert row["label_text"]
    rows(utterances, 2, SAID, recording, heard)
    rows(utterances, 3, Utterance(2.4, 4.0, GAP), recording, heard)
    assert asked == [pytest.approx(1.5, abs=0.01)]


def test_settings_are_checked_at_once():
    with pytest.raises(InputError, match=r"--abstain 1\.5"):
        Settings(abstain=1.5)
    with pytest.raises(InputError, match="--language: only --asr uses it"):
        Settings(language="zh")
    if not torch.cuda.is_available():
        on_gpu = dataclasses.replace(CONFIG, gpus_per_worker=1.0)
        with pytest.raises(InputError, match="there is no GPU here"):
            UtterancePredictor(tiny_predictor([Modality.AUDIO]), on_gpu, Settings())
    sentiment = tiny_predictor([Modality.AUDIO], task="sentiment")
    with pytest.raises(InputError, match="sentiment scores"):
        UtterancePredictor(sentiment, CONFIG, Settings())


def side_by_side(*paths, count=24, fps=8, height=256):
    """Frames uint8 [count, 256, W, 3] of clips beside each other."""
    columns = []
    for path in paths:
        out = []
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                if frame.time >= len(out) / fps and len(out) < count:
                    width = round(frame.width * height / frame.height)
                    out.append(frame.to_ndarray(format="rgb24", width=width, height=height))
        columns.append(np.stack(out))
    return np.concatenate(columns, axis=2)


def test_each_other_face_is_a_listener_and_the_largest_rule_knows_one(media):
    frames = side_by_side(media / "talking_head.mp4", media / "portrait_20s.mp4")
    with open(media / "talking_head.mp4", "rb") as file:
        heard = hear(listen(file))
    indices, times = np.arange(len(frames)), np.arange(len(frames)) / 8
    finder = FaceFinder(Eyes(Crop("box", 48), SPEAKING))
    first, other = finder(frames, indices, times, SPEECH, heard)
    assert first.crops.shape == other.crops.shape == (24, 48, 48, 3)
    assert {s.track for s in first.sights} != {s.track for s in other.sights}
    (only,) = FaceFinder(Eyes(Crop("box", 48), LARGEST))(frames, indices, times, SPEECH, heard)
    assert len(only.sights) == len(frames)


def test_a_tracker_goes_on_from_its_state_as_if_nothing_had_been(media):
    frames = side_by_side(media / "talking_head.mp4", count=16)
    silent = Heard([], np.empty(0, np.float32), 0.0, 9.0)
    whole, cut = (FaceFinder(Eyes(Crop("box", 48), SPEAKING)) for _ in range(2))
    for finder in (whole, cut):
        finder(frames[:8], np.arange(8), np.arange(8) / 8, GAP, silent)
    cut.follow(json.loads(json.dumps(cut.tracker.state())))
    one, two = (
        f(frames[8:], np.arange(8), 1 + np.arange(8) / 8, GAP, silent) for f in (whole, cut)
    )
    assert [(s.track, s.motion) for s in one[0].sights] == [
        (s.track, s.motion) for s in two[0].sights
    ]
