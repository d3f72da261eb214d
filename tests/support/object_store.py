"""A real S3 server on loopback, and what goes wrong with one."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from xml.sax.saxutils import escape

import pytest

Answer = tuple[str, list[tuple[str, str]], list[bytes]]
"""Status line, headers and body."""


def refusal(status: str, code: str, message: str = "no") -> Answer:
    """What S3 answers when it refuses."""
    body = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>".encode()
    return status, [("Content-Type", "application/xml")], [body]


SLOW_DOWN = refusal("503 Slow Down", "SlowDown", "Please reduce your request rate.")
EXPIRED = refusal("400 Bad Request", "ExpiredToken", "The provided token has expired.")
DENIED = refusal("403 Forbidden", "AccessDenied", "Access Denied")


class ObjectStore:
    """moto's server behind a gate: `refuse` is asked for an answer of its own to each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        """Method and path (with the query) of each."""
        self.refuse: Callable[[str, str], Answer | None] = lambda method, path: None
        self.url = ""
        self.condition = False
        """Whether the request asked about is a conditional one."""

    def __call__(self, environ, start_response):
        self.condition = "HTTP_IF_NONE_MATCH" in environ
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        path = environ["PATH_INFO"] + (f"?{query}" if query else "")
        self.requests.append((method, path))
        answer = self.refuse(method, path)
        if answer is None:
            return self.app(environ, start_response)
        status, headers, body = answer
        # The client goes on sending: what it has said must be read before it is answered.
        if length := int(environ.get("CONTENT_LENGTH") or 0):
            environ["wsgi.input"].read(length)
        start_response(status, headers)
        return [] if method == "HEAD" else body

    @contextmanager
    def running(self) -> Iterator[ObjectStore]:
        """Serve, with the environment of a client."""
        from moto.server import DomainDispatcherApplication, create_backend_app
        from s3fs import S3FileSystem
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.app = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, self, threaded=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        with pytest.MonkeyPatch.context() as patch:
            for name in [n for n in os.environ if n.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            # A client that is kept from before knows another server.
            S3FileSystem.clear_instance_cache()
            yield self
            S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLEEXAMPLE00",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def bucket(self) -> str:
        """The URL of a new bucket."""
        import boto3

        name = f"lfmim-{uuid.uuid4().hex[:8]}"
        boto3.client("s3", endpoint_url=self.url).create_bucket(Bucket=name)
        return f"s3://{name}"


SECRET = "the-secret-that-no-log-may-show"
