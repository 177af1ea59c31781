"""Which queue belongs to which catalog."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from patchbay.errors import StoreUnavailable
from patchbay_server.jobs.opened import open_queue, queue_place
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.settings import Settings


def test_the_queue_is_in_redis_with_the_catalog(redis_database: str, tmp_path: Path) -> None:
    settings = Settings(base="m", store=tmp_path, store_url=redis_database)
    with closing(open_queue(settings)) as queue, closing(RedisQueue(redis_database)) as same:
        assert isinstance(queue, RedisQueue)
        job, _ = queue.submit("default", "search", {})
        assert same.get("default", job.id) == job
    assert list(tmp_path.iterdir()) == []


def test_else_in_a_file(tmp_path: Path) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'catalog.db'}"
    for settings in (
        Settings(base="m", store=tmp_path / "a"),
        Settings(base="m", store=tmp_path / "b", store_url=elsewhere),
        Settings(base="m", store=tmp_path, store_url="redis://nowhere:1/0", jobs_db=tmp_path / "own.db"),
    ):
        with closing(open_queue(settings)) as queue:
            assert isinstance(queue, SqliteQueue) and settings.jobs_path.is_file()
    assert (tmp_path / "a" / "jobs.db").is_file() and (tmp_path / "own.db").is_file()


def test_a_redis_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer"):
        open_queue(Settings(base="m", store=tmp_path, store_url="redis://127.0.0.1:1/0"))


def test_places_have_no_password(tmp_path: Path) -> None:
    secret = Settings(base="m", store=tmp_path, store_url="rediss://someone:hunter2@cache:6380/0")
    assert queue_place(secret) == "Redis at cache:6380"
    assert queue_place(Settings(base="m", store=tmp_path)) == str(tmp_path)
