"""Utterances that somebody marked in a recording: ELAN, Praat, Label Studio."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from lfmim.data.importers.elan import elan, read_elan
from lfmim.data.importers.label_studio import import_label_studio
from lfmim.data.importers.praat import praat, read_textgrid
from lfmim.data.importers.utterances import Interval, tier_columns
from lfmim.data.manifest import read_manifest
from lfmim.schema import InputError

EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT>
<HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/talk.mp4" RELATIVE_MEDIA_URL="./talk.mp4"/>
</HEADER>
<TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="0"/><TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="1500"/>
<TIME_SLOT TIME_SLOT_ID="t3" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="t4" TIME_VALUE="3250"/>
</TIME_ORDER>
<TIER TIER_ID="words" PARTICIPANT="Ann">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>Oh &amp; no</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="t3" TIME_SLOT_REF2="t4">
<ANNOTATION_VALUE>Yes</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER>
<TIER TIER_ID="emotion" PARTICIPANT="Ann" PARENT_REF="words">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a3" ANNOTATION_REF="a1">
<ANNOTATION_VALUE>sad</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a2">
<ANNOTATION_VALUE>happy</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
</TIER>
</ANNOTATION_DOCUMENT>
"""
LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 3.25
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "text"
        xmin = 0
        xmax = 3.25
        intervals: size = 2
        intervals [1]:
            xmin = 0
            xmax = 1.5
            text = "he said ""9 [1]"""
        intervals [2]:
            xmin = 1.5
            xmax = 3.25
            text = ""
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 3.25
        points: size = 1
        points [1]:
            number = 1e-05
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "label_audio"
        xmin = 0
        xmax = 3.25
        intervals: size = 2
        intervals [1]:
            xmin = 0.25
            xmax = 1.5
            text = "fear"
        intervals [2]:
            xmin = 1.5
            xmax = 3.25
            text = ""
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
3.25
<exists>
3
"IntervalTier"
"text"
0
3.25
2
0
1.5
"he said ""9 [1]"""
1.5
3.25
""
"TextTier"
"clicks"
0
3.25
1
1e-05
"x"
"IntervalTier"
"label_audio"
0
3.25
2
0.25
1.5
"fear"
1.5
3.25
""
'''


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_elan_tiers_become_utterances_and_find_their_clips(tmp_path):
    file = tmp_path / "talk.eaf"
    file.write_text(EAF, encoding="utf-8")
    given = {"source": str(file), "output": str(tmp_path / "m.csv"), "tiers": "words=text"}
    lines = elan(**given)
    rows = read(tmp_path / "m.csv")
    assert rows.label_multimodal.tolist() == ["sadness", "happiness"]
    assert rows.text.tolist() == ["Oh & no", "Yes"]
    assert rows.speaker.tolist() == ["Ann", "Ann"]
    assert rows[["start_s", "end_s"]].to_numpy().tolist() == [
        ["0.000", "1.500"],
        ["2.000", "3.250"],
    ]
    assert rows.recording.tolist() == ["talk.mp4"] * 2
    assert any("2 stretches have no file: talk.mp4 is not there" in line for line in lines)

    (tmp_path / "talk.mp4").touch()
    assert not any("no file" in line for line in elan(**given))
    rows = read(tmp_path / "m.csv")
    assert rows.video.tolist() == ["talk.mp4"] * 2
    (tmp_path / "other.wav").touch()
    elan(**given, recording=str(tmp_path / "other.wav"))
    assert read(tmp_path / "m.csv").video.tolist() == ["other.wav"] * 2
    with pytest.raises(InputError, match="--recording: no such file: gone"):
        elan(**given, recording="gone.wav")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "talk_0002.mp4").touch()
    elan(**given, clips=str(tmp_path / "cut"))
    rows = read(tmp_path / "m.csv")
    assert rows.video.tolist() == ["talk.mp4", "cut/talk_0002.mp4"]
    assert rows.start_s.tolist() == ["0.000", ""]  # a clip that was cut out is a row as a whole
    assert read_manifest(str(tmp_path / "m.csv")).end_s.tolist() == [1.5, None]
    with pytest.raises(InputError, match=r"--tiers 'wrds=text': .*\(words, emotion\)"):
        elan(**{**given, "tiers": "wrds=text"})
    file.write_text(EAF.replace("sad<", "glum<"), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"0\.000 s to 1\.500 s, field 'label_multimodal': .*'glum'"
    ):
        elan(**given)
    file.write_text(EAF.replace('TIME_VALUE="1500"', ""), encoding="utf-8")
    with pytest.raises(InputError, match="annotation 'a1' has no time"):
        read_elan(file)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_long_and_short_textgrids_are_read_alike(tmp_path, encoding):
    (tmp_path / "l.TextGrid").write_text(LONG, encoding=encoding)
    (tmp_path / "s.TextGrid").write_text(SHORT, encoding=encoding)
    tiers = read_textgrid(tmp_path / "l.TextGrid")
    assert tiers == read_textgrid(tmp_path / "s.TextGrid")
    assert tiers["text"][0] == Interval(0, 1.5, 'he said "9 [1]"')
    assert list(tiers) == ["text", "label_audio"]
    praat(source=str(tmp_path / "l.TextGrid"), output=str(tmp_path / "m.csv"))
    (row,) = read(tmp_path / "m.csv").to_dict("records")
    assert (row["text"], row["label_audio"], row["start_s"]) == ('he said "9 [1]"', "fear", "0.250")
    assert row["video"] == ""
    (tmp_path / "l.wav").touch()
    praat(source=str(tmp_path / "l.TextGrid"), output=str(tmp_path / "m.csv"))
    assert read(tmp_path / "m.csv")[["video", "recording"]].to_numpy().tolist() == [["l.wav"] * 2]
    # Cut off within a tier of intervals, and within one of points.
    for whole in (SHORT[:-60], SHORT[: SHORT.index("1e-05")]):
        (tmp_path / "s.TextGrid").write_text(whole, encoding=encoding)
        with pytest.raises(InputError, match=r"s\.TextGrid: not a whole TextGrid"):
            read_textgrid(tmp_path / "s.TextGrid")


def test_tiers_without_a_known_name_are_asked_for():
    with pytest.raises(InputError, match=r"name one with --tiers TIER=emotion\. Its tiers: a, b"):
        tier_columns(["a", "b"], "", "x.eaf")


def task(number: int, name: str, *results: dict, **more: object) -> dict:
    return {"id": number, "data": {"video": name}, "annotations": [{"result": results, **more}]}


def choice(value: str, **span: float) -> dict:
    return {"from_name": "emotion", "type": "choices", "value": {"choices": [value], **span}}


def test_label_studio_clips_and_stretches(tmp_path):
    said = {"from_name": "text", "value": {"text": ["oh", "no"], "start": 0.5, "end": 1}}
    tasks = [
        task(1, "/data/upload/1/1234abcd-a.mp4", choice("happy")),
        task(2, "/data/local-files/?d=x/b.wav", choice("sad", start=0.5, end=1), said),
        task(3, "c.mp4", choice("sad"), was_cancelled=True),
    ]
    tasks[0]["annotations"].append({"result": [choice("sad")]})
    file = tmp_path / "export.json"
    file.write_text(json.dumps(tasks))
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "a.mp4").touch()
    lines = import_label_studio(file, tmp_path / "m.csv", media=tmp_path / "media")
    rows = read(tmp_path / "m.csv")
    assert rows.id.tolist() == ["1234abcd-a_1", "b_2_0001"]
    assert rows.video.tolist() == ["media/a.mp4", ""]
    assert rows.label_multimodal.tolist() == ["happiness", "sadness"]
    assert rows.text.tolist() == ["", "oh no"]
    assert rows.start_s.tolist() == ["", "0.500"]
    for what in ("1 rows have no file", "1 tasks have several", "1 tasks are without"):
        assert any(what in line for line in lines)
    (tmp_path / "media" / "b.wav").touch()
    import_label_studio(file, tmp_path / "m.csv", media=tmp_path / "media")
    assert read(tmp_path / "m.csv").video.tolist() == ["media/a.mp4", "media/b.wav"]
    frames = {"from_name": "emotion", "value": {"ranges": [{"start": 1, "end": 9}]}}
    file.write_text(json.dumps([task(4, "a.mp4", frames)]))
    with pytest.raises(InputError, match="task 4, field 'emotion': regions of video are in frames"):
        import_label_studio(file, tmp_path / "m.csv")
