"""Recordings from file to result: what is written, what a stop costs, and what many come to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from recording import write_recording

from feature_service.recordings import features as features_lib
from feature_service.recordings import job
from feature_service.recordings.agreement import read_codes, write_agreement
from feature_service.recordings.predict import Settings, UtterancePredictor
from feature_service.recordings.results import result_row
from feature_service.recordings.seconds import by_second
from feature_service.recordings.utterances import GAP, LISTENER, SPEECH, Utterance
from lfmim.config import ExtractConfig
from lfmim.data.corrections import row_id
from lfmim.data.store import read_table, sequences
from lfmim.schema import LabelSpec, Modality
from tests.support.models import tiny_predictor

CONFIG = ExtractConfig(manifest="-", store="-")
ABOUT = {"model": "m"}
CLASSES = ("anger", "joy", "neutral")


@pytest.fixture(scope="module")
def talk(media, tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "talk.mp4"
    write_recording(path, sorted(media.glob("*.wav")), [media / "single_face.mp4"], seconds=12)
    return path


@pytest.fixture(scope="module")
def ears():
    """A model of sound alone: nothing here depends on the rest."""
    return UtterancePredictor(tiny_predictor([Modality.AUDIO]), CONFIG, Settings())


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def one(talk: Path, folder: Path) -> job.Task:
    return job.tasks_of([str(talk)], "", folder)[0]


class Stopped(Exception):
    """As a kill between two utterances."""


def stop_after(ears: UtterancePredictor, count: int, monkeypatch) -> list[int]:
    """Have `ears.rows` raise at its next utterance after so many; the numbers it is asked for."""
    asked: list[int] = []
    rows = ears.rows

    def counted(number, *given):
        asked.append(number)
        if len(asked) > count:
            raise Stopped
        return rows(number, *given)

    monkeypatch.setattr(ears, "rows", counted)
    return asked


def test_a_stopped_job_goes_on_where_it_was_and_a_finished_one_is_left(
    talk, ears, tmp_path, monkeypatch
):
    whole = job.predict_recording(ears, one(talk, tmp_path / "whole"), about=ABOUT)
    assert len(whole.rows) == 3
    assert not (tmp_path / "whole" / "talk.parts").exists()

    with monkeypatch.context() as patch:
        asked = stop_after(ears, 2, patch)
        with pytest.raises(Stopped):
            job.predict_recording(ears, one(talk, tmp_path / "cut"), about=ABOUT)
    assert asked == [1, 2, 3]
    assert [p.name for p in (tmp_path / "cut").iterdir()] == ["talk.parts"]
    with monkeypatch.context() as patch:
        asked = stop_after(ears, 9, patch)
        job.predict_recording(ears, one(talk, tmp_path / "cut"), about=ABOUT)
        assert asked == [3]
        again = job.predict_recording(ears, one(talk, tmp_path / "cut"), about=ABOUT)
        assert asked == [3]
    assert again.rows == whole.rows
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_features_are_kept_where_corrections_are_wanted(talk, ears, tmp_path, monkeypatch):
    task, folder = one(talk, tmp_path), tmp_path / "talk.features"
    with monkeypatch.context() as patch:
        stop_after(ears, 2, patch)
        with pytest.raises(Stopped):
            job.predict_recording(ears, task, about=ABOUT, keep_features=True)
    # Parts of one kind of run are not gone on from by the other, which would leave holes.
    with pytest.raises(job.InputError, match="left by a run with another"):
        job.predict_recording(ears, task, about=ABOUT)
    done = job.predict_recording(ears, task, about=ABOUT, keep_features=True)
    table = read_table(folder)
    sha256 = json.loads(done.result.read_text())["media_sha256"]
    assert table["id"].to_pylist() == [row_id(sha256, n) for n in range(3)]
    assert set(table["media_sha256"].to_pylist()) == {sha256}
    assert table["start_s"].to_pylist() == [row["start_s"] for row in done.rows]
    assert table["label_audio"].to_pylist() == [None] * 3
    features = {Modality.AUDIO: sequences(table, Modality.AUDIO)}
    again = ears.predictor.predict(features)["audio"]
    stored = np.array([row["probabilities_audio"] for row in done.rows])
    np.testing.assert_allclose(again, stored, atol=1e-6)

    features_lib.copy_row(folder, tmp_path / "kept", 2, row_id(sha256, 1))
    assert read_table(tmp_path / "kept")["id"].to_pylist() == [row_id(sha256, 1)]
    for number, id in ((2, row_id(sha256, 0)), (9, row_id(sha256, 1))):
        with pytest.raises(job.InputError, match=r"has no row|were not kept"):
            features_lib.copy_row(folder, tmp_path / "kept", number, id)


def test_what_is_written(talk, ears, tmp_path):
    done = job.predict_recording(ears, one(talk, tmp_path), about=ABOUT)
    names = {f"talk{end}" for end in (".parquet", ".csv", ".json", ".vtt", ".eaf", ".TextGrid")}
    assert set(files_of(tmp_path)) == names | {"talk.seconds.parquet", "talk.seconds.csv"}
    found = json.loads(done.result.read_text(encoding="utf-8"))
    assert (found["schema"], found["version"], found["model"]) == ("lfmim-recording", 1, "m")
    assert (done.result.parent / found["media"]).resolve() == talk
    assert [row["utterance"] for row in found["utterances"]] == [1, 2, 3]
    seconds = pq.read_table(tmp_path / "talk.seconds.parquet").to_pylist()
    assert [s["second"] for s in seconds] == list(range(int(np.ceil(found["duration_s"]))))
    inside = int(found["utterances"][1]["start_s"]) + 1
    assert seconds[inside]["label_audio"] == found["utterances"][1]["label_audio"]
    table = pd.read_csv(tmp_path / "talk.seconds.csv")
    assert len(table) == len(seconds)
    assert str(done).startswith("talk.mp4: 0:00:1")


def test_parts_of_another_model_or_other_cuts_are_not_gone_on_from(
    talk, ears, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        stop_after(ears, 1, patch)
        with pytest.raises(Stopped):
            job.predict_recording(ears, one(talk, tmp_path), about=ABOUT)
    (tmp_path / "talk.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nword\n")
    (task,) = job.tasks_of([str(talk)], str(tmp_path / "talk.srt"), tmp_path)
    with pytest.raises(job.InputError, match=r"talk\.parts: left by a run with another model"):
        job.predict_recording(ears, task, about=ABOUT)


def test_files_folders_and_their_transcripts(tmp_path, caplog):
    for name in ("a/x.mp4", "a/b/x.MOV", "a/y.wav", "a/notes.txt", "t/y.srt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder, output = str(tmp_path / "a"), tmp_path / "out"
    tasks = job.tasks_of([folder, f"{folder}/y.wav"], str(tmp_path / "t"), output)
    assert [t.media.name for t in tasks] == ["x.MOV", "x.mp4", "y.wav"]
    stems = [t.stem.relative_to(output).as_posix() for t in tasks]
    assert stems == ["x/x", "x-2/x-2", "y/y"]
    assert [t.transcript for t in tasks] == [None, None, tmp_path / "t" / "y.srt"]
    assert len(caplog.messages) == 2
    (alone,) = job.tasks_of([f"{folder}/notes.txt"], "", output)
    assert alone.stem == output / "notes"

    for given, transcript, said in (
        ([str(tmp_path / "none.mp4")], "", "no such file"),
        ([str(tmp_path / "t")], "", "no recording in this folder"),
        ([folder], "none.srt", "--transcript none.srt: no such file"),
        ([folder], str(tmp_path / "t" / "y.srt"), "is one file, for 3 recordings"),
    ):
        with pytest.raises(job.InputError, match=said):
            job.tasks_of(given, transcript, output)


def row(kind, start, end, p, number=1, **more):
    answers = {"multimodal": None if p is None else np.array(p)}
    return result_row(
        number, Utterance(start, end, kind), answers, classes=CLASSES, calibrated=(), **more
    )


def test_seconds_are_means_weighted_by_what_covers_them():
    rows = [
        row(SPEECH, 0.5, 1.25, [0.2, 0.8, 0.0]),
        row(LISTENER, 0.5, 1.25, [1.0, 0.0, 0.0]),
        row(GAP, 1.25, 1.75, [0.6, 0.0, 0.4]),
        row(SPEECH, 3.0, 4.0, None),
    ]
    first, second, third, fourth = by_second(rows, CLASSES, 3.5)
    assert first["probabilities_multimodal"] == pytest.approx([0.2, 0.8, 0.0])
    assert second["probabilities_multimodal"] == pytest.approx([1.4 / 3, 0.8 / 3, 0.8 / 3])
    assert second["label_multimodal"] == "anger"
    assert third["label_multimodal"] is fourth["probabilities_multimodal"] is None
    assert first["label_text"] is None


def done(tmp_path, rows, name="talk"):
    task = job.Task(tmp_path / f"{name}.mp4", None, tmp_path / name / name)
    return job.Done(task, rows, 10.0)


def test_the_overview_has_the_most_disagreement_first(tmp_path):
    apart = {"text": np.array([1.0, 0, 0]), "audio": np.array([0, 1.0, 0])}
    torn = result_row(1, Utterance(0, 1, SPEECH), apart, classes=CLASSES, calibrated=())
    same = dict.fromkeys(apart, np.array([0.1, 0.8, 0.1]))
    calm = result_row(1, Utterance(0, 3, SPEECH), same, classes=CLASSES, calibrated=())
    bored = row(GAP, 3, 4, [0, 0, 1.0])
    given = [
        job.failed_row(job.Task(tmp_path / "bad.mp4", None, tmp_path / "bad" / "bad"), "no media"),
        job.overview_row(done(tmp_path, [calm, bored], "calm")),
        job.overview_row(done(tmp_path, [torn], "torn")),
    ]
    whole, table = job.write_overview(given, tmp_path)
    found = json.loads(whole.read_text())["recordings"]
    assert [r["recording"] for r in found] == ["torn", "calm", "bad"]
    assert [r["disagreement"] for r in found] == [1.0, 0.0, None]
    assert found[1]["mix"] == {"joy": 0.75, "neutral": 0.25}
    assert (found[1]["result"], found[2]["error"]) == ("calm/calm.json", "no media")
    assert list(pd.read_csv(table).recording) == ["torn", "calm", "bad"]


def test_agreement_with_a_coded_sample(tmp_path):
    joy, anger, unsure = [0.1, 0.8, 0.1], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3]
    rows = [
        row(SPEECH, 0, 2, joy),
        row(LISTENER, 0, 2, anger),
        row(SPEECH, 2, 4, anger),
        row(SPEECH, 4, 6, unsure),
        row(GAP, 6, 8, joy),
    ]
    labels = LabelSpec(name="three", classes=CLASSES)
    path = tmp_path / "codes.csv"
    path.write_text(
        "start,end,label\n0.2,1.9,joy\n1.5,4,angry\n0:04.5,5,joy\n6,7,neutral\n20,21,joy\n8,9,\n"
    )
    written, text = write_agreement(
        read_codes(path, labels, ["talk"]), [done(tmp_path, rows)], tmp_path, CLASSES
    )
    found = json.loads(written.read_text())
    assert (found["codes"], found["classes"]) == (5, list(CLASSES))
    whole = found["heads"]["multimodal"]
    assert (whole["compared"], whole["not_compared"]) == (3, 2)
    assert whole["confusion"] == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    # Observed 2/3, by chance (1*1 + 1*2) / 9.
    assert whole["kappa"] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert found["heads"]["text"]["kappa"] is None
    assert "multimodal: 3 of 5 codes compared, kappa 0.500, equal 66.7%" in text

    for line, said in (
        ("3,2,joy", "row 1: 3.0 to 2.0 s is no stretch"),
        ("0,1,blue", "row 1, field 'label': unknown emotion 'blue'"),
        ("0,x,joy", "row 1, field 'end': 'x' is no time"),
        ("0,1,", "no row has a label"),
    ):
        path.write_text(f"start,end,label\n{line}\n")
        with pytest.raises(job.InputError, match=said):
            read_codes(path, labels, ["talk"])
    path.write_text("recording,start,end,label\nother.mp4,0,1,joy\n")
    with pytest.raises(job.InputError, match="row 1, field 'recording': 'other' is not among talk"):
        read_codes(path, labels, ["talk"])
    # Of a recording that could not be read.
    bad = read_codes(path, labels, ["other", "talk"])
    write_agreement(bad, [done(tmp_path, rows)], tmp_path, CLASSES)
    found = json.loads(written.read_text())
    assert (found["codes"], found["heads"]["multimodal"]["not_compared"]) == (1, 1)
