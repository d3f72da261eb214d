"""The service on Ray Serve: one process answers, others decode and predict."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.config import AutoscalingConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from feature_service.pipeline.stages import Row
from feature_service.recordings.faces import Eyes
from feature_service.recordings.page import write_page
from feature_service.recordings.predict import Settings
from feature_service.recordings.reader import LocalReader, Seen
from feature_service.recordings.speech import Heard
from feature_service.serving.app import create_app
from feature_service.serving.jobs import CORRECTIONS, STEM
from feature_service.serving.models import Models, Work, without_folder
from feature_service.serving.service import Unavailable
from feature_service.serving.settings import Limits, ServiceConfig, service_config
from lfmim.config import EncoderConfig, ExtractConfig
from lfmim.config.checks import check_least
from lfmim.schema import InputError

APP = "lfmim"
LOGS = "logs"
CPUS = 0.5
"""Of a worker that reads or predicts: of a pair, one mostly waits for the other."""
TRIES = 2
"""Workers that are asked before a client is told to come again."""
GONE = (RayActorError, DeploymentUnavailableError)

logger = logging.getLogger("ray.serve")


class Decode:
    """Reads media and looks for faces: its children open the files, which can harm one of these,
    and frames stay here."""

    def __init__(self, config: ServiceConfig) -> None:
        self.max_s = config.limits.duration_s
        self.readers: dict[tuple[str, Eyes], LocalReader] = {}

    def _reader(self, extract: ExtractConfig, eyes: Eyes) -> LocalReader:
        # Models of one service differ in what they read; all else is the service's own.
        key = (",".join(extract.modalities), eyes)
        if key not in self.readers:
            self.readers[key] = LocalReader(extract, eyes, max_s=self.max_s)
        return self.readers[key]

    async def hear(
        self, extract: ExtractConfig, eyes: Eyes, media: Path
    ) -> tuple[Heard, str] | str:
        """As a Reader does, or why it cannot."""
        try:
            return await asyncio.to_thread(self._reader(extract, eyes).hear, media)
        except InputError as error:
            return str(error)

    async def look(self, extract: ExtractConfig, eyes: Eyes, row: Row, *rest: Any) -> Seen:
        """As a Reader does, of a row that is not decoded yet."""
        reader = self._reader(extract, eyes)
        return await asyncio.to_thread(lambda: reader.look(reader.decode(row), *rest))

    async def page(self, work: Work) -> str:
        """As a Backend does."""
        try:
            result = work.folder / f"{STEM}.json"
            page = functools.partial(write_page, corrections=CORRECTIONS)
            await asyncio.to_thread(page, result, work.task.media)
        except InputError as error:
            return without_folder(str(error), work.folder)
        return ""


class RemoteReader:
    """A Reader whose work the deployment `Decode` does."""

    def __init__(self, handle: DeploymentHandle[Any], extract: ExtractConfig, eyes: Eyes) -> None:
        self.handle, self.given = handle, (extract, eyes)

    def hear(self, media: Path) -> tuple[Heard, str]:
        found: tuple[Heard, str] | str = self.handle.hear.remote(*self.given, media).result()
        if isinstance(found, str):
            raise InputError(found)
        return found

    def decode(self, row: Row) -> Row:
        return row

    def look(self, row: Row, kind: str, heard: Heard, tracker: Mapping[str, Any] | None) -> Seen:
        seen: Seen = self.handle.look.remote(*self.given, row, kind, heard, tracker).result()
        return seen


class Encode:
    """Encoders and models."""

    def __init__(self, config: ServiceConfig, decode: DeploymentHandle[Any]) -> None:
        self.models = Models(config, functools.partial(RemoteReader, decode))

    async def about(self, version: str) -> dict[str, Any] | str:
        """As `Models.about`, or why it cannot be loaded."""
        try:
            return await asyncio.to_thread(self.models.about, version)
        except InputError as error:
            return str(error)

    async def predict(self, work: Work) -> str:
        """As `Models.predict`."""
        return await asyncio.to_thread(self.models.predict, work)


class RayBackend:
    """A Backend: asks a second worker where the first is gone."""

    def __init__(
        self, encode: DeploymentHandle[Any], decode: DeploymentHandle[Any], workers: int
    ) -> None:
        self.encode, self.decode = encode, decode
        # Who waits does so here. Serve looks for a free worker less and less often the longer it
        # finds none, up to twice a second: 4 requests at once got 0.72 of the rate of one.
        self.free = asyncio.Semaphore(workers)

    async def about(self, version: str) -> dict[str, Any]:
        found: dict[str, Any] | str = await _again(lambda: self.encode.about.remote(version))
        if isinstance(found, str):
            raise InputError(found)
        return found

    async def predict(self, work: Work) -> str:
        async with self.free:
            return str(await _again(lambda: self.encode.predict.remote(work)))

    async def page(self, work: Work) -> str:
        return str(await _again(lambda: self.decode.page.remote(work)))


async def _again(ask: Callable[[], Any]) -> Any:
    for attempt in range(1, TRIES + 1):
        try:
            return await ask()
        except GONE as error:
            gone: Exception = error
        except RayTaskError as error:
            # That which a worker met whose decoder is gone.
            if not isinstance(error.cause, GONE):
                raise
            gone = error.cause
        logger.warning("a worker is gone (%s): attempt %d", type(gone).__name__, attempt)
    raise Unavailable(f"{TRIES} workers are gone") from gone


@serve.ingress()
class Ingress:
    """The one process that answers."""

    def __init__(
        self,
        config: ServiceConfig,
        workers: int,
        encode: DeploymentHandle[Any],
        decode: DeploymentHandle[Any],
    ) -> None:
        self.config, self.workers = config, workers
        self.backend = RayBackend(encode, decode, workers)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.config, self.backend, self.workers)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How many processes predict at most and at least (0: always the most), and how many decode."""

    workers: int = 1
    min_workers: int = 0
    decode_workers: int = 1

    def __post_init__(self) -> None:
        check_least(self, "", 1, "workers", "decode_workers")
        check_least(self, "", 0, "min_workers")
        if self.min_workers > self.workers:
            raise InputError(f"min_workers: {self.min_workers} are more than workers")

    @property
    def least(self) -> int:
        return self.min_workers or self.workers


def run(config: ServiceConfig, scale: Scale, *, host: str, port: int) -> None:
    """Start the service on the Ray that this process has joined; returns once it answers."""
    # To the terminal go warnings; all else is in the logs.
    logger.setLevel(logging.WARNING)
    logs = _logs(config)
    serve.start(http_options={"host": host, "port": port}, logging_config=logs)
    serve.run(application(config, scale), name=APP, route_prefix="/", logging_config=logs)


def application(config: ServiceConfig, scale: Scale) -> serve.Application:
    """Its three deployments, bound to each other."""
    gpus = config.extract.gpus_per_worker
    # A recording takes as long as it takes: one at a time for each worker.
    decoding = _deployment(Decode, scale.decode_workers, num_cpus=CPUS).bind(config)
    grows = None
    if scale.least < scale.workers:
        grows = AutoscalingConfig(
            min_replicas=scale.least, max_replicas=scale.workers, target_ongoing_requests=1
        )
    workers = None if grows else scale.workers
    encoder = _deployment(Encode, workers, grows=grows, num_cpus=CPUS, num_gpus=gpus)
    encoding = encoder.bind(config, decoding)
    answering = _deployment(Ingress, 1, at_once=1000, num_cpus=0)
    bound: serve.Application = answering.bind(config, scale.workers, encoding, decoding)
    return bound


def build(args: dict[str, Any]) -> serve.Application:
    """For a Serve config file (docs/cluster/rayservice.yaml): `args` are options of `lfmim serve`,
    without host and port, which Serve's own proxy has. Raises InputError."""
    options = dict(args)
    parts = {
        "settings": _taken(Settings, options),
        "limits": _taken(Limits, options),
        "encoders": EncoderConfig(**options.pop("encoders", {})),
    }
    scale = _taken(Scale, options)
    known = inspect.signature(service_config).parameters
    for name in options.keys() - known.keys():
        raise InputError(f"{name}: is no option of a service; known: {', '.join(known)}")
    if not options.get("token_file"):
        raise InputError("token_file: Serve's proxy answers others, who need tokens; name the file")
    return application(service_config(**options, **parts), scale)


def _taken(kind: type[Any], options: dict[str, Any]) -> Any:
    names = [f.name for f in dataclasses.fields(kind) if f.name in options]
    return kind(**{name: options.pop(name) for name in names})


def _logs(config: ServiceConfig) -> LoggingConfig:
    return LoggingConfig(
        encoding="JSON", logs_dir=str(config.folder / LOGS), enable_access_log=False
    )


def _deployment(
    of: type,
    replicas: int | None,
    *,
    grows: AutoscalingConfig | None = None,
    at_once: int = 1,
    **resources: float,
) -> Any:
    made: Any = serve.deployment(
        num_replicas=replicas,
        autoscaling_config=grows,
        max_ongoing_requests=at_once,
        ray_actor_options=resources,
    )
    return made(of)
