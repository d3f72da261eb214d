"""A page holds its result and nothing that a result could make it run; bad files are refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from feature_service.recordings.page import write_overview, write_page
from lfmim.schema import InputError
from tests.support.clips import write_clip
from tests.support.recordings import HOSTILE, write_result


def data_of(page):
    found = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert len(found) == 1
    return json.loads(found[0])


def test_a_page_has_its_result_and_plays_what_lies_elsewhere(tmp_path):
    (tmp_path / "clips & more").mkdir()
    media = write_clip(tmp_path / "clips & more" / "talk #1.mp4")
    result = write_result(tmp_path / "result", media="../clips & more/talk #1.mp4")
    page = write_page(result, media)
    assert page == tmp_path / "result" / "index.html"
    text = page.read_text(encoding="utf-8")
    inside = data_of(text)
    assert inside.pop("page") == {
        "name": "talk",
        "source": "../clips%20%26%20more/talk%20%231.mp4",
        "corrections": None,
    }
    assert inside == json.loads(result.read_text(encoding="utf-8"))
    assert "<title>talk #1.mp4</title>" in text


def test_only_the_page_s_own_scripts_may_run(tmp_path):
    name = "<script>x.mp4"
    text = write_page(write_result(tmp_path, media=name), None).read_text(encoding="utf-8")
    assert data_of(text)["utterances"][1]["text"] == HOSTILE
    assert "window.attacked = 1</script>" not in text
    assert "<title>&lt;script&gt;x.mp4</title>" in text
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)[1]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    ]
    assert len(scripts) == 2
    assert f"script-src {' '.join(hashes)};" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.findall(r"https?:(?!//www\.w3\.org/2000/svg)", text)
    # Only a page that a service gave speaks with it.
    assert "connect-src" not in policy
    served = write_page(tmp_path / "talk.json", None, corrections="../corrections").read_text()
    assert "; connect-src 'self'\">" in served
    assert data_of(served)["page"]["corrections"] == "../corrections"


def test_what_a_template_would_fill_is_left_alone_in_data(tmp_path):
    text = write_page(write_result(tmp_path, media="{{style}}.mp4"), None).read_text()
    assert data_of(text)["media"] == "{{style}}.mp4"
    assert "<title>{{style}}.mp4</title>" in text


def test_a_number_that_is_none_is_null(tmp_path):
    result = write_result(tmp_path)
    text = result.read_text(encoding="utf-8")
    result.write_text(re.sub(r'"disagreement": [\d.]+', '"disagreement": NaN', text, count=1))
    assert data_of(write_page(result, None).read_text())["utterances"][0]["disagreement"] is None


def test_the_overview_links_to_each_page_in_its_order(tmp_path):
    empty = dict.fromkeys(("duration_s", "utterances", "disagreement", "error"))
    recordings = [
        {**empty, "recording": "b", "result": "b #2/b #2.json", "mix": {"joy": 1.0}},
        {**empty, "recording": "a", "result": None, "mix": {}, "error": "is damaged"},
    ]
    whole = {"schema": "lfmim-recordings", "version": 1, "recordings": recordings}
    (tmp_path / "recordings.json").write_text(json.dumps(whole))
    inside = data_of(write_overview(tmp_path).read_text(encoding="utf-8"))
    assert [r["recording"] for r in inside["recordings"]] == ["b", "a"]
    assert [r["page"] for r in inside["recordings"]] == ["b%20%232/index.html", None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"talk\.json: is no JSON"),
        ("[]", r"talk\.json: is no file of lfmim-recording; lfmim predict"),
        ('{"schema": "lfmim-recording", "version": 2}', r"talk\.json: has version 2"),
        (None, r"talk\.json: cannot be read: No such file"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, text, message):
    path = tmp_path / "talk.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        write_page(path, None)
    assert not (tmp_path / "index.html").exists()
