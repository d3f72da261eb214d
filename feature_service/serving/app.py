"""The service's addresses. Whatever predicts stands behind `Backend`."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import mimetypes
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import python_multipart  # noqa: F401 (forms are read by it, once one comes)
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from feature_service.recordings.transcripts import READERS
from feature_service.serving.figures import Figures
from feature_service.serving.gate import Gate
from feature_service.serving.jobs import (
    CANCELLED,
    DONE,
    FAILED,
    PENDING,
    STEM,
    UPLOADING,
    Recording,
    media_name,
)
from feature_service.serving.models import Work, without_folder
from feature_service.serving.service import BUSY, Backend, Service, Unavailable
from feature_service.serving.settings import ServiceConfig, read_tokens
from lfmim.schema import InputError
from lfmim.storage import WriteError, append, new_file, remove_folder, write_text

STATIC = Path(__file__).parent / "static"
MAX_TRANSCRIPT = 4 << 20
"""Characters."""
FILE_HEADERS = {
    # The recording's page brings a policy of its own.
    "content-security-policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cache-control": "private, no-cache",
}
MIB = 1 << 20
_FORMATS = ", ".join(suffix.removeprefix(".") for suffix in READERS)
_WORDS = {name: {"type": "string"} for name in ("model", "transcript", "transcript_format")}
_FORM = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}, **_WORDS},
            }
        }
    },
}
_BYTES = {"required": True, "content": {"application/octet-stream": {}}}

logger = logging.getLogger("ray.serve")


class NewUpload(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=255, description="as you call it; the suffix tells the kind")
    size: int = Field(ge=1, description="bytes of the whole file")


class NewJob(BaseModel):
    model_config = ConfigDict(extra="forbid")
    upload: str = Field(max_length=64, description="id of a whole upload")
    model: str | None = Field(None, description="one of /v1/models; by default the first")
    transcript: str | None = Field(None, max_length=MAX_TRANSCRIPT, description="its text")
    transcript_format: str = Field("srt", description=_FORMATS)


class NewCorrection(BaseModel):
    model_config = ConfigDict(extra="forbid")
    row: int = Field(ge=0, description="index in the result's `utterances`")
    head: Literal["text", "audio", "vision", "multimodal"]
    label: str | None = Field(description="a class; null takes back what was said before")
    seen: bool = Field(description="whether the one who says so had seen the prediction")


async def _owner(request: Request) -> str:
    return str(request.state.owner)


Owner = Annotated[str, Depends(_owner)]
"""Who asks, as the gate has found."""


def create_app(config: ServiceConfig, backend: Backend, workers: int = 1) -> FastAPI:
    """The ASGI application, of which there may be one at a time for a folder. Raises InputError for
    a token file that cannot be read."""
    tokens = read_tokens(config.token_file) if config.token_file else {}
    service = Service(config, backend, workers)
    # The pages for people that FastAPI brings load their scripts from elsewhere.
    app = FastAPI(
        title="lfmim",
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.add_exception_handler(WriteError, _cannot_write)
    # A transcript beside a clip has room of its own.
    clip_bytes = config.limits.clip_mb * MIB + 2 * MAX_TRANSCRIPT
    figures = Figures()
    app.add_middleware(Gate, tokens=tokens, clip_bytes=clip_bytes, figures=figures)
    limits = config.limits

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """The service answers."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> dict[str, str]:
        """The service has a model: 503 until then."""
        service.version_of(None)
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        """For Prometheus. This process answers for all workers."""
        for state in (UPLOADING, *PENDING, DONE, FAILED):
            figures.recordings.labels(state).set(service.jobs.count([state]))
        figures.clips.set(service.clips)
        return Response(figures.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> list[dict[str, Any]]:
        """What may be asked, each with the version that new recordings get."""
        return [
            {"model": m, "version": service.versions[m], **service.abouts[m]}
            for m in config.models
            if m in service.versions
        ]

    @app.post("/v1/predict", openapi_extra={"requestBody": _FORM})
    async def predict(request: Request, who: Owner) -> Response:
        """A clip or a short recording, answered at once; nothing of it is kept."""
        if service.clips >= limits.clips:
            raise HTTPException(429, "too many at once", {"retry-after": "5"})
        service.clips += 1
        try:
            async with request.form(
                max_files=1, max_fields=3, max_part_size=MAX_TRANSCRIPT
            ) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise HTTPException(422, "the form has no file 'file'")
                text = {k: form.get(k) for k in ("model", "transcript", "transcript_format")}
                words = {k: v for k, v in text.items() if isinstance(v, str) and v}
                _, version = service.version_of(words.get("model"))
                transcript = _transcript(words.get("transcript_format", "srt"))
                name = media_name(file.filename or "")
                if (file.size or 0) > limits.clip_mb * MIB:
                    raise HTTPException(413, f"larger than {limits.clip_mb} MiB; use /v1/uploads")
                return await _answered(service, file, name, version, transcript, words)
        finally:
            service.clips -= 1

    @app.post("/v1/uploads", status_code=201)
    async def begin(new: NewUpload, who: Owner) -> dict[str, Any]:
        """A recording that will come in parts."""
        if new.size > limits.upload_mb * MIB:
            raise HTTPException(413, f"larger than {limits.upload_mb} MiB")
        # Before it comes: what could not become a job now would be sent for nothing.
        _check_queue(service)
        if service.jobs.count([UPLOADING], owner=who) >= limits.uploads:
            detail = f"{limits.uploads} uploads of yours are no jobs yet; finish or delete one"
            raise HTTPException(429, detail, BUSY)
        return service.shown(service.jobs.add(who, new.name, new.size))

    @app.get("/v1/uploads/{id}")
    async def received(id: str, who: Owner) -> dict[str, Any]:
        """How much of it is here: `received` bytes, where the next part begins."""
        return service.shown(service.own(who, id))

    @app.put("/v1/uploads/{id}", openapi_extra={"requestBody": _BYTES})
    async def part(id: str, offset: int, request: Request, who: Owner) -> Response:
        """At most 8 MiB, which begin at `offset`. 409, with `received`, where others are due."""
        recording = service.own(who, id)
        if recording.state != UPLOADING:
            raise HTTPException(409, "is a job already")
        data = await request.body()
        if offset + len(data) > recording.size:
            raise HTTPException(413, "more than the size that was said")
        # Again: it may have gone while the body came.
        path = service.jobs.media(service.own(who, id))
        # In this thread, so that of two parts of one offset the second meets the first.
        size = append(path, data, at=offset)
        service.jobs.touch(id)
        same = size == offset + len(data)
        return JSONResponse({"received": size}, 200 if same else 409)

    @app.post("/v1/jobs", status_code=202)
    async def accept(new: NewJob, who: Owner) -> dict[str, Any]:
        """Predict an upload that is whole."""
        recording = service.own(who, new.upload)
        if recording.state != UPLOADING:
            raise HTTPException(409, "is a job already")
        if service.shown(recording)["received"] != recording.size:
            raise HTTPException(409, "is not whole yet")
        model, version = service.version_of(new.model)
        name = _transcript(new.transcript_format) if new.transcript else ""
        _check_queue(service)
        if new.transcript:
            write_text(service.jobs.folder_of(recording.id) / name, new.transcript)
        service.jobs.enqueue(recording.id, transcript=name, model=model, version=version)
        service.news.set()
        return service.shown(service.own(who, recording.id))

    @app.get("/v1/jobs")
    async def listing(who: Owner) -> list[dict[str, Any]]:
        """All of the asker's, the newest first."""
        return [service.shown(job) for job in service.jobs.all_of(who)]

    @app.get("/v1/jobs/{id}")
    async def state(id: str, who: Owner) -> dict[str, Any]:
        """`state`: uploading, queued, running, done or failed; then `error` says why."""
        return service.shown(service.own(who, id))

    @app.get("/v1/jobs/{id}/result")
    async def result(id: str, who: Owner) -> Response:
        """The JSON of docs/recordings.md."""
        return _file(service, service.own(who, id), f"{STEM}.json")

    @app.get("/v1/jobs/{id}/files/{name}")
    async def file(id: str, name: str, who: Owner) -> Response:
        """One of the job's `files`; knows Range."""
        return _file(service, service.own(who, id), name)

    @app.post("/v1/jobs/{id}/corrections", status_code=201)
    async def correct(id: str, new: NewCorrection, who: Owner) -> dict[str, Any]:
        """What a row's label for a head should be. Kept, with the features of this utterance, until
        it is deleted; the recording's end is not its."""
        stem = _done(service, service.own(who, id))
        try:
            # In this thread, so that lines come one after the other.
            made = service.corrections.add(who, stem, **new.model_dump())
        except InputError as error:
            raise HTTPException(422, without_folder(str(error), stem.parent)) from error
        return dataclasses.asdict(made)

    @app.get("/v1/jobs/{id}/corrections")
    async def corrected(id: str, who: Owner) -> list[dict[str, Any]]:
        """What the asker said of this recording, the oldest first: of a row and head the last
        counts."""
        stem = _done(service, service.own(who, id))
        return [dataclasses.asdict(one) for one in service.corrections.of(who, stem)]

    @app.get("/v1/corrections")
    async def kept(who: Owner) -> list[dict[str, Any]]:
        """The recordings that the asker corrected, here or deleted since."""
        return [
            {"recording": name, "lines": len(lines), "last": lines[-1].when if lines else None}
            for name, lines in service.corrections.all_of(who).items()
        ]

    @app.delete("/v1/corrections/{recording}", status_code=204)
    async def forget(recording: str, who: Owner) -> None:
        """All that the asker said of it, with the features that were kept for that."""
        if not service.corrections.delete(who, recording):
            raise HTTPException(404, "nothing of yours was corrected there")

    @app.delete("/v1/jobs/{id}", status_code=204)
    @app.delete("/v1/uploads/{id}", status_code=204)
    async def delete(id: str, who: Owner) -> None:
        """The recording, its results and all that is known of it."""
        service.jobs.delete(service.own(who, id))

    for path, name in {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}.items():
        app.add_api_route(path, _static(name), include_in_schema=False)
    return app


async def _answered(
    service: Service,
    file: UploadFile,
    name: str,
    version: str,
    transcript: str,
    words: dict[str, str],
) -> Response:
    # In no row, so that a start after a kill sweeps it.
    folder = service.jobs.scratch()
    task: asyncio.Task[str] | None = None
    try:
        await asyncio.to_thread(_copy, file, folder / name)
        if "transcript" in words:
            write_text(folder / transcript, words["transcript"])
        transcript = transcript if "transcript" in words else ""
        work = Work(folder, name, transcript, version, keep_features=False)
        task = asyncio.create_task(service.backend.predict(work))
        await asyncio.wait({task}, timeout=service.config.limits.timeout_s)
        if not task.done():
            raise HTTPException(503, "no worker was done in time", BUSY)
        try:
            error = task.result()
        except Unavailable as problem:
            raise HTTPException(503, "the worker died; ask again", BUSY) from problem
        if error:
            raise HTTPException(422, error)
        return Response((folder / f"{STEM}.json").read_bytes(), media_type="application/json")
    finally:
        if task is None or task.done():
            remove_folder(folder)
        else:
            # Too slow, or the client has gone: the worker stops at its next utterance.
            write_text(folder / CANCELLED, "")

            def gone(done: asyncio.Task[str]) -> None:
                done.exception()  # or asyncio says that nobody asked for it
                remove_folder(folder)

            task.add_done_callback(gone)


def _check_queue(service: Service) -> None:
    if service.jobs.count() >= service.config.limits.queue:
        raise HTTPException(429, "too many jobs wait", BUSY)


def _copy(file: UploadFile, path: Path) -> None:
    with new_file(path) as temporary, open(temporary, "wb") as out:
        shutil.copyfileobj(file.file, out)


def _transcript(form: str) -> str:
    """Name of the file of a transcript."""
    suffix = f".{form.lower()}"
    if suffix not in READERS:
        raise HTTPException(422, f"transcript_format: one of {_FORMATS}")
    return f"transcript{suffix}"


def _file(service: Service, job: Recording, name: str) -> Response:
    # Looked up among what is there: no path is made of what a client says.
    path = service.jobs.files(job).get(name)
    if path is None:
        raise HTTPException(404, f"no such file of this job, which is {job.state}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return FileResponse(path, media_type=kind, headers=FILE_HEADERS)


def _static(name: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    async def page() -> Response:
        return FileResponse(STATIC / name)

    return page


def _done(service: Service, job: Recording) -> Path:
    """The stem of its results."""
    if job.state != DONE:
        raise HTTPException(409, f"is {job.state}")
    return service.jobs.folder_of(job.id) / STEM


async def _cannot_write(request: Request, error: Exception) -> Response:
    logger.error("%s", error)
    return JSONResponse({"detail": "the service cannot write; tell whoever runs it"}, 507)
