"""The queues under test. A `Place` is one empty place; calling it opens one more queue on that place."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import fakeredis
from tests.store.backends import fake_client

from patchbay_server.jobs.base import Clock, JobQueue
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.jobs.sqlite import SqliteQueue

Place = Callable[[], JobQueue]


@contextmanager
def new_place(kind: str, redis_url: str | None, clock: Clock) -> Iterator[Place]:
    with ExitStack() as opened:
        make = _maker(kind, redis_url, clock, opened)

        def open_one() -> JobQueue:
            queue = make()
            opened.callback(queue.close)
            return queue

        yield open_one


def _maker(kind: str, redis_url: str | None, clock: Clock, opened: ExitStack) -> Place:
    if kind == "sqlite":
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        return lambda: SqliteQueue(folder / "jobs.db", clock)
    if kind == "fakeredis":
        server = fakeredis.FakeServer()
        return lambda: RedisQueue("redis://fake", client=fake_client(server), clock=clock)
    assert redis_url is not None
    prefix = uuid.uuid4().hex
    return lambda: RedisQueue(redis_url, prefix, clock=clock)
