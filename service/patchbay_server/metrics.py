"""Prometheus metrics. Labels never carry an expression: a saved name, a delta's name, or `merge`. API.md lists them
all.
"""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from patchbay.engine.engine import Engine
from patchbay.errors import PatchbayError
from patchbay_server.engine_metrics import EngineMetrics, ReadCounter
from patchbay_server.jobs.base import JobQueue, State


class Metrics:
    """One registry an app, so that several apps can live in one process."""

    def __init__(self, engine: Engine, queue: JobQueue) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "patchbay_http_requests", "HTTP requests.", ["route", "method", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "patchbay_http_request_seconds", "Time to answer.", ["route", "method"], registry=self.registry
        )
        self.inferences = Counter(
            "patchbay_inferences", "Inference requests by model and path.", ["model", "path"], registry=self.registry
        )
        self.upload_bytes = Counter("patchbay_upload_bytes", "Bytes of accepted uploads.", registry=self.registry)
        self.blob_bytes = Counter("patchbay_blob_bytes", "Bytes of new blobs.", registry=self.registry)
        jobs = Gauge("patchbay_jobs", "Jobs by state.", ["state"], registry=self.registry)
        for state in State:
            jobs.labels(state).set_function(lambda s=state: _count(queue, s))  # type: ignore[misc]
        self._gauge("patchbay_resident_bytes", "Bytes of the resident base.", lambda: engine.backbone.num_bytes)
        recipes = engine.recipes
        for name, pool in (("delta", recipes.deltas), ("plan", recipes.plans)):
            self._gauge(f"patchbay_{name}_cache_bytes", f"Bytes of cached {name}s.", lambda p=pool: p.num_bytes)
            self._gauge(f"patchbay_{name}_cache_entries", f"Cached {name}s.", lambda p=pool: len(p))
            self._gauge(f"patchbay_{name}_cache_hits", f"Requests that found their {name}.", lambda p=pool: p.hits)
            self._gauge(f"patchbay_{name}_cache_misses", "Requests that had to make it.", lambda p=pool: p.misses)
        pinned = recipes.deltas
        self._gauge("patchbay_pinned_delta_bytes", "Bytes of pinned deltas.", lambda: pinned.pinned_bytes)
        checks = engine.integrity
        rounds = ReadCounter("patchbay_integrity_rounds", "Checks of all that is in memory.", registry=self.registry)
        rounds.set_function(lambda: checks.num_rounds)
        failures = ReadCounter("patchbay_integrity_failures", "Things that had changed.", registry=self.registry)
        failures.set_function(lambda: checks.num_failures)
        self.of_engine = EngineMetrics(engine, self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def forget(self, model: str) -> None:
        """The series of a name that nothing has any more: servers see many come and go."""
        self.inferences.remove_by_labels({"model": model})

    def _gauge(self, name: str, text: str, read: object) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)  # type: ignore[arg-type]


def _count(queue: JobQueue, state: State) -> float:
    """NaN where the queue does not answer: the other metrics matter all the more then."""
    try:
        return queue.count_states()[state]
    except PatchbayError:
        return math.nan
