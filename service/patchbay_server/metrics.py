"""Prometheus metrics. Labels never carry an expression: a saved name, a delta's name, or `merge`; and no names but the
default tenant's, which is the operator's. API.md lists them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

import patchbay
from patchbay.engine.engine import Engine
from patchbay.engine.recipes import Ready
from patchbay.errors import PatchbayError
from patchbay.store.base import DEFAULT_TENANT
from patchbay.store.hub import Hub
from patchbay_server.engine_metrics import EngineMetrics
from patchbay_server.jobs.base import Job, JobQueue, State
from patchbay_server.names import Residents
from patchbay_server.read_metrics import ReadCounter, ReadSeries
from patchbay_server.request_metrics import RequestMetrics
from patchbay_server.resolve import Resolved
from patchbay_server.store_metrics import StoreMetrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each of the others, which nobody looks at


class Metrics:
    """One registry an app, so that several apps can live in one process."""

    def __init__(self, engine: Engine, hub: Hub, queue: JobQueue) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = RequestMetrics(self.registry)
        self.inferences = Counter(
            "patchbay_inferences",
            "Inference requests by tenant, model and path.",
            ["tenant", "model", "path"],
            registry=self.registry,
        )
        self.auth_failures = Counter(
            "patchbay_auth_failures", "Requests without the key, or with another one.", registry=self.registry
        )
        self.upload_bytes = Counter("patchbay_upload_bytes", "Bytes of accepted uploads.", registry=self.registry)
        self.blob_bytes = Counter("patchbay_blob_bytes", "Bytes of new blobs.", registry=self.registry)
        full = "Requests refused because a queue or the memory for deltas was full."
        self.refusals = Counter("patchbay_queue_refusals", full, registry=self.registry)
        self.store = StoreMetrics(self.registry)
        self.of_engine = EngineMetrics(engine, self.registry)
        self._residents = Residents(engine, hub)
        self._show_jobs(queue)
        self._show_base(engine)
        self._show_memory(engine)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)

    def asked(self, resolved: Resolved, ready: Ready) -> None:
        """An inference request names something that exists."""
        self.inferences.labels(resolved.tenant, resolved.shown, ready.path).inc()
        if resolved.tenant == DEFAULT_TENANT:
            self.of_engine.note(ready, resolved.label)

    def forget(self, tenant: str, model: str, version: int | None = None) -> None:
        """What goes by a name that nothing has any more: servers see many come and go."""
        self._residents.forget()
        if version is None and tenant == DEFAULT_TENANT:
            self.inferences.remove_by_labels({"tenant": tenant, "model": model})

    def _show_base(self, engine: Engine) -> None:
        about = {"version": patchbay.__version__, "base": engine.backbone.name, "task": engine.backbone.task.value}
        Gauge("patchbay_build_info", "Always 1.", list(about), registry=self.registry).labels(**about).set(1)
        self._gauge("patchbay_ready", "1 while the engine can answer, else 0.", lambda: _is_ready(engine))
        self._gauge("patchbay_resident_bytes", "Bytes of the resident base.", lambda: engine.backbone.num_bytes)
        checks = engine.integrity
        self._count("patchbay_integrity_rounds", "Checks of all that is in memory.", lambda: checks.num_rounds)
        changed = "Times that a check found something in memory changed."
        self._count("patchbay_integrity_failures", changed, lambda: checks.num_failures)

    def _show_memory(self, engine: Engine) -> None:
        recipes = engine.recipes
        for name, pool in (("delta", recipes.deltas), ("plan", recipes.plans)):
            self._gauge(f"patchbay_{name}_cache_bytes", f"Bytes of {name}s kept in memory.", lambda p=pool: p.num_bytes)
            self._gauge(f"patchbay_{name}_cache_limit_bytes", "Bytes that may be.", lambda p=pool: p.max_bytes)
            self._gauge(f"patchbay_{name}_cache_entries", f"{name.title()}s kept in memory.", lambda p=pool: len(p))
            for what, text in (
                ("hits", f"Times that a {name} was in memory."),
                ("misses", f"Times that a {name} was made."),
                ("evictions", f"{name.title()}s that made room for others."),
            ):
                self._count(f"patchbay_{name}_cache_{what}", text, partial(getattr, pool, what))
        deltas = recipes.deltas
        self._gauge("patchbay_pinned_delta_bytes", "Bytes of pinned deltas.", lambda: deltas.pinned_bytes)
        used = "Bytes of deltas in memory: those that are kept, and others that requests under way use."
        self._gauge("patchbay_delta_alive_bytes", used, lambda: deltas.alive_bytes)
        self._gauge("patchbay_delta_waiting", "Requests that wait for memory for a delta.", lambda: deltas.num_waiting)
        each = "Bytes of each delta in memory, of the hundred used last."
        ReadSeries("patchbay_delta_resident_bytes", each, ["delta"], registry=self.registry).set_series(
            self._residents.read
        )

    def _show_jobs(self, queue: JobQueue) -> None:
        jobs = Gauge("patchbay_jobs", "Jobs by state.", ["state"], registry=self.registry)
        for state in State:
            jobs.labels(state).set_function(lambda s=state: _count(queue, s))  # type: ignore[misc]
        for name, (text, read) in _PROGRESS.items():
            ReadSeries(name, text, ["job_id", "kind"], registry=self.registry).set_series(
                partial(_progress, queue, read)
            )

    def _gauge(self, name: str, text: str, read: object) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)  # type: ignore[arg-type]

    def _count(self, name: str, text: str, read: Callable[[], float]) -> None:
        ReadCounter(name, text, registry=self.registry).set_function(read)


def _is_ready(engine: Engine) -> bool:
    try:
        engine.check_health()
    except PatchbayError:
        return False
    return True


def _count(queue: JobQueue, state: State) -> float:
    """NaN where the queue does not answer: the other metrics matter all the more then."""
    try:
        return queue.count_states()[state]
    except PatchbayError:
        return math.nan


def _stage(job: Job) -> float | None:
    done, total = (job.progress or {}).get("done"), (job.progress or {}).get("total")
    return done / total if done is not None and total else None


_PROGRESS: Mapping[str, tuple[str, Callable[[Job], float | None]]] = {
    "patchbay_job_stage_ratio": ("Done of a running job's stage; 1 is all of it.", _stage),
    "patchbay_job_evaluations": ("Of a running job's search.", lambda job: (job.progress or {}).get("evaluation")),
    "patchbay_job_best_score": ("Of a running job's search.", lambda job: (job.progress or {}).get("best_score")),
}


def _progress(queue: JobQueue, read: Callable[[Job], float | None]) -> Iterator[tuple[Mapping[str, str], float]]:
    """Of the jobs that run now: there are no more than workers. None where the queue does not answer."""
    try:
        running = queue.running()
    except PatchbayError:
        return
    for job in running:
        value = read(job)
        if value is not None:
            yield {"job_id": job.id, "kind": job.kind}, value
