"""The queue in one SQLite file: the default, for the processes of one host.

Every change of a worker is one UPDATE that also asks for its owner and generation: a worker whose lease went to another
changes no row, and is told so.
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from patchbay.store.base import Digest, digests_in
from patchbay.store.database import Database
from patchbay_server.jobs.base import (
    FORGOTTEN,
    KEPT_S,
    MAX_LOSSES,
    Clock,
    Event,
    Job,
    Json,
    Key,
    Lease,
    State,
    lost_lease,
    no_job,
    poisoned,
    too_many,
    used_before,
)
from patchbay_server.jobs.migrations import ENDED, SCHEMA
from patchbay_server.jobs.rows import dump, read_job

_OPEN = "state IN ('queued', 'running') AND coalesce(lease_until, 0) <= ?"
_MINE = "id = ? AND state = 'running' AND owner = ? AND generation = ?"


class SqliteQueue(Database):
    """A `JobQueue` in the file `path`, which is made with its folder if it does not exist."""

    def __init__(self, path: Path, clock: Clock = time.time) -> None:
        super().__init__(path, SCHEMA)
        self._db.row_factory = sqlite3.Row
        self._clock = clock

    def submit(
        self, tenant: str, kind: str, spec: Json, key: Key | None = None, most: int | None = None
    ) -> tuple[Job, bool]:
        with self.transaction() as db:
            same = _find_key(db, tenant, key) if key else None
            if same is not None:
                return same, False
            if most is not None and _count_open(db, tenant) >= most:
                raise too_many(tenant, most)
            job, now = uuid.uuid4().hex, self._clock()
            _forget(db, now - KEPT_S)
            text, body_hash = (key.text, key.body_hash) if key else (None, None)
            db.execute(
                """INSERT INTO jobs (id, tenant, kind, spec, state, key, body_hash, created_at, updated_at)
                   VALUES (?,?,?,?,?,?,?,?,?)""",
                (job, tenant, kind, json.dumps(spec), State.QUEUED, text, body_hash, now, now),
            )
            self._tell_state(db, job)
            return _get(db, job), True

    def find_key(self, tenant: str, key: Key) -> Job | None:
        with self.transaction(write=False) as db:
            return _find_key(db, tenant, key)

    def get(self, tenant: str, job: str) -> Job:
        with self.transaction(write=False) as db:
            return _owned(db, tenant, job)

    def list_jobs(self, tenant: str, limit: int) -> list[Job]:
        with self.transaction(write=False) as db:
            return _jobs(db, "tenant = ? ORDER BY number DESC LIMIT ?", tenant, limit)

    def cancel(self, tenant: str, job: str) -> Job:
        with self.transaction() as db:
            found, now = _owned(db, tenant, job), self._clock()
            if found.state is State.QUEUED or (found.state is State.RUNNING and _has_expired(found, now)):
                self._end(db, job, State.CANCELLED)
            elif found.state is State.RUNNING and not found.cancelling:
                db.execute("UPDATE jobs SET cancelling = 1, updated_at = ? WHERE id = ?", (now, job))
                self._tell_state(db, job)
            return _get(db, job)

    def events(self, job: str, after: int, limit: int = 1000) -> list[Event]:
        query = "SELECT number, kind, data FROM events WHERE job = ? AND number > ? ORDER BY number LIMIT ?"
        with self.transaction(write=False) as db:
            rows = db.execute(query, (job, after, limit))
            return [Event(number, kind, json.loads(data)) for number, kind, data in rows]

    def count_states(self) -> dict[State, int]:
        with self.transaction(write=False) as db:
            found = dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in State}

    def running(self) -> list[Job]:
        with self.transaction(write=False) as db:
            return _jobs(db, "state = ? ORDER BY number", State.RUNNING)

    def digests(self) -> set[Digest]:
        with self.transaction(write=False) as db:
            specs = db.execute("SELECT spec FROM jobs WHERE state IN (?, ?)", (State.QUEUED, State.RUNNING))
            return {digest for (spec,) in specs for digest in digests_in(spec)}

    def claim(self, owner: str, seconds: float) -> Job | None:
        if not self._has_open():
            return None  # looked for without the write lock: idle workers must not keep anybody waiting
        with self.transaction() as db:
            while found := _jobs(db, f"{_OPEN} ORDER BY number LIMIT 1", self._clock()):
                job = found[0]
                lost = job.losses + (job.state is State.RUNNING)
                if job.cancelling:
                    self._end(db, job.id, State.CANCELLED)
                elif lost >= MAX_LOSSES:
                    self._end(db, job.id, State.FAILED, error=poisoned())
                else:
                    return self._take(db, job, owner, lost, seconds)
        return None

    def extend(self, lease: Lease, seconds: float) -> bool:
        with self.transaction() as db:
            self._write(db, lease, "lease_until = ?", self._clock() + seconds)
            return _get(db, lease.job).cancelling

    def report(self, lease: Lease, progress: Json) -> None:
        with self.transaction() as db:
            self._write(db, lease, "progress = ?", json.dumps(progress))
            self._tell(db, lease.job, "progress", progress)

    def add_evaluation(self, lease: Lease, number: int, evaluation: Json) -> None:
        with self.transaction() as db:
            # The loss of a worker counts against the job only while it gets nowhere.
            self._write(db, lease, "losses = 0")
            known = db.execute("SELECT count(*) FROM evaluations WHERE job = ?", (lease.job,)).fetchone()[0]
            assert number == known, f"evaluation {number} of {lease.job} follows {known}"
            db.execute("INSERT INTO evaluations VALUES (?,?,?)", (lease.job, number, json.dumps(evaluation)))

    def evaluations(self, job: str) -> list[Json]:
        query = "SELECT evaluation FROM evaluations WHERE job = ? ORDER BY number"
        with self.transaction(write=False) as db:
            return [json.loads(row[0]) for row in db.execute(query, (job,))]

    def finish(self, lease: Lease, state: State, *, result: Json | None = None, error: Json | None = None) -> None:
        assert state.is_final, f"{state} is no end"
        with self.transaction() as db:
            self._write(db, lease, "losses = 0")
            self._end(db, lease.job, state, result=result, error=error)

    def release(self, lease: Lease) -> None:
        with self.transaction() as db:
            self._requeue(db, lease)

    def retry(self, lease: Lease, error: Json, seconds: float) -> None:
        with self.transaction() as db:
            self._write(db, lease, "losses = losses + 1, error = ?", json.dumps(error))
            job = _get(db, lease.job)
            if job.losses >= MAX_LOSSES and not job.cancelling:
                self._end(db, lease.job, State.FAILED, error=error)
            else:
                self._requeue(db, lease, self._clock() + seconds)

    def expire(self, owner: str) -> None:
        with self.transaction() as db:
            db.execute("UPDATE jobs SET lease_until = 0 WHERE state = 'running' AND owner = ?", (owner,))

    def release_owner(self, owner: str) -> None:
        with self.transaction() as db:
            for job in _jobs(db, "state = 'running' AND owner = ?", owner):
                self._requeue(db, Lease(job.id, owner, job.generation))

    def _has_open(self) -> bool:
        with self.transaction(write=False) as db:
            return db.execute(f"SELECT 1 FROM jobs WHERE {_OPEN} LIMIT 1", (self._clock(),)).fetchone() is not None

    def _take(self, db: sqlite3.Connection, job: Job, owner: str, lost: int, seconds: float) -> Job:
        now = self._clock()
        db.execute(
            """UPDATE jobs SET state = 'running', owner = ?, lease_until = ?, losses = ?, error = NULL,
               attempt = attempt + 1, generation = generation + 1, updated_at = ? WHERE id = ?""",
            (owner, now + seconds, lost, now, job.id),
        )
        self._tell_state(db, job.id)
        return _get(db, job.id)

    def _write(self, db: sqlite3.Connection, lease: Lease, assignment: str, *values: str | float) -> None:
        """The one way in which a worker changes its job's row."""
        query = f"UPDATE jobs SET {assignment}, updated_at = ? WHERE {_MINE}"
        done = db.execute(query, (*values, self._clock(), lease.job, lease.owner, lease.generation))
        if done.rowcount != 1:
            raise lost_lease(lease)

    def _requeue(self, db: sqlite3.Connection, lease: Lease, at: float | None = None) -> None:
        self._write(db, lease, "state = 'queued'")
        if _get(db, lease.job).cancelling:
            self._end(db, lease.job, State.CANCELLED)
            return
        db.execute("UPDATE jobs SET owner = NULL, lease_until = ? WHERE id = ?", (at, lease.job))
        self._tell_state(db, lease.job)

    def _end(
        self, db: sqlite3.Connection, job: str, state: State, *, result: Json | None = None, error: Json | None = None
    ) -> None:
        # A new generation, so that a worker which does not know yet is refused by its lease, too.
        db.execute(
            """UPDATE jobs SET state = ?, result = ?, error = ?, owner = NULL, lease_until = NULL, cancelling = 0,
               generation = generation + 1, updated_at = ? WHERE id = ?""",
            (state, dump(result), dump(error), self._clock(), job),
        )
        self._tell_state(db, job)

    def _tell_state(self, db: sqlite3.Connection, job: str) -> None:
        now = _get(db, job)
        data: dict[str, Any] = {"state": now.state, "attempt": now.attempt, "cancelling": now.cancelling}
        self._tell(db, job, "state", data | {"result": now.result, "error": now.error})

    def _tell(self, db: sqlite3.Connection, job: str, kind: str, data: Json) -> None:
        db.execute(
            """INSERT INTO events SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ? FROM events WHERE job = ?""",
            (job, kind, json.dumps(data), self._clock(), job),
        )


def _jobs(db: sqlite3.Connection, condition: str, *values: str | float) -> list[Job]:
    return [read_job(dict(row)) for row in db.execute(f"SELECT * FROM jobs WHERE {condition}", values)]


def _get(db: sqlite3.Connection, job: str) -> Job:
    return _jobs(db, "id = ?", job)[0]


def _owned(db: sqlite3.Connection, tenant: str, job: str) -> Job:
    # Text that is no id may not even be encodable, so it never reaches the database.
    found = _jobs(db, "id = ? AND tenant = ?", job, tenant) if job.isascii() else []
    if not found:
        raise no_job(job)
    return found[0]


def _find_key(db: sqlite3.Connection, tenant: str, key: Key) -> Job | None:
    row = db.execute("SELECT * FROM jobs WHERE tenant = ? AND key = ?", (tenant, key.text)).fetchone()
    if row is None:
        return None
    if row["body_hash"] != key.body_hash:
        raise used_before(key)
    return read_job(dict(row))


def _count_open(db: sqlite3.Connection, tenant: str) -> int:
    query = "SELECT count(*) FROM jobs WHERE tenant = ? AND state IN ('queued', 'running')"
    count: int = db.execute(query, (tenant,)).fetchone()[0]
    return count


def _has_expired(job: Job, now: float) -> bool:
    return job.lease_until is not None and job.lease_until <= now


def _forget(db: sqlite3.Connection, before: float) -> None:
    """Jobs that were over by then."""
    query = f"SELECT id FROM jobs WHERE {ENDED} AND updated_at <= ? ORDER BY updated_at LIMIT ?"
    for (job,) in db.execute(query, (before, FORGOTTEN)).fetchall():
        for table, column in (("events", "job"), ("evaluations", "job"), ("jobs", "id")):
            db.execute(f"DELETE FROM {table} WHERE {column} = ?", (job,))
