"""What a service is told when it starts, and who may use it."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path

from feature_service.recordings.predict import Settings
from lfmim.config import ExtractConfig
from lfmim.config.checks import check, check_least
from lfmim.schema import InputError
from lfmim.text_files import decode

PART_BYTES = 8 << 20
"""Of an upload's part at most, and of a request that brings no media."""
MIN_TOKEN = 16
"""Characters of a token at least."""
NOBODY = "anyone"
"""Who asks, where no tokens are given."""
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a client may ask for."""

    clip_mb: int = 64
    """Largest recording that is answered at once, MiB."""
    upload_mb: int = 4096
    """Largest upload, MiB."""
    duration_s: float = 4 * 3600.0
    """Longest recording."""
    queue: int = 100
    """Recordings that are uploaded, wait or are at work; more are refused for now."""
    clips: int = 4
    """Recordings that are answered at once, at the same time; more are refused for now."""
    timeout_s: float = 300.0
    """Longest time in which a recording is answered at once."""
    lifetime_h: float = 24.0
    """After that an upload, or a job's recording and results, are deleted."""

    def __post_init__(self) -> None:
        check_least(self, "limits.", 1, "clip_mb", "upload_mb", "queue", "clips")
        for field in ("duration_s", "timeout_s", "lifetime_h"):
            value = getattr(self, field)
            check(0 < value < math.inf, f"limits.{field}", f"{value} must be positive and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """A service. `models`: the references that a client may name, the first by default; `tracking`:
    URI of the registry; `folder`: where it keeps what it is given; `token_file`: None where all may
    ask."""

    models: tuple[str, ...]
    tracking: str
    folder: Path
    extract: ExtractConfig
    settings: Settings = dataclasses.field(default_factory=Settings)
    limits: Limits = Limits()
    token_file: Path | None = None

    def __post_init__(self) -> None:
        check(bool(self.models), "model", "name at least one")
        check(len(set(self.models)) == len(self.models), "model", "name each once")


def check_address(host: str, token_file: str) -> None:
    """Raise InputError for an address that others reach without tokens."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError as error:
        raise InputError(
            f"--host {host}: is no address of this machine, as 127.0.0.1 or 0.0.0.0"
        ) from error
    if not local and not token_file:
        raise InputError(
            f"--host {host}: others reach this address; give --token_file with a line name:token "
            "for each who may"
        )


def read_tokens(path: Path) -> dict[str, str]:
    """Name -> token, of lines `name:token`; empty lines and those that begin with # are none.
    Raises InputError naming the line, never a token."""
    try:
        text = decode(path.read_bytes(), str(path), table=True)[0]
    except OSError as error:
        raise InputError(f"--token_file {path}: cannot be read: {error.strerror}") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, token = (part.strip() for part in line.partition(":"))
        where = f"--token_file {path}: line {number}"
        if not _NAME.fullmatch(name) or len(token) < MIN_TOKEN or not token.isascii():
            raise InputError(
                f"{where}: is no name:token; a token has at least {MIN_TOKEN} characters of ASCII"
            )
        if name in tokens or token in tokens.values():
            raise InputError(f"{where}: the name or its token stands there twice")
        tokens[name] = token
    if not tokens:
        raise InputError(f"--token_file {path}: has no line name:token")
    return tokens


def owner_of(given: str, tokens: Mapping[str, str]) -> str | None:
    """Whose token it is, in a time that does not tell how much of it is right."""
    found = None
    for name, token in tokens.items():
        if hmac.compare_digest(given.encode(), token.encode()):
            found = name
    return found
