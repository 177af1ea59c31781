"""The server's worker processes: watched, started again, ended."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from tests.waiting import until

from patchbay_server.jobs import supervisor
from patchbay_server.jobs.base import JobQueue, State
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.jobs.supervisor import Workers
from patchbay_server.jobs.worker import NICE
from patchbay_server.settings import Settings

A_LONG_WAIT_S = 60.0
T = "default"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """No base: a worker without a job does not look at it."""
    return Settings(base="nowhere", store=tmp_path, workers=2, api_key="x" * 16, host="0.0.0.0")


@pytest.fixture
def queue(settings: Settings) -> Iterator[SqliteQueue]:
    with closing(SqliteQueue(settings.jobs_path)) as queue:
        yield queue


@contextmanager
def started(settings: Settings, queue: JobQueue) -> Iterator[Workers]:
    workers = Workers(settings, queue)
    workers.start()
    try:
        yield workers
    finally:
        workers.stop()


def works(process: int) -> bool:
    """It has come to its loop: it has made itself nice."""
    try:
        return os.getpriority(os.PRIO_PROCESS, process) >= NICE
    except ProcessLookupError:
        return False


def all_work(workers: Workers, count: int) -> bool:
    return len(workers.pids) == count and all(map(works, workers.pids))


def test_a_worker_that_dies_is_replaced_and_all_end_with_the_server(settings: Settings, queue: SqliteQueue) -> None:
    with started(settings, queue) as workers:
        until(lambda: all_work(workers, 2))
        dead, other = workers.pids
        os.kill(dead, signal.SIGKILL)
        until(lambda: dead not in workers.pids and all_work(workers, 2))
        assert other in workers.pids
        last = workers.pids
    assert not any(map(works, last))


def test_the_lease_of_a_dead_worker_runs_out_at_once(
    settings: Settings, queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", A_LONG_WAIT_S)  # nobody takes the job meanwhile
    with started(settings.model_copy(update={"workers": 1}), queue) as workers:
        until(lambda: all_work(workers, 1))
        job, _ = queue.submit(T, "compression", {"request": {}})
        until(lambda: queue.get(T, job.id).state is State.RUNNING)
        os.kill(workers.pids[0], signal.SIGKILL)
        until(lambda: queue.get(T, job.id).lease_until == 0.0)


def test_nobody_is_started_for_none(settings: Settings, queue: SqliteQueue) -> None:
    with started(settings.model_copy(update={"workers": 0}), queue) as workers:
        assert workers.pids == []


def test_a_worker_that_cannot_start_is_tried_again(
    settings: Settings, queue: SqliteQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE_S", 0.01)
    broken = settings.model_copy(update={"workers": 1, "jobs_db": tmp_path})
    seen: set[int] = set()

    def has_a_second() -> bool:
        seen.update(workers.pids)
        return len(seen) > 1

    with started(broken, queue) as workers:
        until(has_a_second)
