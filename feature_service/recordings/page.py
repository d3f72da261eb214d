"""A recording's results as a page to look through, and one of many recordings. Both are single HTML
files with their data and scripts inside, which fetch nothing."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from feature_service.recordings.preview import preview
from feature_service.recordings.results import SCHEMA, VERSION
from lfmim.evaluation.page import policy_hash
from lfmim.schema import InputError
from lfmim.storage import is_remote, relative_url, write_text

STATIC = Path(__file__).parent / "static"
PAGE, OVERVIEW = "index.html", "recordings"


def write_page(
    result: Path,
    media: Path | None,
    *,
    blur_faces: bool = False,
    corrections: str | None = None,
) -> Path:
    """Write index.html beside `result`, the JSON of `results.write_results`; returns it.

    The page plays `media` where it lies, by a path relative to the page; what browsers cannot show
    gets a preview beside the page, <result's stem>.preview.mp4; with `blur_faces` any recording
    does, and its faces are hidden in there. None, or media elsewhere than on this machine's disks:
    there is no player. `corrections`: URL relative to the page, which takes and gives them; None:
    the page saves them as a file. Raises InputError for a file that is no such result and for media
    that cannot be read, and WriteError.
    """
    read, source = _read(result, SCHEMA), None
    if media is not None and not is_remote(media):
        target = result.with_name(f"{result.stem}.preview.mp4")
        played = preview(media, target, blur_faces=blur_faces) or media
        source = relative_url(played, result.parent)
    return write_text(result.with_name(PAGE), page(read, result.stem, source, corrections))


def page(
    result: Mapping[str, Any], name: str, source: str | None, corrections: str | None = None
) -> str:
    """The page's HTML. `name`: of the files that it saves; `source`: URL of what it plays;
    `corrections`: as `write_page` has it."""
    inside = {**result, "page": {"name": name, "source": source, "corrections": corrections}}
    title = Path(result.get("media") or name).name
    return _filled("recording", title, inside, asks=corrections is not None)


def write_overview(folder: Path) -> Path:
    """Write index.html beside the folder's recordings.json, with a link to the page of each
    recording; returns it. Raises InputError for a file that is no such overview, and WriteError."""
    read = _read(folder / f"{OVERVIEW}.json", f"{SCHEMA}s")
    listed = [
        {**one, "page": one["result"] and quote(f"{Path(one['result']).parent.as_posix()}/{PAGE}")}
        for one in read["recordings"]
    ]
    return write_text(folder / PAGE, _filled("overview", "Recordings", {"recordings": listed}))


def _read(path: Path, schema: str) -> dict[str, Any]:
    try:
        # JSON has no NaN, and a browser reads none.
        read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON ({error})") from error
    if not isinstance(read, dict) or read.get("schema") != schema:
        raise InputError(f"{path}: is no file of {schema}; lfmim predict writes those")
    if read.get("version") != VERSION:
        raise InputError(
            f"{path}: has version {read.get('version')} of {schema}, and this page is for version "
            f"{VERSION}; predict the recording again"
        )
    return read


def _filled(template: str, title: str, inside: Mapping[str, Any], *, asks: bool = False) -> str:
    """`asks`: whether the page speaks with the service that it is from."""
    text = {name: _static(f"{name}.js") for name in ("common", template)}
    ask = "; connect-src 'self'" if asks else ""
    style, data = _static("style.css"), json.dumps(inside, ensure_ascii=False)
    scripts = " ".join(policy_hash(text[name]) for name in ("common", template))
    parts = {
        # Only what stands here is run, whatever a transcript or a file's name says, and nothing is
        # fetched but the recording.
        "policy": f"default-src 'none'; script-src {scripts}; style-src {policy_hash(style)}; "
        f"media-src 'self' file: blob:; img-src data:{ask}",
        "title": html.escape(title),
        "style": style,
        "claims": _static("claims.html"),
        "data": data.replace("<", "\\u003c"),
        "common": text["common"],
        "script": text[template],
    }
    # In one pass: what is put in is not looked through again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _static(f"{template}.html"))


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
