"""What a service is told when it starts, and who may use it."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from feature_service.pretrained.builtin import BUILTIN_FACE
from feature_service.recordings.predict import Settings
from lfmim import tracking
from lfmim.config import EncoderConfig, ExtractConfig, TrackingConfig
from lfmim.config.checks import check, check_least
from lfmim.schema import InputError
from lfmim.storage import local_path, output_folder
from lfmim.text_files import decode

PART_BYTES = 8 << 20
"""Of an upload's part at most, and of a request that brings no media."""
MIN_TOKEN = 16
"""Characters of a token at least."""
FOLDER = "service"
"""Of a run storage: where a service keeps what it is given."""
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
    """Jobs that wait or are at work; more are refused for now."""
    uploads: int = 10
    """Uploads of one client that are no jobs yet; more are refused for now."""
    clips: int = 4
    """Recordings that are answered at once, at the same time; more are refused for now."""
    timeout_s: float = 300.0
    """Longest time in which a recording is answered at once."""
    lifetime_h: float = 24.0
    """After that an upload, or a job's recording and results, are deleted."""

    def __post_init__(self) -> None:
        check_least(self, "limits.", 1, "clip_mb", "upload_mb", "queue", "uploads", "clips")
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


def service_config(
    *,
    model: Sequence[str],
    storage: str,
    mlflow: str = "",
    token_file: str = "",
    encoders: EncoderConfig = EncoderConfig(),  # noqa: B008 (frozen)
    gpus_per_worker: float = 0.0,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    limits: Limits = Limits(),
) -> ServiceConfig:
    """The config of options as `lfmim serve` has them. Raises InputError for a token file or a
    folder that cannot be used, and for a model that is not there."""
    tokens = Path(token_file).resolve() if token_file else None
    if tokens:
        read_tokens(tokens)
    folder = local_path(str(Path(storage) / FOLDER), "--storage").resolve()
    config = ServiceConfig(
        models=tuple(model),
        # Workers have other working directories.
        tracking=tracking.tracking_uri(TrackingConfig(uri=mlflow), str(folder.parent)),
        folder=folder,
        extract=ExtractConfig(
            manifest="-", store="-", encoders=encoders, gpus_per_worker=gpus_per_worker
        ),
        settings=settings,
        limits=limits,
        token_file=tokens,
    )
    output_folder(str(folder), "--storage")
    for name in config.models:
        resolve(config.tracking, name)
    return config


def resolve(uri: str, model: str) -> str:
    """The version that a model's reference stands for now: models:/<name>/<number>, or what has no
    versions as it is. Raises InputError."""
    return model if model == BUILTIN_FACE else tracking.resolve_reference(uri, model)


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
