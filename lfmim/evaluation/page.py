"""What reports are made of: a page without a script that fetches nothing, its tables (also as
Markdown) and its pictures."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = Path(__file__).with_name("page.css")
DPI = 90
"""Of figures."""
SIDE = 132
"""Of thumbnails, pixels."""


class Html(str):
    """Goes into a page as it is; any other string is text, and escaped."""

    __slots__ = ()


def page(title: str, sections: Iterable[Html], *, lead: Iterable[str] = ()) -> str:
    """One self-contained page; `lead` are the paragraphs below its title."""
    style = STYLE.read_text(encoding="utf-8")
    # Whatever a corpus calls its speakers or files: nothing runs, and nothing is fetched.
    policy = (
        f"default-src 'none'; style-src {policy_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    name, body = html.escape(title), "\n".join(sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{name}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{name}</h1>{"".join(paragraph(text) for text in lead)}</header>
<main>
{body}
</main>
</body>
</html>
"""


def policy_hash(text: str) -> str:
    """Of a script or style inside a page: by it the page's policy lets that alone be used."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def section(heading: str, *parts: Html) -> Html:
    return Html(f"<section><h2>{html.escape(heading)}</h2>\n{''.join(parts)}</section>")


def paragraph(text: str) -> Html:
    return Html(f"<p>{_escaped(text)}</p>\n")


def table(
    name: str,
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: bool = False,
) -> Html:
    """The first cell of a row is its name; `header` (): none; `words`: cells hold text, which may
    break. A float has three digits, and a dash where there is none (NaN, None)."""
    body = "".join(
        f'<tr><th scope="row">{_cell(first)}</th>{"".join(f"<td>{_cell(c)}</td>" for c in cells)}'
        "</tr>\n"
        for first, *cells in rows
    )
    heads = "".join(f'<th scope="col">{_cell(c)}</th>' for c in header)
    head = f"<thead><tr>{heads}</tr></thead>\n" if header else ""
    style = ' class="words"' if words else ""
    return scrolling(name, Html(f"<table{style}>\n{head}<tbody>\n{body}</tbody></table>"))


def frame_table(name: str, frame: pd.DataFrame, *, words: bool = False) -> Html:
    """`table` of a frame, its index first; columns without names have no header."""
    titles = [str(c) for c in frame.columns]
    header = [frame.index.name or "", *titles] if any(titles) else ()
    return table(name, header, frame.itertuples(name=None), words=words)


def scrolling(name: str, content: Html) -> Html:
    """`content`, called `name`, in a box that scrolls where the page is narrower."""
    # Without a place in the order of the keyboard, who has no mouse could not scroll it.
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(name)}">'
        f"{content}</div>\n"
    )


def image(figure: Figure, alt: str) -> Html:
    """The figure as an <img> with its data inside; `alt` says what it shows."""
    # Inside the page, so that it is one file that can be mailed, or logged to MLflow and opened.
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    width, height = (int(x) for x in figure.get_size_inches() * DPI)
    return _img(buffer.getvalue(), "png", alt, width, height)


def wide_image(figure: Figure, alt: str) -> Html:
    """`image` in a box that scrolls."""
    return scrolling(alt, image(figure, alt))


def panels(images: Iterable[Html]) -> Html:
    """Images side by side, as many as there is room for."""
    return Html(f'<div class="panels">{"".join(images)}</div>\n')


def thumbnail(pixels: np.ndarray, alt: str) -> Html:
    """A picture uint8 [H, W, 3] as a JPEG of SIDE x SIDE."""
    # PNG would keep the camera's noise bit by bit, at several times the bytes.
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(buffer, "JPEG", quality=85)
    return _img(buffer.getvalue(), "jpeg", alt, SIDE, SIDE)


def _img(data: bytes, kind: str, alt: str, width: int, height: int) -> Html:
    return Html(
        f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" '
        f'src="data:image/{kind};base64,{base64.b64encode(data).decode()}">'
    )


def shown(value: float | None) -> str:
    """A figure for people; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _cell(value: object) -> str:
    if value is None or isinstance(value, float):
        return shown(value)
    return _escaped(value if isinstance(value, str) else str(value))


def _escaped(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


def markdown_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, ending with a line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
