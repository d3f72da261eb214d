"""What stands before every request: who asks, from where, and how much they send."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from feature_service.serving.figures import Figures
from feature_service.serving.settings import NOBODY, PART_BYTES, owner_of

OPEN_PATHS = ("/healthz", "/readyz")
"""That anybody may ask for: whatever watches the service has no token."""
CLIP_PATH = "/v1/predict"
REQUEST_ID = "x-request-id"
BODY_SECONDS = 60.0
"""Longest pause of a client that sends a body."""
SAFE = ("GET", "HEAD")
LOCAL = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Of every answer that does not bring its own."""

# Serve's own logger: it writes JSON into the service's folder, with the request's id.
logger = logging.getLogger("ray.serve")


class Gate:
    """ASGI middleware. A request that goes on has `owner` in its state.

    `tokens`: name -> token; none: everybody may ask, who asks for this machine by a name of its
    own. `clip_bytes`: largest body of CLIP_PATH; others have PART_BYTES. `figures` counts.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Mapping[str, str], clip_bytes: int, figures: Figures
    ) -> None:
        self.app, self.tokens, self.clip_bytes = app, tokens, clip_bytes
        self.figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.perf_counter()
        given = headers.get(REQUEST_ID)
        request_id, status = given or uuid.uuid4().hex, 500
        owner = self._owner(scope["path"], headers)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, out = message["status"], MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    out.setdefault(name, value)
                # Serve's proxy adds that which it has given.
                if not given:
                    out[REQUEST_ID] = request_id
            await send(message)

        scope.setdefault("state", {})["owner"] = owner
        limit = self.clip_bytes if scope["path"] == CLIP_PATH else PART_BYTES
        try:
            refused = self._refusal(scope, headers, owner, limit)
            if refused is not None:
                await refused(scope, receive, sending)
            else:
                await self.app(scope, _counted(receive, limit), sending)
        finally:
            spent = time.perf_counter() - started
            # What clients ask for that is not there would be one address each.
            path = getattr(scope.get("route"), "path", "other")
            self.figures.answered(scope["method"], path, status, spent)
            # Without the query, and without what a client calls its files.
            logger.info(
                "%s %s %d %d ms",
                *(scope["method"], scope["path"], status, round(spent * 1000)),
                extra={"owner": owner or "", "request": request_id, "status": status},
            )

    def _owner(self, path: str, headers: Headers) -> str | None:
        if path in OPEN_PATHS or not self.tokens:
            return NOBODY
        kind, _, value = headers.get("authorization", "").partition(" ")
        if kind.lower() == "basic":
            # A browser's own question for name and password, which it answers for media, too.
            try:
                value = base64.b64decode(value).decode().partition(":")[2]
            except ValueError:
                return None
        return owner_of(value.strip(), self.tokens)

    def _refusal(
        self, scope: Scope, headers: Headers, owner: str | None, limit: int
    ) -> ASGIApp | None:
        host = headers.get("host", "")
        if owner is None:
            return _problem(
                401, "no token, or none that is known here", {"www-authenticate": "Basic"}
            )
        # A name of somebody else's that leads here, by which their page would read what it likes.
        if not self.tokens and scope["path"] not in OPEN_PATHS and _name(host) not in LOCAL:
            return _problem(403, "ask for localhost; other names need a service with tokens")
        # A browser sends what it knows of the user with a foreign page's request as well.
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in SAFE and urlsplit(origin).netloc != host:
            return _problem(403, "a page of another origin asks")
        if int(headers.get("content-length", "0")) > limit:
            return _problem(413, _too_large(limit), {"connection": "close"})
        return None


def _name(host: str) -> str:
    # An IPv6 address has colons of its own.
    name, _, port = host.rpartition(":")
    return name if port.isdecimal() else host


def _too_large(limit: int) -> str:
    return f"the body is larger than {limit} bytes; send it in parts (/v1/uploads)"


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> ASGIApp:
    return JSONResponse({"detail": detail}, status, headers)


def _counted(receive: Receive, limit: int) -> Receive:
    """A header may lie or be missing, and a client may stop half-way."""
    size, whole = 0, False

    async def counting() -> Message:
        nonlocal size, whole
        if whole:
            return await receive()  # which tells of the client's end
        try:
            message: dict[str, Any] = dict(await asyncio.wait_for(receive(), BODY_SECONDS))
        except TimeoutError as error:
            raise HTTPException(408, "the body does not come") from error
        size += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if size > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return counting
