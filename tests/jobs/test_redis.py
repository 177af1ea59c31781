"""What only the queue in Redis can meet: the server's clock, its keys, its memory, and answers that are lost."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Thread

import pytest
import redis
from tests.jobs.searching import search
from tests.store.redis_server import running_redis
from tests.stores.faulty import FAULTS, Fault, Proxy, faulty
from tests.waiting import until

from patchbay.errors import StoreFull, StoreUnavailable
from patchbay_server.jobs import redis as redis_queue
from patchbay_server.jobs import worker
from patchbay_server.jobs.base import Job, JobQueue, Key, LeaseLost, State, lease_of
from patchbay_server.jobs.redis import RedisQueue
from patchbay_server.jobs.worker import Worker
from patchbay_server.stores import RedisCatalog, connection

T = "default"
FOR_GOOD_S = 1e6
SPEC = {"seed": 3, "budget": 20, "work": 0}


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def straight(redis_url: str, prefix: str) -> Iterator[RedisQueue]:
    with closing(RedisQueue(redis_url, prefix)) as queue:
        # The server has seen each script: the one answer that a proxy then loses is that of the change.
        queue.submit(T, "search", SPEC)
        Worker(queue, "first", lambda: {"search": search}).run_one()
        yield queue


@pytest.fixture
def proxy(redis_url: str) -> Iterator[Proxy]:
    with faulty(redis_url) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy: Proxy, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisQueue]:
    """The same queue by way of the proxy."""
    monkeypatch.setattr(connection, "RETRY_S", 0.2)
    with closing(RedisQueue(proxy.redis_url, prefix)) as queue:
        yield queue


def claim(queue: JobQueue, seconds: float = FOR_GOOD_S) -> Job:
    job = queue.claim("ann", seconds)
    assert job is not None
    return job


def test_leases_run_by_the_servers_clock(straight: RedisQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose clock is wrong takes nothing from others, and keeps nothing."""
    job, _ = straight.submit(T, "search", {})
    claim(straight, 60)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert straight.claim("bob", 60) is None
    straight.release_owner("ann")
    claim(straight, 0.05)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    until(lambda: straight.claim("bob", 60))
    assert straight.get(T, job.id).losses == 1 and job.created_at > 1.7e9


def test_every_key_carries_the_catalogs_hash_tag(redis_url: str, prefix: str) -> None:
    with closing(RedisQueue(redis_url, prefix)) as queue, closing(RedisCatalog(redis_url, prefix)):
        queue.submit(T, "search", SPEC, Key("k", "hash"))
        Worker(queue, "ann", lambda: {"search": search}).run_one()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        keys = [key.split(":") for key in client.scan_iter(f"*{prefix}*")]
    assert {key[0] for key in keys} == {f"{{{prefix}}}"}
    kinds = {key[2] for key in keys if key[1] == "jobs"}
    assert kinds == {"schema", "number", "done", "of", "keys", "job", "events", "evaluations"}


def test_a_newer_schema_is_refused(redis_url: str, prefix: str, straight: RedisQueue) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{{{prefix}}}:jobs:schema", redis_queue.SCHEMA + 1)
    with pytest.raises(StoreUnavailable, match="queue of jobs at .* has schema 2 and this Patchbay knows 1"):
        RedisQueue(redis_url, prefix)


def test_a_full_server_refuses_whole_changes_and_still_ends_jobs() -> None:
    with running_redis() as url, closing(RedisQueue(url)) as queue, redis.Redis.from_url(url) as client:
        waiting, _ = queue.submit(T, "search", {})
        queue.submit(T, "search", {})
        running = claim(queue)
        before = queue.list_jobs(T, 10), queue.events(running.id, 0), queue.evaluations(running.id)
        client.config_set("maxmemory", 1)
        for change in (
            lambda: queue.submit(T, "search", {}),
            lambda: queue.report(lease_of(running), {}),
            lambda: queue.add_evaluation(lease_of(running), 0, {}),
            lambda: queue.extend(lease_of(running), 1),
        ):
            with pytest.raises(StoreFull, match="is at its maxmemory"):
                change()
        assert (queue.list_jobs(T, 10), queue.events(running.id, 0), queue.evaluations(running.id)) == before
        assert queue.cancel(T, queue.list_jobs(T, 1)[0].id).state is State.CANCELLED
        assert waiting.id == running.id


def test_a_lost_answer_is_unavailable_and_the_change_is_made_once(
    straight: RedisQueue, behind: RedisQueue, proxy: Proxy
) -> None:
    straight.submit(T, "search", {})
    lease = lease_of(claim(straight))
    proxy.inject(FAULTS["a reset before the answer"])
    with pytest.raises(StoreUnavailable, match="does not answer"):
        behind.add_evaluation(lease, 0, {"score": 1.0})
    assert proxy.hits == 1 and behind.evaluations(lease.job) == [{"score": 1.0}]
    proxy.inject(FAULTS["a reset before the answer"])
    with pytest.raises(StoreUnavailable):
        behind.finish(lease, State.DONE)
    assert straight.get(T, lease.job).state is State.DONE
    with pytest.raises(LeaseLost):
        behind.finish(lease, State.DONE)


@contextmanager
def working(queue: JobQueue, lease_s: float = FOR_GOOD_S) -> Iterator[Worker]:
    worker = Worker(queue, "ann", lambda: {"search": search}, lease_s)
    thread = Thread(target=worker.run_forever)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE_S", "POLL_S"):
        monkeypatch.setattr(worker, name, 0.01)


@pytest.mark.usefixtures("_quick")
def test_a_claim_whose_answer_was_lost_goes_back_at_once(
    straight: RedisQueue, behind: RedisQueue, proxy: Proxy
) -> None:
    """Nobody knows that it is run, and its lease would last for days."""
    job, _ = straight.submit(T, "search", SPEC)
    proxy.inject(FAULTS["a reset before the answer"])
    with working(behind):
        until(lambda: straight.get(T, job.id).state.is_final)
    done = straight.get(T, job.id)
    assert proxy.hits == 1 and (done.state, done.attempt, done.losses) == (State.DONE, 2, 0)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("fault", [Fault("refuse"), Fault("reset"), Fault("mute")])
def test_a_worker_outlives_its_queue_and_goes_on(
    straight: RedisQueue, proxy: Proxy, prefix: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRY_S", 0.1)
    job, _ = straight.submit(T, "search", SPEC | {"budget": 300, "work": 500})
    limits = "socket_timeout=0.1&socket_connect_timeout=0.1"
    with closing(RedisQueue(f"{proxy.redis_url}?{limits}", prefix)) as queue, working(queue):
        until(lambda: len(straight.evaluations(job.id)) > 5)
        proxy.inject(fault)
        time.sleep(0.3)
        known = len(straight.evaluations(job.id))
        assert straight.get(T, job.id).state is State.RUNNING and known < 300
        proxy.inject(None)
        until(lambda: straight.get(T, job.id).state.is_final)
    done = straight.get(T, job.id)
    assert (done.state, done.attempt, done.losses) == (State.DONE, 2, 0)
    assert len(straight.evaluations(job.id)) == 300
