"""What Prometheus reads of the process that answers, which is one for the whole service."""

from __future__ import annotations

import os
import socket

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

PREFIX = "lfmim_service"
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper bounds of the classes of a request's time."""


class Figures:
    """Requests by address and status, and how long they took; recordings by state."""

    def __init__(self) -> None:
        # Of its own: in a process's common one, two services would count as one.
        self.registry = CollectorRegistry()
        where = Gauge(
            f"{PREFIX}_answers",
            "1 for the process that answers for all workers",
            ["host", "pid"],
            registry=self.registry,
        )
        where.labels(socket.gethostname(), str(os.getpid())).set(1)
        self.requests = Counter(
            f"{PREFIX}_requests",
            "Requests",
            ["method", "path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "Seconds from a request to its answer's end",
            ["method", "path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.recordings = Gauge(
            f"{PREFIX}_recordings", "Recordings by state", ["state"], registry=self.registry
        )
        self.clips = Gauge(
            f"{PREFIX}_clips", "Clips that are being answered", registry=self.registry
        )

    def answered(self, method: str, path: str, status: int, seconds: float) -> None:
        """Count a request. `path`: as the service names the address, not as the client asks."""
        self.requests.labels(method, path, str(status)).inc()
        self.seconds.labels(method, path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self.registry)
