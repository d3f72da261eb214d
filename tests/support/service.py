"""A service in this process: the real models and decoder without Ray."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from feature_service.recordings.page import write_page
from feature_service.recordings.reader import LocalReader
from feature_service.serving.jobs import CORRECTIONS
from feature_service.serving.models import Models
from feature_service.serving.settings import Limits, ServiceConfig
from lfmim.config import ExtractConfig
from lfmim.schema import InputError

ANN, BOB = "ann-has-a-token-1", "bob-has-a-token-2"


def config(folder: Path, *, tokens: bool = True, **limits) -> ServiceConfig:
    file = None
    if tokens:
        file = folder / "tokens"
        file.write_text(f"# who may ask\nann:{ANN}\nbob:{BOB}\n")
    return ServiceConfig(
        models=("builtin:face",),
        tracking="",
        folder=folder / "service",
        extract=ExtractConfig(manifest="-", store="-"),
        limits=Limits(**limits),
        token_file=file,
    )


class LocalBackend:
    def __init__(self, config: ServiceConfig) -> None:
        reader = functools.partial(LocalReader, max_s=config.limits.duration_s)
        self.models = Models(config, reader)

    async def about(self, version):
        return await asyncio.to_thread(self.models.about, version)

    async def predict(self, work):
        return await asyncio.to_thread(self.models.predict, work)

    async def page(self, work):
        try:
            result = work.folder / "recording.json"
            write_page(result, work.task.media, corrections=CORRECTIONS)
        except InputError as error:
            return str(error)
        return ""


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def left(folder: Path) -> list[str]:
    """Files of recordings in the service's folder."""
    kept = {"jobs.db", "jobs.db-journal", ".lock"}
    found = (p for p in (folder / "service").rglob("*") if p.is_file() and "logs" not in p.parts)
    return sorted(p.name for p in found if p.name not in kept)
