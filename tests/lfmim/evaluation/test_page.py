"""A page holds all it shows, runs nothing and lets nothing in."""

from __future__ import annotations

import base64
import hashlib
import re

import numpy as np
import pandas as pd

from lfmim.evaluation.page import (
    Html,
    frame_table,
    markdown_table,
    page,
    paragraph,
    section,
    table,
    thumbnail,
)


def test_text_is_escaped_and_html_is_not():
    text = page("<t>", [section("<h>", paragraph("<p>"), Html("<b>b</b>"))], lead=["<l>"])
    assert all(f"&lt;{letter}&gt;" in text for letter in "thpl")
    assert "<b>b</b>" in text
    cells = table("<n>", ("<h>",), [("<r>", Html("<a>"), "<c>")])
    assert 'aria-label="&lt;n&gt;"' in cells
    assert "&lt;r&gt;</th><td><a></td><td>&lt;c&gt;</td>" in cells


def test_the_policy_lets_in_this_style_and_no_other():
    text = page("t", [section("s", table("n", ("a", "b"), [("x", 1.0)]))])
    style = re.search(r"<style>(.*)</style>", text, flags=re.S)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)[1]
    assert policy.startswith("default-src 'none'; ")
    assert f"style-src 'sha256-{digest}'" in policy
    # What the policy would refuse, and a browser complain of.
    assert not re.search(r"\sstyle=|<script|\son\w+=|url\(|@import|http://|https://", text)


def test_what_cannot_be_measured_is_a_dash():
    nan = float("nan")
    cells = table("n", ("", "a", "b", "c", "d"), [("r", nan, None, 0.0, np.float64(0.12345))])
    assert re.findall(r"<td>([^<]*)</td>", cells) == ["–", "–", "0.000", "0.123"]
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, nan]}, index=pd.Index(["x", "y"], name="i"))
    texts = re.findall(r"<t[hd](?: [^>]*)?>([^<]*)<", frame_table("n", frame))
    assert ", ".join(texts) == "i, a, b, x, 1, 0.500, y, 2, –"
    assert "<thead>" not in frame_table("n", pd.DataFrame({"": ["v"]}, index=["k"]))
    assert markdown_table(["a", "b"], [(1, "–")]) == "| a | b |\n| --- | --- |\n| 1 | – |\n"


def test_a_thumbnail_is_small_and_inside():
    face = np.random.default_rng(0).integers(0, 255, (224, 224, 3), dtype=np.uint8)
    found = thumbnail(face, 'a "face"')
    assert found.startswith('<img alt="a &quot;face&quot;" width="132" height="132" src="data:')
    assert len(found) < 30_000
