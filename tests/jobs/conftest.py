from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.jobs.clocks import Clock
from tests.jobs.queues import Place, new_place
from tests.store.backends import KINDS
from tests.store.redis_server import redis_database, redis_url
from tests.stores.moto_server import new_bucket, s3_endpoint

from patchbay_server.jobs.base import JobQueue

__all__ = ["new_bucket", "redis_database", "redis_url", "s3_endpoint"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> str | None:
    """The URL of the real server, started only for the queue that wants it."""
    return request.getfixturevalue("redis_url") if kind == "redis" else None


@pytest.fixture
def place(kind: str, server: str | None, clock: Clock) -> Iterator[Place]:
    with new_place(kind, server, clock) as place:
        yield place


@pytest.fixture
def queue(place: Place) -> JobQueue:
    return place()
