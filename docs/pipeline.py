"""Draws docs/pipeline.svg: the data's way through the rooms. python docs/pipeline.py"""

from __future__ import annotations

from html import escape
from pathlib import Path

WIDTH, HEIGHT = 980, 330
INK, LINE, PAPER = "#1f2933", "#7b8794", "#ffffff"
FILL = {"data": "#fff4d6", "ray": "#d9ecff", "model": "#e4f7e1", "out": "#fde3e9"}

# name, second line, x, y, kind
BOXES = [
    ("clips + manifest", "CSV, JSONL, Parquet, tar", 14, 60, "data"),
    ("data sets", "features, labels, votes", 14, 210, "data"),
    ("extract", "decode, faces, encode", 212, 60, "ray"),
    ("import", "checked, nothing dropped", 212, 210, "ray"),
    ("feature store", "Parquet + FeatureSpec", 412, 135, "data"),
    ("train, tune", "Ray Train, Ray Tune", 612, 60, "ray"),
    ("benchmark", "systems x seeds, p-values", 612, 210, "ray"),
    ("registry", "MLflow: champion", 812, 60, "model"),
    ("evaluate, predict", "four heads: t, a, v, m", 812, 210, "out"),
]
ARROWS = [(0, 2), (1, 3), (2, 4), (3, 4), (4, 5), (4, 6), (5, 7), (7, 8)]
W, H = 154, 60


def box(name: str, note: str, x: int, y: int, kind: str) -> str:
    """A rounded rectangle with two centred lines."""
    middle = x + W / 2
    return (
        f'<rect x="{x}" y="{y}" width="{W}" height="{H}" rx="9" fill="{FILL[kind]}" '
        f'stroke="{LINE}"/>'
        f'<text x="{middle}" y="{y + 26}" class="name">{escape(name)}</text>'
        f'<text x="{middle}" y="{y + 44}" class="note">{escape(note)}</text>'
    )


def arrow(start: int, end: int) -> str:
    """From the right side to the left side, or downwards where one stands above the other."""
    (_, _, x1, y1, _), (_, _, x2, y2, _) = BOXES[start], BOXES[end]
    if x1 == x2:
        path = f"M{x1 + W / 2},{y1 + H} L{x2 + W / 2},{y2 - 4}"
    else:
        middle = (x1 + W + x2) / 2
        a, b = y1 + H / 2, y2 + H / 2
        path = f"M{x1 + W},{a} C{middle},{a} {middle},{b} {x2 - 4},{b}"
    return f'<path d="{path}" fill="none" stroke="{INK}" marker-end="url(#tip)"/>'


def draw() -> str:
    """The whole picture."""
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"
 aria-label="clips and data sets become a feature store, then models, then predictions">
<style>text{{font-family:system-ui,sans-serif;text-anchor:middle;fill:{INK}}}
.name{{font-size:14px;font-weight:600}}.note{{font-size:9.5px}}</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
 orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>
{"".join(arrow(a, b) for a, b in ARROWS)}
{"".join(box(*b) for b in BOXES)}
<text x="{WIDTH / 2}" y="{HEIGHT - 16}"
 class="note">same commands on a laptop and on a cluster</text>
</svg>
"""


if __name__ == "__main__":
    target = Path(__file__).with_name("pipeline.svg")
    target.write_text(draw(), encoding="utf-8")
    print(target)
