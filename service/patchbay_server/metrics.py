"""Prometheus metrics. Labels never carry an expression: a saved name, a delta's name, or `merge`. API.md lists them
all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from patchbay.engine.engine import Engine
from patchbay.errors import PatchbayError
from patchbay_server.engine_metrics import EngineMetrics, ReadCounter
from patchbay_server.jobs.base import JobQueue, State

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of the others, which nobody looks at


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
            self._gauge(f"patchbay_{name}_cache_bytes", f"Bytes of {name}s kept in memory.", lambda p=pool: p.num_bytes)
            self._gauge(f"patchbay_{name}_cache_limit_bytes", "Bytes that may be.", lambda p=pool: p.max_bytes)
            self._gauge(f"patchbay_{name}_cache_entries", f"{name.title()}s kept in memory.", lambda p=pool: len(p))
            self._count(
                f"patchbay_{name}_cache_hits", f"Times that a {name} was in memory.", partial(getattr, pool, "hits")
            )
            self._count(
                f"patchbay_{name}_cache_misses", f"Times that a {name} was made.", partial(getattr, pool, "misses")
            )
        deltas = recipes.deltas
        self._gauge("patchbay_pinned_delta_bytes", "Bytes of pinned deltas.", lambda: deltas.pinned_bytes)
        used = "Bytes of deltas in memory: those that are kept, and others that requests under way use."
        self._gauge("patchbay_delta_alive_bytes", used, lambda: deltas.alive_bytes)
        self._gauge("patchbay_delta_waiting", "Requests that wait for memory for a delta.", lambda: deltas.num_waiting)
        full = "Requests refused because a queue or the memory for deltas was full."
        self.refusals = Counter("patchbay_queue_refusals", full, registry=self.registry)
        checks = engine.integrity
        self._count("patchbay_integrity_rounds", "Checks of all that is in memory.", lambda: checks.num_rounds)
        changed = "Times that a check found something in memory changed."
        self._count("patchbay_integrity_failures", changed, lambda: checks.num_failures)
        self.of_engine = EngineMetrics(engine, self.registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def forget(self, model: str) -> None:
        """The series of a name that nothing has any more: servers see many come and go."""
        self.inferences.remove_by_labels({"model": model})

    def _gauge(self, name: str, text: str, read: object) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)  # type: ignore[arg-type]

    def _count(self, name: str, text: str, read: Callable[[], float]) -> None:
        ReadCounter(name, text, registry=self.registry).set_function(read)


def _count(queue: JobQueue, state: State) -> float:
    """NaN where the queue does not answer: the other metrics matter all the more then."""
    try:
        return queue.count_states()[state]
    except PatchbayError:
        return math.nan
