"""Files of a Python package index over HTTP, as pip is configured to find it, without pip: listed
(PEP 503 and 691), fetched, resumed, held against a sha256."""

from __future__ import annotations

import base64
import configparser
import dataclasses
import hashlib
import html.parser
import http.client
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from lfmim.progress import watch
from lfmim.schema import InputError
from lfmim.storage import resumable_file

ACCEPT = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.01"
)
CHUNK = 1 << 18
TIMEOUT_S = 60.0
MB = 1_000_000


@dataclasses.dataclass(frozen=True)
class Wheel:
    """One file of a package, pinned."""

    project: str
    name: str
    sha256: str
    size: int
    """Bytes."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Where packages come from: `urls` of simple indexes, tried in order, with the credentials that
    the user has in them; `certificates`: file of certificate authorities, "" for the system's."""

    urls: tuple[str, ...]
    certificates: str = ""


def configured() -> Index:
    """As pip would: environment variables, else its configuration files, else its own default.
    Raises InputError if none of them names an index."""
    found = _pip_settings()
    main = os.environ.get("PIP_INDEX_URL") or found.get("index-url") or default_index()
    extra = os.environ.get("PIP_EXTRA_INDEX_URL") or found.get("extra-index-url") or ""
    certificates = os.environ.get("PIP_CERT") or found.get("cert") or ""
    return Index((main.strip(), *extra.split()), certificates)


def default_index() -> str:
    """Where pip looks if nobody says otherwise. Raises InputError without pip."""
    try:
        # pip has no public name for it.
        from pip._internal.models.index import PyPI
    except ImportError as error:
        raise InputError(
            "no package index is configured, and without pip there is no default: set "
            "PIP_INDEX_URL to the simple index that your packages come from"
        ) from error
    return str(PyPI.simple_url)


def _pip_settings() -> dict[str, str]:
    """What pip's configuration files say: later files over earlier ones, and a command's section
    over [global], whichever file it is in."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}, "download": {}}
    for file in _pip_files():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(file, encoding="utf-8")
        # what is no configuration file to pip either
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue
        for name, found in sections.items():
            if parser.has_section(name):
                found |= {k.replace("_", "-"): v for k, v in parser.items(name)}
    return sections["global"] | sections["install"] | sections["download"]


def _pip_files() -> Iterator[Path]:
    """In the order in which pip reads them."""
    named = os.environ.get("PIP_CONFIG_FILE", "")
    # pip's way to say: none at all
    if named == os.devnull:
        return

    home = Path.home()
    if sys.platform == "darwin":
        yield Path("/Library/Application Support/pip/pip.conf")
    for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep):
        yield Path(folder, "pip", "pip.conf")
    yield Path("/etc/pip.conf")
    yield home / ".pip" / "pip.conf"
    if sys.platform == "darwin":
        yield home / "Library" / "Application Support" / "pip" / "pip.conf"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config", "pip", "pip.conf")
    yield Path(sys.prefix, "pip.conf")
    if named:
        yield Path(named)


def fetch(wheel: Wheel, folder: Path, index: Index) -> Path:
    """The wheel in `folder`, from there if it is whole already.

    What a broken connection left is continued. Raises InputError if no index has it or can be
    reached, and if the bytes are not those of its sha256; WriteError if the disk is full.
    """
    path = folder / wheel.name
    if path.is_file() and sha256(path) == wheel.sha256:
        return path

    url = _find(wheel, index)
    with resumable_file(path) as temporary:
        _download(url, temporary, wheel, index)
        found = sha256(temporary)
        if found != wheel.sha256:
            # or the next run would go on from it
            temporary.unlink()
            raise InputError(
                f"{wheel.name} from {shown(url)}: sha256 {found} is not the pinned {wheel.sha256}: "
                "these are other bytes than were tried, and they were thrown away. Try again, or "
                "use another index (PIP_INDEX_URL)"
            )
    return path


def taken(wheel: Wheel, folder: Path) -> Path:
    """The wheel that lies in `folder` already. Raises InputError if it does not, or is another."""
    path = folder / wheel.name
    if not path.is_file():
        raise InputError(f"--wheels {folder}: {wheel.name} is not there")
    if (found := sha256(path)) != wheel.sha256:
        raise InputError(f"{path}: sha256 {found} is not the pinned {wheel.sha256}")
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shown(url: str) -> str:
    """The URL without user, password and query, for messages."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _find(wheel: Wheel, index: Index) -> str:
    """Where the file lies."""
    problems = []
    for base in index.urls:
        page = f"{base.rstrip('/')}/{wheel.project}/"
        try:
            with _open(page, index, {"Accept": ACCEPT}) as response:
                kind, body = response.headers.get("Content-Type", ""), response.read()
                links = _links(response.url, kind, body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problems.append(f"{shown(page)}: {_reason(error)}")
            continue
        if wheel.name in links:
            # credentials of the index are for its own host
            return _with_credentials(links[wheel.name], base)
        problems.append(f"{shown(page)}: has no {wheel.name}")

    raise InputError(
        f"{wheel.name} cannot be fetched: {'; '.join(problems)}. Set PIP_INDEX_URL (or "
        "pip.conf) to an index that this machine can reach, or download the file elsewhere and "
        "name its folder: --wheels FOLDER"
    )


def _links(page: str, kind: str, body: bytes) -> dict[str, str]:
    """File name -> URL of an index page, JSON or HTML."""
    if "json" in kind:
        files = json.loads(body)["files"]
        return {str(f["filename"]): urljoin(page, str(f["url"])) for f in files}

    reader = _Anchors()
    reader.feed(body.decode("utf-8", "replace"))
    urls = [urljoin(page, link) for link in reader.links]
    return {unquote(urlsplit(url).path.rpartition("/")[2]): url for url in urls}


class _Anchors(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _with_credentials(url: str, base: str) -> str:
    link, own = urlsplit(url), urlsplit(base)
    user, at, host = own.netloc.rpartition("@")
    if at and "@" not in link.netloc and (link.scheme, link.netloc) == (own.scheme, host):
        return urlunsplit(link._replace(netloc=f"{user}@{host}"))
    return url


def _open(url: str, index: Index, headers: dict[str, str]) -> Any:
    """An open response. Raises OSError (URLError is one) or ValueError."""
    parts = urlsplit(url)
    # A page of its links is what a folder on a disk has, too.
    if parts.scheme == "file" and parts.path.endswith("/"):
        parts = parts._replace(path=f"{parts.path}index.html")
    if parts.scheme not in ("http", "https", "file"):
        raise ValueError(f"{parts.scheme or 'no scheme'}: only http, https and file are read")

    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        urlunsplit(parts._replace(netloc=host, fragment="")), headers=headers
    )
    if at:
        # unredirected: it must not follow to another host
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    context = None
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=index.certificates or None)
    return urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context)


def _download(url: str, path: Path, wheel: Wheel, index: Index) -> None:
    """Fill `path`, from where it ends; its size is then the wheel's."""
    have = path.stat().st_size if path.is_file() else 0
    if have >= wheel.size:
        have = 0
    try:
        response = _open(url, index, {"Range": f"bytes={have}-"} if have else {})
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise InputError(f"{shown(url)}: {_reason(error)}; run the same command again") from error

    with (
        response,
        path.open("ab") as file,
        watch(wheel.project, wheel.size // MB, "MB") as show,
    ):
        # A server that knows no ranges sends the whole file.
        if getattr(response, "status", None) != http.client.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        while True:
            # Two kinds of OSError: this one is the network's, that of `write` the disk's.
            try:
                chunk = response.read(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _broken(url, wheel, have, _reason(error)) from error
            if not chunk or have > wheel.size:
                break
            file.write(chunk)
            have += len(chunk)
            show(min(have, wheel.size) // MB)
    if have < wheel.size:
        raise _broken(url, wheel, have, "the connection ended")


def _broken(url: str, wheel: Wheel, have: int, reason: str) -> InputError:
    return InputError(
        f"{shown(url)}: {reason}, after {have / MB:.1f} of {wheel.size / MB:.1f} MB; run the same "
        "command again: it goes on from there"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"cannot be reached ({error.reason})"
    return str(error) or type(error).__name__
