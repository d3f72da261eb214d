"""The service on Ray Serve: one process answers, others decode and predict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from feature_service.pipeline.stages import Row
from feature_service.recordings.decoder import LocalDecoder
from feature_service.recordings.page import write_page
from feature_service.recordings.speech import Heard
from feature_service.serving.app import Unavailable, create_app
from feature_service.serving.jobs import STEM
from feature_service.serving.models import Models, Work, without_folder
from feature_service.serving.settings import ServiceConfig
from lfmim.config import ExtractConfig
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
    """Reads media: what a hostile file can harm is this process, or a child of it."""

    def __init__(self, config: ServiceConfig) -> None:
        self.max_s = config.limits.duration_s
        self.decoders: dict[str, LocalDecoder] = {}

    def _decoder(self, extract: ExtractConfig) -> LocalDecoder:
        # Models of one service differ in what they read; all else is the service's own.
        key = ",".join(extract.modalities)
        if key not in self.decoders:
            self.decoders[key] = LocalDecoder(extract, max_s=self.max_s)
        return self.decoders[key]

    async def hear(self, extract: ExtractConfig, media: Path) -> tuple[Heard, str] | str:
        """As a Decoder does, or why it cannot."""
        try:
            return await asyncio.to_thread(self._decoder(extract).hear, media)
        except InputError as error:
            return str(error)

    async def decode(self, extract: ExtractConfig, row: Row) -> Row:
        """As a Decoder does."""
        return await asyncio.to_thread(self._decoder(extract).decode, row)

    async def page(self, work: Work) -> str:
        """As a Backend does."""
        try:
            result = work.folder / f"{STEM}.json"
            await asyncio.to_thread(write_page, result, work.task.media)
        except InputError as error:
            return without_folder(str(error), work.folder)
        return ""


class RemoteDecoder:
    """A Decoder whose work the deployment `Decode` does."""

    def __init__(self, handle: DeploymentHandle[Any], extract: ExtractConfig) -> None:
        self.handle, self.extract = handle, extract

    def hear(self, media: Path) -> tuple[Heard, str]:
        found: tuple[Heard, str] | str = self.handle.hear.remote(self.extract, media).result()
        if isinstance(found, str):
            raise InputError(found)
        return found

    def decode(self, row: Row) -> Row:
        decoded: Row = self.handle.decode.remote(self.extract, row).result()
        return decoded


class Encode:
    """Encoders and models."""

    def __init__(self, config: ServiceConfig, decode: DeploymentHandle[Any]) -> None:
        self.models = Models(config, lambda extract: RemoteDecoder(decode, extract))

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

    def __init__(self, encode: DeploymentHandle[Any], decode: DeploymentHandle[Any]) -> None:
        self.encode, self.decode = encode, decode

    async def about(self, version: str) -> dict[str, Any]:
        found: dict[str, Any] | str = await _again(lambda: self.encode.about.remote(version))
        if isinstance(found, str):
            raise InputError(found)
        return found

    async def predict(self, work: Work) -> str:
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
        self.backend = RayBackend(encode, decode)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.config, self.backend, self.workers)


def run(config: ServiceConfig, *, host: str, port: int, workers: int, decoders: int) -> None:
    """Start the service on the Ray that this process has joined; returns once it answers. Raises
    InputError for an address that is taken."""
    logs = LoggingConfig(
        encoding="JSON", logs_dir=str(config.folder / LOGS), enable_access_log=False
    )
    # To the terminal go warnings; all else is in the logs.
    logger.setLevel(logging.WARNING)
    serve.start(http_options={"host": host, "port": port}, logging_config=logs)
    gpus = config.extract.gpus_per_worker
    # A recording takes as long as it takes: one at a time for each worker.
    decoding = _deployment(Decode, decoders, num_cpus=CPUS).bind(config)
    encoding = _deployment(Encode, workers, num_cpus=CPUS, num_gpus=gpus).bind(config, decoding)
    answering = _deployment(Ingress, 1, at_once=1000, num_cpus=0)
    app = answering.bind(config, workers, encoding, decoding)
    serve.run(app, name=APP, route_prefix="/", logging_config=logs)


def _deployment(of: type, replicas: int, *, at_once: int = 1, **resources: float) -> Any:
    made: Any = serve.deployment(
        num_replicas=replicas, max_ongoing_requests=at_once, ray_actor_options=resources
    )
    return made(of)
