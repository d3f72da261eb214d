"""The page in a browser, from the disk: it plays, follows, jumps, compares, saves; in both
languages and at both widths."""

from __future__ import annotations

import io
import json
import re

import pandas as pd
import pytest

from feature_service.recordings.annotations import webvtt
from feature_service.recordings.page import write_overview, write_page
from feature_service.recordings.results import result_row, write_results
from feature_service.recordings.utterances import SPEECH, Utterance
from lfmim.data.corrections import read_corrections
from tests.support.browser import until
from tests.support.clips import write_clip
from tests.support.recordings import HOSTILE, rows, write_result

pytestmark = pytest.mark.browser
NOW = "document.querySelector('video').currentTime"
LINE = "document.querySelector('#lines [aria-current]')?.dataset.row"
WIDE = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
CONTRAST = """() => {
  const value = (text) => text.match(/\\d+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + [0.2126, 0.7152, 0.0722][k] * v, 0);
  return [...document.querySelectorAll(".letter")].map((letter) => {
    const [a, b] = [letter, letter.parentNode.querySelector("rect")]
      .map((node) => value(getComputedStyle(node).fill));
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""


@pytest.fixture
def talk(tmp_path):
    """A page of tests/support/recordings.py, 8 s, of what browsers do not play themselves."""
    media = write_clip(tmp_path / "talk.mkv", frames=64, fps=8, seconds=8.0)
    return write_page(write_result(tmp_path / "result", media="../talk.mkv"), media)


def ready(page):
    until(page, "document.querySelector('video').readyState > 1")
    return page


def text(page, selector):
    return page.inner_text(selector)


def test_playback_carries_everything_along(show, talk):
    page = ready(show(talk))
    assert page.evaluate("document.querySelector('video').videoWidth") == 64
    # The player has the focus, and keys of its own.
    page.focus("video")
    page.keyboard.press(" ")
    until(page, f"{LINE} === '0'")
    assert "Ann" in text(page, "#which")
    until(page, f"{LINE} === '1'")
    assert HOSTILE in text(page, "#quote")
    assert page.locator("#faces rect").count() == 1
    page.keyboard.press(" ")
    assert page.evaluate("document.querySelector('video').paused")
    assert "anger 80%" in page.text_content("#live")


def test_keys_lines_and_lanes_seek(show, talk):
    page = ready(show(talk))
    page.keyboard.press("n")
    until(page, f"{LINE} === '1'")
    assert page.evaluate(NOW) == pytest.approx(2.0, abs=0.1)
    page.keyboard.press("ArrowRight")
    until(page, f"{NOW} > 6.9")
    assert page.evaluate(NOW) == pytest.approx(7.0, abs=0.1)
    assert "decode: damaged" in text(page, "#facts")
    page.keyboard.press("p")
    until(page, f"{NOW} < 2.2")

    # From the keyboard alone: tab to a line, and press it.
    page.focus("#lines button >> nth=2")
    page.keyboard.press("Enter")
    until(page, f"{LINE} === '2'")
    assert page.evaluate(NOW) == pytest.approx(4.0, abs=0.1)
    assert page.locator("#heads td.most").count() == 1, "a gap has a face alone"

    page.focus("#timeline")
    page.keyboard.press("ArrowLeft")
    until(page, f"{NOW} === 0")
    assert text(page, "#quote") == "Nothing is said at this time."
    lanes = page.locator("#timeline").bounding_box()
    page.mouse.click(lanes["x"] + lanes["width"] - 3, lanes["y"] + 60)
    until(page, f"{NOW} > 7.9")

    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_what_goes_with_what_lists_its_utterances(show, talk):
    page = ready(show(talk))
    page.click("text=Voice × Words")
    cell = page.locator("#matrix [aria-label='1 × Voice anger, Words joy']")
    cell.click()
    assert page.locator("#cell button").count() == 1
    page.click("#cell button")
    until(page, f"{LINE} === '1'")
    # The first face is not sure: 0.4.
    page.click("text=Face × Words")
    assert "1 of 2 utterances" in text(page, "#matrix")
    page.check("text=count uncertain answers too")
    assert page.locator("#matrix [aria-label='1 × Face joy, Words joy']").is_enabled()


def test_saved_files_are_those_beside_the_page(show, talk):
    page = ready(show(talk))

    def saved(name):
        with page.expect_download() as download:
            page.click(f"#{name}")
        assert download.value.suggested_filename == f"talk.{name}"
        return download.value.path().read_text(encoding="utf-8")

    there = (talk.parent / "talk.csv").read_text(encoding="utf-8")
    pd.testing.assert_frame_equal(
        *(pd.read_csv(io.StringIO(t), dtype=str).map(number) for t in (saved("csv"), there))
    )
    assert json.loads(saved("json")) == json.loads((talk.parent / "talk.json").read_text())
    assert saved("vtt") == webvtt(rows())


def number(cell):
    """1 and 1.0 are the same in a table."""
    try:
        return float(cell)
    except ValueError:
        return cell


def test_corrections_are_saved_as_a_file(show, talk):
    page = ready(show(talk))
    page.keyboard.press("n")
    until(page, f"{LINE} === '1'")
    assert page.locator("#corrections").is_disabled()
    page.fill("#who", "Ann <b>")
    page.select_option("#heads [data-head=text]", "anger")
    assert page.evaluate("document.activeElement.dataset.head") == "text"
    page.select_option("#heads [data-head=audio]", "joy")
    page.select_option("#heads [data-head=audio]", "")
    assert "3 not saved yet" in text(page, "#kept")
    assert "✎" in text(page, "#lines [data-row='1']")
    with page.expect_download() as download:
        page.click("#corrections")
    assert download.value.suggested_filename == "talk.corrections.jsonl"
    told = read_corrections(download.value.path())
    assert [(c.row, c.head, c.label, c.predicted) for c in told] == [
        (1, "text", "anger", "joy"),
        (1, "audio", "joy", "anger"),
        (1, "audio", None, "anger"),
    ]
    assert {(c.who, c.seen, c.start_s, c.end_s, c.model) for c in told} == {
        ("Ann <b>", True, 2.0, 4.0, "m")
    }
    # An utterance that no head answers has nothing to correct.
    page.focus("#lines button >> nth=3")
    page.keyboard.press("Enter")
    until(page, f"{LINE} === '3'")
    assert page.locator("#heads select").count() == 0


def test_who_judges_blind_sees_no_answer(show, talk):
    page = ready(show(talk))
    page.click("#blind")
    until(page, "location.hash === '#judge'")
    ready(page)
    page.keyboard.press("ArrowRight")
    page.focus("#lines button >> nth=1")
    page.keyboard.press("Enter")
    until(page, f"{LINE} === '1'")
    assert page.locator(".letter").count() == page.locator("#heads tbody th .letter").count() + (
        page.locator("#legend .letter").count()
    )
    assert page.locator("#heads i, svg .apart, svg .rest, #matrix button").count() == 0
    assert "disagreement" not in text(page, "#facts")
    page.select_option("#heads [data-head=vision]", "joy")
    with page.expect_download() as download:
        page.click("#corrections")
    (told,) = read_corrections(download.value.path())
    assert (told.seen, told.label, told.predicted) == (False, "joy", "anger")
    page.click("#blind")
    until(page, "location.hash === ''")
    until(page, "document.querySelectorAll('#timeline .letter').length > 0")


def test_nothing_that_a_recording_says_runs(show, tmp_path):
    name = "<img src=x onerror=window.attacked=3>.mp4"
    page = show(write_page(write_result(tmp_path, media=name), None))
    page.keyboard.press("n")
    assert HOSTILE in text(page, "#quote")
    assert text(page, "h1") == name
    assert page.evaluate("window.attacked") is None


def test_without_the_recording_a_clock_runs(show, talk):
    (talk.parent / "talk.preview.mp4").unlink()
    page = show(talk, locale="zh-CN")
    until(page, "!document.getElementById('notice').hidden")
    assert "无法播放" in text(page, "#notice")
    page.keyboard.press("n")
    until(page, f"{LINE} === '1'")
    page.keyboard.press(" ")
    until(page, f"{LINE} === '2'")


def test_both_languages(show, talk):
    page = ready(show(talk, locale="zh-CN"))
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    assert "高兴" in text(page, "#legend")
    assert "人工智能法" in text(page, "#about")
    assert "AI Act" not in text(page, "#about")
    page.click("#language")
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "joy" in text(page, "#legend")
    assert "AI Act" in text(page, "#about")
    # No text is left in the other language, none is missing.
    assert "undefined" not in text(page, "body")
    assert not re.search("[\u4e00-\u9fff]", text(page, "header").replace("中文", ""))


def test_the_same_texts_in_both_languages(show, talk):
    keys = show(talk).evaluate("Object.values(TEXTS).map((texts) => Object.keys(texts).sort())")
    assert keys[0] == keys[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_is_wider_than_its_window_and_letters_can_be_read(show, tmp_path, width, scheme):
    many = [f"emotion {k}" for k in range(12)]
    p = [0.4, 0.3, *[0.03] * 10]
    long = [
        result_row(
            n,
            Utterance(2.0 * n, 2.0 * n + 1.5, SPEECH, "word" * 50, "somebody"),
            {h: pd.Series(p).to_numpy() for h in ("text", "audio", "vision", "multimodal")},
            classes=many,
            calibrated=[],
        )
        for n in range(600)
    ]
    about = {"media": "x" * 200 + ".mp4", "duration_s": 1200.0}
    twelve = write_results(long, tmp_path / "many" / "m", classes=many, about=about)[2]
    none = write_result(tmp_path / "none", made=[])
    four = write_result(tmp_path / "four")
    listed = [
        {"recording": "four", "result": "four/talk.json", "mix": {"joy": 0.9, "anger": 0.1}},
        {"recording": "y" * 200, "result": None, "mix": {}, "error": "z" * 200},
    ]
    empty = {"duration_s": 1.0, "utterances": 1, "failed": 1, "disagreement": 0.5, "error": None}
    whole = {"recordings": [{**empty, **one} for one in listed]}
    head = {"schema": "lfmim-recordings", "version": 1}
    (tmp_path / "recordings.json").write_text(json.dumps({**head, **whole}))

    for path in [*(write_page(r, None) for r in (twelve, none, four)), write_overview(tmp_path)]:
        for locale in ("en-US", "zh-CN"):
            page = show(path, width=width, color_scheme=scheme, locale=locale)
            page.keyboard.press("n")
            page.keyboard.press("-")
            assert page.evaluate(WIDE), (path, locale)
            contrasts = page.evaluate(CONTRAST)
            assert min(contrasts, default=7) >= 4.5, (path, locale)
            letters = page.evaluate(
                "[...document.querySelectorAll('#legend .letter')].map((l) => l.textContent)"
            )
            assert len(set(letters)) == len(letters)
    assert contrasts, "there was something to read"


def test_every_clip_shows_a_picture_and_can_be_sought(show, tmp_path, media):
    for clip in sorted(media.iterdir()):
        folder = tmp_path / clip.stem
        page = ready(show(write_page(write_result(folder, media=str(clip)), clip)))
        seconds = page.evaluate("document.querySelector('video').duration")
        assert (page.evaluate("document.querySelector('video').videoWidth") > 0) is (
            clip.suffix != ".wav"
        ), clip
        page.evaluate(f"document.querySelector('video').currentTime = {seconds / 2}")
        until(page, "!document.querySelector('video').seeking")
        assert page.evaluate(NOW) == pytest.approx(seconds / 2, abs=0.1), clip
