"""Transcripts in every format -> the same cues; what is wrong is said by file and place."""

from __future__ import annotations

import json

import pytest

from feature_service.recordings.transcripts import Cue, read_transcript
from lfmim.schema import InputError

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>今天</i> {\\an8}真高兴

2
00:00:02,000 --> 00:00:04,000
Tom &amp; I: 2 < 3
and on

3
00:01:05,000 --> 00:01:05,000
no length
"""
CUES = [Cue(1.0, 2.5, "今天 真高兴"), Cue(2.0, 4.0, "Tom & I: 2 < 3 and on")]

VTT = """WEBVTT - a talk
Kind: captions

STYLE
::cue { color: red }

NOTE
a remark

intro
00:01.000 --> 00:02.500 align:start position:0%
<v.loud Ann>Good <c.yellow>morning</c> <00:00:01.500>all</v>

01:00:00.000 --> 01:00:02.000
<v Ann>Yes.</v> <v Bob>No.</v>
"""


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_srt_of_any_encoding_without_its_marks(tmp_path, encoding, caplog):
    assert read_transcript(write(tmp_path, "talk.SRT", SRT, encoding)) == CUES
    assert "1 cues without words or length are left out (line 11)" in caplog.text


def test_line_ends_of_windows(tmp_path):
    assert read_transcript(write(tmp_path, "talk.srt", SRT.replace("\n", "\r\n"))) == CUES


def test_vtt_speakers_styles_and_notes(tmp_path):
    assert read_transcript(write(tmp_path, "talk.vtt", VTT)) == [
        Cue(1.0, 2.5, "Good morning all", "Ann"),
        Cue(3600.0, 3602.0, "Yes. No.", "Ann, Bob"),
    ]


def test_whisper_json_with_and_without_speakers(tmp_path):
    segments = [
        {"id": 1, "start": 4.0, "end": 5.0, "text": " after", "speaker": "SPEAKER_01"},
        {"id": 0, "start": 0.0, "end": 2.5, "text": " before", "tokens": [1]},
    ]
    wanted = [Cue(0.0, 2.5, "before"), Cue(4.0, 5.0, "after", "SPEAKER_01")]
    whole = {"text": "before after", "language": "en", "segments": segments}
    assert read_transcript(write(tmp_path, "a.json", json.dumps(whole))) == wanted
    assert read_transcript(write(tmp_path, "b.json", json.dumps(segments))) == wanted


def test_csv_in_seconds_and_in_times(tmp_path):
    text = 'speaker,start,end,text\nAnn,1.5,2,hello\n,0:01:00.5,0:01:02,"a, b"\n'
    assert read_transcript(write(tmp_path, "talk.csv", text)) == [
        Cue(1.5, 2.0, "hello", "Ann"),
        Cue(60.5, 62.0, "a, b"),
    ]


EAF = """<ANNOTATION_DOCUMENT><HEADER/><TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="a" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="b" TIME_VALUE="1500"/>
</TIME_ORDER>{tiers}</ANNOTATION_DOCUMENT>"""
TIER = """<TIER TIER_ID="{name}" PARTICIPANT="{who}"><ANNOTATION><ALIGNABLE_ANNOTATION
ANNOTATION_ID="{name}1" TIME_SLOT_REF1="a" TIME_SLOT_REF2="b">
<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"""


def test_elan_has_a_tier_of_words_or_one_per_speaker(tmp_path):
    text = TIER.format(name="text", who="", text="hi")
    ann = TIER.format(name="ann", who="", text="yes")
    bob = TIER.format(name="bob", who="Robert", text="no")
    named = write(tmp_path, "named.eaf", EAF.format(tiers=text + ann))
    assert read_transcript(named) == [Cue(0.5, 1.5, "hi")]

    two = write(tmp_path, "two.eaf", EAF.format(tiers=ann + bob))
    assert read_transcript(two, tiers="ann, bob") == [
        Cue(0.5, 1.5, "yes", "ann"),
        Cue(0.5, 1.5, "no", "Robert"),
    ]
    with pytest.raises(InputError, match=r"two.eaf: which of its tiers hold .* They are ann, bob"):
        read_transcript(two)
    with pytest.raises(InputError, match="no tier 'eve'; it has ann, bob"):
        read_transcript(two, tiers="eve")


def test_textgrid_with_a_tier_of_speakers(tmp_path):
    text = 'File type = "ooTextFile"\nObject class = "TextGrid"\n0\n3\n<exists>\n2\n'
    for name, said in (("text", "hello"), ("speaker", "Ann")):
        text += f'"IntervalTier"\n"{name}"\n0\n3\n2\n0\n2\n"{said}"\n2\n3\n""\n'
    found = read_transcript(write(tmp_path, "talk.TextGrid", text))
    assert found == [Cue(0.0, 2.0, "hello", "Ann")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "hello", r"a\.txt: no known transcript; give one of \.srt, \.vtt"),
        ("a.srt", "1\n00:00:03,000 --> 00:00:02,000\nx\n", r"a\.srt: line 2: ends at 2.000 s, bef"),
        ("a.srt", "1\n00:00:0x,000 --> 00:00:02,000\nx\n", "line 2: '00:00:0x,000' is no time"),
        ("a.srt", "1\n00:00:01,000 -->\nx\n", "line 2: .* is no pair of times"),
        ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nx\n\ny\n", "line 5: 'y' belongs to no cue"),
        ("a.srt", "0:01 --> 0:02\nx\n0:02 --> 0:03\ny\n", "line 1: two cues without an empty li"),
        ("a.srt", "", "no cue with words"),
        ("a.vtt", "WEBVTT\n\n00:01.0 --> 00:02.0\n<b></b>\n", "no cue with words"),
        ("a.json", "{", r"a\.json: not JSON"),
        ("a.json", '{"text": "x"}', "no list 'segments'"),
        ("a.json", '[{"start": 1, "text": "x"}]', "segment 1: has no 'end'"),
        ("a.json", '[{"start": 1, "end": null, "text": "x"}]', "segment 1: '' is no time"),
        ("a.csv", "start,end,text\n1,nan,x\n", "row 1"),
        ("a.csv", "start,end,text\n-1,2,x\n", "row 1: -1.0 to 2.0 s is no stretch"),
        ("a.csv", "start,text\n1,x\n", "column 'end' is missing"),
    ],
)
def test_what_is_wrong_is_said_by_file_and_place(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message):
        read_transcript(write(tmp_path, name, text))


def test_what_is_not_there_and_tiers_where_none_are(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_transcript(tmp_path / "a.srt")
    with pytest.raises(InputError, match="has no tiers"):
        read_transcript(write(tmp_path, "b.srt", SRT), tiers="x")
