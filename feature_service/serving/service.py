"""What goes on behind a service's addresses: its jobs, the versions of its models, what expires."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from fastapi import FastAPI, HTTPException

from feature_service.serving.corrections import Corrections
from feature_service.serving.jobs import DONE, FAILED, QUEUED, RUNNING, Jobs, Recording
from feature_service.serving.models import Work
from feature_service.serving.settings import ServiceConfig, resolve
from lfmim.schema import InputError
from lfmim.storage import exclusive

ATTEMPTS = 3
"""Workers that one job may cost."""
POLL_SECONDS = 10.0
"""Between two looks at the registry, and for what has expired."""
BUSY = {"retry-after": "30"}

logger = logging.getLogger("ray.serve")


class Unavailable(Exception):
    """The worker died, and its successor as well, or none came in time: ask again."""


class Backend(Protocol):
    """Where the models are. `models.Models` says what its methods do; each raises Unavailable."""

    async def about(self, version: str) -> dict[str, Any]: ...

    async def predict(self, work: Work) -> str: ...

    async def page(self, work: Work) -> str:
        """Write the page, and a preview where browsers need one; "", or why there is none."""


class Service:
    """State of the one process that answers: jobs, and the version behind each model's name."""

    def __init__(self, config: ServiceConfig, backend: Backend, workers: int) -> None:
        self.config, self.backend, self.workers = config, backend, workers
        self.versions: dict[str, str] = {}
        self.abouts: dict[str, dict[str, Any]] = {}
        self.clips = 0
        self.corrections = Corrections(config.folder)
        self.news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Goes on with what was accepted before, until the block ends."""
        # A successor waits for the process before it to be gone.
        with exclusive(self.config.folder, "service's folder"):
            self.jobs = Jobs(self.config.folder)
            self.jobs.recover()
            # One worker is left for what is answered at once, where there are several.
            jobs = [self._work] * max(1, self.workers - 1)
            loops = [*jobs, self._follow, self._expire]
            tasks = [asyncio.create_task(_forever(loop)) for loop in loops]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self.jobs.close()

    async def _follow(self) -> None:
        """The versions that the models' names stand for now."""
        for model in self.config.models:
            try:
                version = await asyncio.to_thread(resolve, self.config.tracking, model)
                if self.versions.get(model) != version:
                    # Loaded first: whoever asks meanwhile has the version before.
                    self.abouts[model] = await self.backend.about(version)
                    self.versions[model] = version
                    logger.info("%s is %s", model, version)
            except (InputError, Unavailable) as error:
                logger.error("%s: %s", model, error)
        await asyncio.sleep(POLL_SECONDS)

    async def _expire(self) -> None:
        self.jobs.expire(self.config.limits.lifetime_h * 3600)
        await asyncio.sleep(POLL_SECONDS)

    async def _work(self) -> None:
        """The next job, once there is one."""
        job = self.jobs.take()
        if job is None:
            self.news.clear()
            await self.news.wait()
            return
        work = self.work_of(job)
        try:
            error = await self.backend.predict(work) or await self.backend.page(work)
        except Unavailable as problem:
            logger.error("job %s: attempt %d: %s", job.id, job.attempts, problem)
            again = job.attempts < ATTEMPTS
            reason = "" if again else f"its worker died {job.attempts} times"
            self.jobs.finish(job.id, QUEUED if again else FAILED, reason)
        except Exception:
            self.jobs.finish(job.id, FAILED, "failed in the service; its log has why")
            raise
        else:
            self.jobs.finish(job.id, FAILED if error else DONE, error)

    def work_of(self, job: Recording) -> Work:
        media = self.jobs.media(job)
        return Work(media.parent, media.name, job.transcript, job.version, keep_features=True)

    def version_of(self, model: str | None) -> tuple[str, str]:
        """The model's name, and what it stands for now."""
        name = model or self.config.models[0]
        if name not in self.config.models:
            raise HTTPException(422, "no model of that name; /v1/models lists them")
        if name not in self.versions:
            raise HTTPException(503, "the model is not loaded yet", BUSY)
        return name, self.versions[name]

    def own(self, owner: str, id: str) -> Recording:
        found = self.jobs.get(owner, id)
        if found is None:
            raise HTTPException(404, "no such recording of yours")
        return found

    def shown(self, job: Recording) -> dict[str, Any]:
        """What its owner is told."""
        media = self.jobs.media(job)
        done = job.state in (DONE, FAILED)
        return {
            **{k: getattr(job, k) for k in ("id", "name", "state", "size", "created")},
            "received": media.stat().st_size if media.is_file() else 0,
            "model": job.model or None,
            "version": job.version or None,
            "error": job.error or None,
            "progress": self.jobs.progress(job) if job.state == RUNNING else None,
            "files": [f"/v1/jobs/{job.id}/files/{name}" for name in self.jobs.files(job)],
            "expires": job.changed + self.config.limits.lifetime_h * 3600 if done else None,
        }


async def _forever(step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await step()
        except Exception:
            # One recording's; the next is none the worse for it.
            logger.exception("the service goes on")
            await asyncio.sleep(1)
