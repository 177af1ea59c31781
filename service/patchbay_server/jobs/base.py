"""The queue's contract: what a job is, who may change it, and what every queue promises.

Knows no database, no HTTP, and never looks inside a spec, a progress or a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from patchbay.errors import NotFound, PatchbayError
from patchbay.store.base import Digest
from patchbay_server.limits import LimitReached

Json = Mapping[str, Any]
Clock = Callable[[], float]
"""Unix seconds. Leases are compared between processes, so it is the wall's clock and not a process's own."""

MAX_LOSSES = 3
"""Workers that one job may lose in a row, without a new evaluation in between, before it is given up."""

KEPT_S = 7 * 86_400.0
"""How long a job that is over is kept: its result, its history and its Idempotency-Key."""

FORGOTTEN = 100
"""So many that were kept long enough go when a new one comes: more than come, and no long wait for whoever sends it."""

RETRY_S = 10
"""Seconds after which it may be worth while to ask again for a job that was one too many."""


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class IdempotencyConflict(PatchbayError):
    """An Idempotency-Key that came with another body before."""

    code = "idempotency_conflict"


class WorkerLost(PatchbayError):
    """A job's workers died, again and again; what its `error` says then."""

    code = "worker_lost"


class LeaseLost(Exception):
    """The job is another worker's by now, or has ended: whoever asked may change nothing of it any more."""


@dataclass(frozen=True, slots=True)
class Job:
    """One row. Times are unix seconds. `attempt` counts claims; `losses` the workers lost since the last evaluation.

    `generation` grows with every claim and every end: with `owner` it says whose writes are taken. A queued job with a
    `lease_until` is not taken before then; `error` is then that of the attempt before.
    """

    id: str
    tenant: str
    kind: str
    spec: Json
    state: State
    attempt: int
    losses: int
    generation: int
    owner: str | None
    lease_until: float | None
    cancelling: bool
    progress: Json | None
    result: Json | None
    error: Json | None
    created_at: float
    updated_at: float


@dataclass(frozen=True, slots=True)
class Lease:
    """What a worker shows with every write: the job is its own as long as owner and generation are the row's."""

    job: str
    owner: str
    generation: int


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a job's history. `number` counts 1, 2, 3 ... within the job."""

    number: int
    kind: str
    data: Json


@dataclass(frozen=True, slots=True)
class Key:
    """An Idempotency-Key and the sha256 of the body that came with it."""

    text: str
    body_hash: str


class JobQueue(Protocol):
    """Jobs in order of submission. Thread-safe; every call is atomic. Any call may raise StoreUnavailable, StoreFull.

    A change that raised StoreUnavailable may have been made: its answer was lost. Jobs that have been over for KEPT_S
    are forgotten, FORGOTTEN of them with every new one.

    Methods that take a lease raise LeaseLost, and change nothing, unless the job is running under just this owner and
    generation.
    """

    def submit(
        self, tenant: str, kind: str, spec: Json, key: Key | None = None, most: int | None = None
    ) -> tuple[Job, bool]:
        """(job, created). The same key and body again: the job they made. Raises IdempotencyConflict, and LimitReached
        where the tenant has `most` jobs that are queued or running.
        """

    def find_key(self, tenant: str, key: Key) -> Job | None:
        """The job that this key has made. Raises IdempotencyConflict where its body was another."""

    def get(self, tenant: str, job: str) -> Job:
        """Raises NotFound."""

    def list_jobs(self, tenant: str, limit: int) -> list[Job]:
        """The newest first."""

    def cancel(self, tenant: str, job: str) -> Job:
        """A job that nobody runs is cancelled at once; a running one when its worker next looks. Raises NotFound."""

    def events(self, job: str, after: int, limit: int = 1000) -> list[Event]:
        """Those with a greater number, oldest first."""

    def count_states(self) -> dict[State, int]: ...

    def running(self) -> list[Job]:
        """Of all tenants, the oldest first. They are no more than workers, and those that were lost."""

    def claim(self, owner: str, seconds: float) -> Job | None:
        """The oldest job that is queued, or whose lease has run out, now running under this owner, without an error.

        A job whose workers were lost MAX_LOSSES times in a row fails instead; one that was to be cancelled, is.
        """

    def extend(self, lease: Lease, seconds: float) -> bool:
        """The lease runs from now on. True: the job is to be cancelled."""

    def report(self, lease: Lease, progress: Json) -> None: ...

    def add_evaluation(self, lease: Lease, number: int, evaluation: Json) -> None:
        """`number` counts 0, 1, 2 ...: what a search has found out so far is its checkpoint."""

    def evaluations(self, job: str) -> list[Json]: ...

    def finish(self, lease: Lease, state: State, *, result: Json | None = None, error: Json | None = None) -> None: ...

    def release(self, lease: Lease) -> None:
        """Back to queued: the worker is told to end, and that is not the job's fault."""

    def retry(self, lease: Lease, error: Json, seconds: float) -> None:
        """The attempt came to nothing, and the next may not: queued again, to be taken after so many seconds.

        It counts as a lost worker: after MAX_LOSSES in a row the job fails with this error.
        """

    def expire(self, owner: str) -> None:
        """The leases of a worker that is known to be dead run out now."""

    def release_owner(self, owner: str) -> None:
        """`release` for a worker that was killed on purpose."""

    def digests(self) -> set[Digest]:
        """Of all blobs that jobs name which are not over."""

    def close(self) -> None: ...


def lease_of(job: Job) -> Lease:
    """Of a job as `claim` gave it."""
    assert job.owner is not None, "only a running job has an owner"
    return Lease(job.id, job.owner, job.generation)


def too_many(tenant: str, most: int) -> LimitReached:
    return LimitReached(
        f"{tenant!r} may have {most:,} jobs queued or running, and has: ask again when one has ended, or cancel one",
        param="max_jobs",
        quota=most,
        left=0,
        policy='qu="jobs"',
        retry_s=RETRY_S,
    )


def no_job(job: str) -> NotFound:
    return NotFound(f"there is no job {job[:64]!r}", param="job")


def used_before(key: Key) -> IdempotencyConflict:
    return IdempotencyConflict(
        f"the Idempotency-Key {key.text!r} came with another body before: choose a new key for a new request",
        param="idempotency-key",
    )


def lost_lease(lease: Lease) -> LeaseLost:
    return LeaseLost(f"job {lease.job} is no longer run by {lease.owner} (generation {lease.generation})")


def poisoned() -> Json:
    """The error of a job whose workers died and could not say of what."""
    error = WorkerLost(
        f"{MAX_LOSSES} workers in a row ended while they ran this job: killed, out of memory or crashed; their log may "
        "say more"
    )
    return {"message": error.message, "type": "server_error", "param": None, "code": error.code}


def best_score(evaluations: Sequence[Json]) -> float | None:
    """The highest finite score."""
    finite = [e["score"] for e in evaluations if abs(e["score"]) != float("inf") and e["score"] == e["score"]]
    return max(finite, default=None)
