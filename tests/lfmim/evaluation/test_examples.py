"""Which utterances are shown, and what is said of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lfmim.evaluation.examples import (
    EACH,
    example_ids,
    example_sections,
    located,
    pick_examples,
)
from lfmim.evaluation.store_report import Crop
from lfmim.schema import HEADS, IGNORE_LABEL, LabelSpec
from lfmim.storage import as_path

SPEC = LabelSpec(name="abc", classes=("a", "b", "c"))


def rows(count: int, video: str = "") -> list[dict]:
    return [{"id": f"u{i}", "video": video} for i in range(count)]


def answers(pairs: list[tuple[int, float]]) -> np.ndarray:
    """Probabilities [N, 3] whose largest is the class's of each pair."""
    out = np.array([[(1 - p) / 2] * 3 for _, p in pairs], np.float32)
    for i, (k, p) in enumerate(pairs):
        out[i, k] = p
    return out


@pytest.fixture
def picked():
    # a a a b b c c c, of which three are wrong: two b for a, one c for b
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    said = [(0, 0.6), (1, 0.7), (1, 0.9), (1, 0.8), (2, 0.95), (2, 0.5), (2, 0.9), (2, 0.7)]
    found = {h: np.full((8, 3), np.nan, np.float32) for h in HEADS}
    found["multimodal"], found["text"] = answers(said), answers([(0, 0.9)] * 8)
    known = np.full((8, 4), IGNORE_LABEL)
    known[:, HEADS.index("multimodal")] = labels
    known[2, HEADS.index("text")] = 1
    return pick_examples(rows(8, "/nowhere/<c>.mp4"), found, known, SPEC)


def test_of_every_class_and_every_confusion_in_turn_the_surest(picked):
    assert picked["head"] == "multimodal"
    # a: u0; b: u3; c: u6, u7, u5
    assert [e["id"] for e in picked["right"]] == ["u0", "u3", "u6", "u7", "u5"]
    # the commoner confusion first, though the other is surer
    assert [e["id"] for e in picked["wrong"]] == ["u2", "u4", "u1"]
    told = [(c["label"], c["answer"], c["count"], c["share"]) for c in picked["confusions"]]
    assert told == [("a", "b", 2, pytest.approx(2 / 3)), ("b", "c", 1, 0.5)]
    assert [e["id"] for e in picked["confusions"][0]["clips"]] == ["u2", "u1"]


def test_every_head_is_told_and_an_absent_one_is_no_guess(picked):
    heads = picked["wrong"][0]["heads"]
    assert heads["multimodal"] == {
        "label": "a",
        "answer": "b",
        "probability": pytest.approx(0.9),
        "right": False,
    }
    assert heads["text"]["right"] is False
    assert (heads["text"]["label"], heads["text"]["answer"]) == ("b", "a")
    assert heads["audio"] == dict.fromkeys(("label", "answer", "probability", "right"))
    # answered, but nobody has labelled it
    assert picked["right"][0]["heads"]["text"]["right"] is None


def test_scores_are_right_in_their_class_and_the_farthest_is_the_worst():
    labels = np.full((5, 4), float(IGNORE_LABEL), np.float32)
    labels[:, 3] = [0.8, 0.9, -1.0, -0.8, 0.0]
    found = {h: np.full((5, 1), np.nan, np.float32) for h in HEADS}
    found["multimodal"][:, 0] = [0.9, 0.89, 0.05, 1.5, np.nan]
    picked = pick_examples(rows(5), found, labels, SPEC)
    assert [e["id"] for e in picked["right"]] == ["u1", "u0"]
    assert [(c["label"], c["answer"]) for c in picked["confusions"]] == [
        ("negative", "neutral"),
        ("negative", "positive"),
    ]
    # clipped as the figures are
    assert picked["wrong"][1]["heads"]["multimodal"]["answer"] == 1.0
    assert picked["wrong"][1]["heads"]["multimodal"]["probability"] is None


def test_no_more_than_a_page_can_hold():
    found = dict.fromkeys(HEADS, answers([(i % 3, 0.9) for i in range(200)]))
    labels = np.array([[i % 3 if i % 2 else (i + 1) % 3] * 4 for i in range(200)])
    picked = pick_examples(rows(200), found, labels, SPEC)
    assert (len(picked["right"]), len(picked["wrong"])) == (EACH, EACH)
    assert {e["heads"]["text"]["label"] for e in picked["right"]} == set("abc")


def html(picked, folder, crops=None) -> str:
    return "".join(example_sections(located(picked, folder), crops))


def test_clips_are_linked_where_they_can_be(picked, tmp_path):
    page = html(picked, tmp_path / "report")
    assert "<a " not in page
    assert "u2 (&lt;c&gt;.mp4)" in page
    assert "8 of 8 clips have no link" in page

    clip = tmp_path / "a #1.mp4"
    clip.write_bytes(b"")
    here = {"video": str(clip), "start_s": 1.0, "end_s": 2.5}
    for e in [*picked["right"], *picked["wrong"], *picked["confusions"][0]["clips"]]:
        e |= here
    page = html(picked, tmp_path / "report")
    # a card and a row of the confusions
    assert page.count('href="../a%20%231.mp4#t=1.00,2.50">u2</a>') == 2
    assert "have no link" not in page.replace("1 of 8 clips have no link", "")


def test_a_report_names_no_folder_of_this_machine(picked, tmp_path):
    clip = tmp_path / "media" / "a.mp4"
    clip.parent.mkdir()
    clip.write_bytes(b"")
    first, *_ = picked["right"]
    first |= {"video": str(clip), "start_s": 1.0, "end_s": 2.5}
    found = located(picked, tmp_path / "runs" / "report")
    told = json.dumps(found)
    assert str(tmp_path) not in told
    assert "nowhere" not in told
    assert found["right"][0]["url"] == "../../media/a.mp4#t=1.00,2.50"
    assert [(e["video"], e["url"]) for e in found["wrong"]] == [("<c>.mp4", None)] * 3
    assert {e["video"] for c in found["confusions"] for e in c["clips"]} == {"<c>.mp4"}
    assert located(picked, as_path("s3://b/report"))["right"][0]["url"] is None


def test_faces_are_shown_left_out_or_missed(picked, tmp_path):
    assert "Faces are left out." in html(picked, tmp_path)
    face = np.zeros((8, 8, 3), np.uint8)
    crops = {name: Crop("", face) for name in example_ids(picked)}
    page = html(picked, tmp_path, crops)
    assert page.count('<img alt="Face in u') == 8
    assert "No face" not in page
    crops |= {"u2": Crop("", None, "the video is <gone>")}
    page = html(picked, tmp_path, crops)
    assert page.count("<img ") == 7
    assert "No face is shown where: the video is &lt;gone&gt; (1 of 8)." in page
