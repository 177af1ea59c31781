"""Jobs: looked at, followed and cancelled. What makes them has routes of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from patchbay.store.keys import Scope
from patchbay_server.access import ScopedRoute, needs
from patchbay_server.answer_schemas import Job as JobAnswer
from patchbay_server.answer_schemas import Jobs
from patchbay_server.audit import about
from patchbay_server.callers import Caller
from patchbay_server.deps import CallerDep, QueueDep, TenantDep
from patchbay_server.jobs.base import Event, Job, JobQueue, Json, Key
from patchbay_server.openapi import link
from patchbay_server.schemas import Body

JOB = "$response.body#/id"
LINKS = {
    "get": link("get", "/v1/jobs/{job}", job=JOB),
    "cancel": link("delete", "/v1/jobs/{job}", job=JOB),
    "follow": link("get", "/v1/jobs/{job}/events", job=JOB),
}
SUBMITTED: dict[int | str, dict[str, Any]] = {
    200: {"description": "The job that this Idempotency-Key has made.", "model": JobAnswer, "links": LINKS},
    202: {"model": JobAnswer, "links": LINKS},
}
"""`responses` of a route that makes a job."""
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=ScopedRoute)
LOOK_S = 0.2
MAX_KEY = 255
KeyHeader = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=MAX_KEY)]
# Streams look again and again: in the common pool they would keep requests waiting.
_looks = anyio.CapacityLimiter(4)


def find_job(job: str, queue: QueueDep, tenant: TenantDep) -> Job:
    return queue.get(tenant, job)


JobDep = Annotated[Job, Depends(find_job)]


@router.get("", responses={200: {"model": Jobs}})
@needs(Scope.READ, 422)
def list_jobs(queue: QueueDep, tenant: TenantDep, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """The newest first."""
    return {"data": [to_json(job) for job in queue.list_jobs(tenant, limit)]}


@router.get("/{job}", responses={200: {"model": JobAnswer}})
@needs(Scope.READ, 404, 422)
def get_job(job: JobDep) -> dict[str, Any]:
    """One job: its state and progress, and in the end its result or error."""
    return to_json(job)


@router.delete("/{job}", responses={200: {"model": JobAnswer}})
@needs(Scope.WRITE, 404, 422, 507)
def cancel_job(job: str, queue: QueueDep, tenant: TenantDep) -> dict[str, Any]:
    """Cancels: a queued job at once, a running one when it next reports. A job that has ended stays as it is."""
    return to_json(queue.cancel(tenant, job))


@router.get("/{job}/events", response_class=EventSourceResponse)
@needs(Scope.READ, 404, 422)
async def follow_job(
    job: JobDep,
    queue: QueueDep,
    request: Request,
    last_event_id: Annotated[int, Header(ge=0, le=1 << 53)] = 0,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events from after `Last-Event-ID` on, until the job has ended."""
    seen, ended = last_event_id, False
    while not ended and not request.app.state.stopping.is_set():
        ended, events = await anyio.to_thread.run_sync(_look, queue, job, seen, limiter=_looks)
        for event in events:
            yield ServerSentEvent(id=str(event.number), event=event.kind, data=event.data)
            seen = event.number
        if not ended:
            await anyio.sleep(LOOK_S)


def _look(queue: JobQueue, job: Job, seen: int) -> tuple[bool, list[Event]]:
    """Whether these are the last. The state is read first: an event after it is seen, now or at the next look."""
    is_final = queue.get(job.tenant, job.id).state.is_final
    events = queue.events(job.id, seen)
    return is_final and not queue.events(job.id, events[-1].number if events else seen, limit=1), events


class Submitter:
    """How one request makes a job, and makes it once however often the request comes."""

    def __init__(self, queue: JobQueue, caller: Caller, key: str | None, request: Request, response: Response) -> None:
        self._queue, self._tenant, self._key = queue, caller.tenant, key
        self._request, self._response = request, response
        self._most = caller.limits.max_jobs

    def __call__(self, kind: str, body: Body, make_spec: Callable[[], Json]) -> dict[str, Any]:
        """Queues a job of `body` and answers 202 with its place; 200 for a job that this key has made before.

        `make_spec` checks the request and returns what the job's spec has besides: it is only called for a new job.
        """
        key = _make_key(self._key, kind, body)
        job, created = self._queue.find_key(self._tenant, key) if key else None, False
        if job is None:
            spec = {"request": body.model_dump(mode="json"), **make_spec()}
            job, created = self._queue.submit(self._tenant, kind, spec, key, self._most)
        about(self._request, job.id)
        self._response.status_code = 202 if created else 200
        self._response.headers["Location"] = f"/v1/jobs/{job.id}"
        return to_json(job)


async def get_submitter(
    queue: QueueDep, caller: CallerDep, request: Request, response: Response, idempotency_key: KeyHeader = None
) -> Submitter:
    return Submitter(queue, caller, idempotency_key, request, response)


SubmitterDep = Annotated[Submitter, Depends(get_submitter)]


def _make_key(text: str | None, kind: str, body: Body) -> Key | None:
    """Bodies are compared by meaning: as they were understood, not by blanks, order and fields left at their default,
    so that a field that a later version adds changes no key.
    """
    if text is None:
        return None
    given = json.dumps(body.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return Key(text, hashlib.sha256(f"{kind} {given}".encode()).hexdigest())


def to_json(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "cancelling": job.cancelling,
        "attempt": job.attempt,
        "request": job.spec["request"],
        "progress": job.progress,
        "result": job.result,
        "error": job.error,
        "created_at": job.created_at,
        "updated_at": job.updated_at,
    }
