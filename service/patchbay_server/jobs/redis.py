"""The queue in Redis, for the processes of several hosts: Redis 6.2 or newer, or Valkey.

All keys carry the catalog's hash tag, so that they share a slot and every change is one Lua script: all of it, or
nothing. A job is in the one set that its state names.
    {prefix}:jobs:schema                        the layout's number, below
    {prefix}:jobs:number                        how many jobs there were
    {prefix}:jobs:queued, :running              ids, scored by number
    {prefix}:jobs:done, :failed, :cancelled     ids, scored by when that was
    {prefix}:jobs:of:TENANT                     ids of all its jobs, scored by number
    {prefix}:jobs:open:TENANT                   ids of those that are queued or running
    {prefix}:jobs:keys:TENANT                   Idempotency-Key -> id
    {prefix}:jobs:job:ID                        the job's fields, `rows.py`; its `number`, `key` and `body_hash`
    {prefix}:jobs:events:ID                     a list of `KIND JSON`, the first is number 1
    {prefix}:jobs:evaluations:ID                a list of JSON
Knows no handlers, and nothing of the catalog beside it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

import redis

from patchbay.store.base import Digest, digests_in
from patchbay_server.jobs import scripts
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
from patchbay_server.jobs.rows import dump, read_job
from patchbay_server.stores.connection import RedisServer

SCHEMA = 1


class RedisQueue:
    """A `JobQueue` at `redis://` or `rediss://`; `client` replaces the one that would be made from `url`.

    Reads are asked again for a second, changes are sent once: `connection.py` says why. The time is the server's;
    `clock` replaces it in tests. Durable as far as the server is, as in `RedisCatalog`.
    """

    def __init__(
        self, url: str, prefix: str = "patchbay", *, client: redis.Redis | None = None, clock: Clock | None = None
    ) -> None:
        self._server = RedisServer(url, "the queue of jobs", text=True, client=client)
        self._client = self._server.client
        self._root, self._clock = f"{{{prefix}}}:jobs", clock
        self._scripts: dict[str, Any] = {}
        try:
            self._server.refuse_eviction()
            self._server.check_schema(self._key("schema"), SCHEMA, "queue of jobs")
        except BaseException:
            self.close()
            raise

    def submit(
        self, tenant: str, kind: str, spec: Json, key: Key | None = None, most: int | None = None
    ) -> tuple[Job, bool]:
        text, body_hash = (key.text, key.body_hash) if key else ("", "")
        limit = "" if most is None else most
        args = [tenant, uuid.uuid4().hex, kind, json.dumps(spec), text, body_hash, limit, KEPT_S, FORGOTTEN]
        status, row = self._change(scripts.SUBMIT, *args)
        if status == "too many":
            assert most is not None
            raise too_many(tenant, most)
        if status == "known":
            assert key is not None
            return _made_by(key, row), False
        return _job(row), True

    def find_key(self, tenant: str, key: Key) -> Job | None:
        row = self._ask(scripts.FIND_KEY, tenant, key.text)
        return _made_by(key, row) if row else None

    def get(self, tenant: str, job: str) -> Job:
        # Text that is no id may not even be encodable, so it never reaches the server.
        found = self._server.ask(self._client.hgetall, self._key("job", job)) if job.isascii() else {}
        if not found or found["tenant"] != tenant:
            raise no_job(job)
        return read_job(found)

    def list_jobs(self, tenant: str, limit: int) -> list[Job]:
        return [_job(row) for row in self._ask(scripts.LIST, tenant, limit)]

    def cancel(self, tenant: str, job: str) -> Job:
        row = self._change(scripts.CANCEL, tenant, job) if job.isascii() else []
        if not row:
            raise no_job(job)
        return _job(row)

    def events(self, job: str, after: int, limit: int = 1000) -> list[Event]:
        texts = self._server.ask(self._client.lrange, self._key("events", job), after, after + limit - 1)
        return [_event(number, text) for number, text in enumerate(texts, after + 1)]

    def count_states(self) -> dict[State, int]:
        return dict(zip(State, self._ask(scripts.COUNT, *State), strict=True))

    def running(self) -> list[Job]:
        return [_job(row) for row in self._ask(scripts.RUNNING)]

    def digests(self) -> set[Digest]:
        return {digest for spec in self._ask(scripts.SPECS) for digest in digests_in(spec)}

    def claim(self, owner: str, seconds: float) -> Job | None:
        row = self._change(scripts.CLAIM, owner, seconds, MAX_LOSSES, json.dumps(poisoned()))
        return _job(row) if row else None

    def extend(self, lease: Lease, seconds: float) -> bool:
        return bool(self._write(lease, scripts.EXTEND, seconds))

    def report(self, lease: Lease, progress: Json) -> None:
        self._write(lease, scripts.REPORT, json.dumps(progress))

    def add_evaluation(self, lease: Lease, number: int, evaluation: Json) -> None:
        known = self._write(lease, scripts.ADD_EVALUATION, number, json.dumps(evaluation))
        assert number == known, f"evaluation {number} of {lease.job} follows {known}"

    def evaluations(self, job: str) -> list[Json]:
        texts = self._server.ask(self._client.lrange, self._key("evaluations", job), 0, -1)
        return [json.loads(text) for text in texts]

    def finish(self, lease: Lease, state: State, *, result: Json | None = None, error: Json | None = None) -> None:
        assert state.is_final, f"{state} is no end"
        self._write(lease, scripts.FINISH, state, dump(result) or "", dump(error) or "")

    def release(self, lease: Lease) -> None:
        self._write(lease, scripts.RELEASE)

    def retry(self, lease: Lease, error: Json, seconds: float) -> None:
        self._write(lease, scripts.RETRY, json.dumps(error), seconds, MAX_LOSSES)

    def expire(self, owner: str) -> None:
        self._change(scripts.EXPIRE, owner)

    def release_owner(self, owner: str) -> None:
        self._change(scripts.RELEASE_OWNER, owner)

    def close(self) -> None:
        self._server.close()

    def _write(self, lease: Lease, script: str, *args: str | float) -> Any:
        """The one way in which a worker changes its job. Raises LeaseLost."""
        answer = self._change(script, lease.job, lease.owner, lease.generation, *args)
        if answer == "lost":
            raise lost_lease(lease)
        return answer

    def _change(self, script: str, *args: str | float) -> Any:
        return self._server.change(self._script(script), keys=[self._root], args=[self._now(), *args])

    def _ask(self, script: str, *args: str | float) -> Any:
        return self._server.ask(self._script(script), keys=[self._root], args=[self._now(), *args])

    def _script(self, script: str) -> Any:
        if script not in self._scripts:
            self._scripts[script] = self._client.register_script(script)
        return self._scripts[script]

    def _now(self) -> str:
        return "" if self._clock is None else repr(self._clock())

    def _key(self, *parts: str) -> str:
        return ":".join((self._root, *parts))


def _job(row: Sequence[str]) -> Job:
    """Of names and values in turn, as scripts give them."""
    return read_job(_fields(row))


def _fields(row: Sequence[str]) -> dict[str, str]:
    return dict(zip(row[::2], row[1::2], strict=True))


def _made_by(key: Key, row: Sequence[str]) -> Job:
    """Raises IdempotencyConflict where the key came with another body."""
    fields = _fields(row)
    if fields["body_hash"] != key.body_hash:
        raise used_before(key)
    return read_job(fields)


def _event(number: int, text: str) -> Event:
    kind, _, data = text.partition(" ")
    return Event(number, kind, json.loads(data))
