"""What is counted of HTTP requests, by a server and by a front of several. Knows no route: labels are templates."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram


class RequestMetrics:
    """How many there were, and how long they took."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["route", "method"]
        self.total = Counter("patchbay_http_requests", "HTTP requests.", [*labels, "status"], registry=registry)
        self.seconds = Histogram("patchbay_http_request_seconds", "Time to answer.", labels, registry=registry)
