"""What every queue promises, and that a worker which lost its lease can change nothing."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.jobs.clocks import Clock
from tests.jobs.queues import Place

from patchbay.errors import NotFound, StoreUnavailable
from patchbay_server.jobs import redis as redis_queue
from patchbay_server.jobs import sqlite as sqlite_queue
from patchbay_server.jobs.base import (
    KEPT_S,
    MAX_LOSSES,
    IdempotencyConflict,
    Job,
    JobQueue,
    Key,
    LeaseLost,
    State,
    lease_of,
)
from patchbay_server.jobs.sqlite import SqliteQueue
from patchbay_server.limits import LimitReached

LEASE_S = 30.0
T = "default"


def submit(queue: JobQueue, number: int = 0, key: Key | None = None) -> Job:
    return queue.submit(T, "search", {"number": number}, key)[0]


def claim(queue: JobQueue, owner: str = "ann") -> Job:
    job = queue.claim(owner, LEASE_S)
    assert job is not None
    return job


def states(queue: JobQueue, job: str) -> list[str]:
    return [event.data["state"] for event in queue.events(job, 0) if event.kind == "state"]


def test_a_job_from_its_beginning_to_its_end(queue: JobQueue, clock: Clock) -> None:
    job = submit(queue, 7)
    assert (job.state, job.attempt, job.spec, job.created_at) == (State.QUEUED, 0, {"number": 7}, clock.now)
    taken = claim(queue)
    assert (taken.id, taken.state, taken.attempt, taken.owner) == (job.id, State.RUNNING, 1, "ann")
    assert taken.lease_until == clock.now + LEASE_S
    queue.report(lease_of(taken), {"done": 1})
    clock.pass_by(1)
    queue.finish(lease_of(taken), State.DONE, result={"answer": 42})
    done = queue.get(T, job.id)
    assert (done.state, done.result, done.progress, done.owner) == (State.DONE, {"answer": 42}, {"done": 1}, None)
    assert done.updated_at == clock.now
    events = queue.events(job.id, 0)
    assert [event.number for event in events] == [1, 2, 3, 4]
    assert states(queue, job.id) == ["queued", "running", "done"]
    assert events[-1].data["result"] == {"answer": 42} and events[2].data == {"done": 1}
    assert queue.events(job.id, 2) == events[2:] and queue.events(job.id, 1, limit=2) == events[1:3]


def test_the_oldest_first_and_each_to_one_worker(queue: JobQueue) -> None:
    jobs = [submit(queue, number).id for number in range(3)]
    assert [claim(queue, owner).id for owner in ("ann", "bob", "cid")] == jobs
    assert queue.claim("dan", LEASE_S) is None
    assert [job.id for job in queue.list_jobs(T, 2)] == jobs[:0:-1]


def test_those_that_run_whoever_they_are_of(queue: JobQueue) -> None:
    jobs = [queue.submit(tenant, "search", {})[0].id for tenant in ("ann", "bob", "cid")]
    assert queue.running() == []
    first = claim(queue)
    claim(queue)
    assert [job.id for job in queue.running()] == jobs[:2]
    queue.finish(lease_of(first), State.DONE)
    assert [job.id for job in queue.running()] == jobs[1:2]


def test_many_threads_and_two_connections_share_the_jobs_out(place: Place) -> None:
    queue, other = place(), place()
    jobs = {submit(queue, number).id for number in range(12)}
    taken: list[str] = []

    def take(mine: JobQueue, owner: str) -> None:
        while (job := mine.claim(owner, LEASE_S)) is not None:
            taken.append(job.id)

    threads = [threading.Thread(target=take, args=[mine, f"{n}"]) for n, mine in enumerate((queue, other) * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted(jobs)


def test_a_lease_that_ran_out_goes_to_the_next(queue: JobQueue, clock: Clock) -> None:
    job = submit(queue)
    first = claim(queue, "ann")
    clock.pass_by(LEASE_S - 1)
    assert queue.extend(lease_of(first), LEASE_S) is False
    clock.pass_by(LEASE_S - 1)
    assert queue.claim("bob", LEASE_S) is None
    clock.pass_by(1)
    second = claim(queue, "bob")
    assert (second.id, second.attempt, second.losses) == (job.id, 2, 1)
    assert second.generation > first.generation


Write = Callable[[JobQueue, Job], object]
WRITES: dict[str, Write] = {
    "extend": lambda queue, job: queue.extend(lease_of(job), LEASE_S),
    "report": lambda queue, job: queue.report(lease_of(job), {"stale": True}),
    "add_evaluation": lambda queue, job: queue.add_evaluation(lease_of(job), 0, {"point": [0.0], "score": 9.0}),
    "finish": lambda queue, job: queue.finish(lease_of(job), State.DONE, result={"stale": True}),
    "release": lambda queue, job: queue.release(lease_of(job)),
    "retry": lambda queue, job: queue.retry(lease_of(job), {"stale": True}, 0),
}
ENDS: dict[str, Callable[[JobQueue, Job, Clock], object]] = {
    "taken by another": lambda queue, job, clock: (clock.pass_by(LEASE_S), claim(queue, "bob")),
    "taken by the same owner again": lambda queue, job, clock: (clock.pass_by(LEASE_S), claim(queue, "ann")),
    "released": lambda queue, job, clock: queue.release(lease_of(job)),
    "done": lambda queue, job, clock: queue.finish(lease_of(job), State.DONE),
    "cancelled": lambda queue, job, clock: (clock.pass_by(LEASE_S), queue.cancel(T, job.id)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_lost_its_lease_changes_nothing(queue: JobQueue, clock: Clock, write: str, end: str) -> None:
    submit(queue)
    stale = claim(queue, "ann")
    ENDS[end](queue, stale, clock)
    before = queue.get(T, stale.id), queue.events(stale.id, 0), queue.evaluations(stale.id)
    clock.pass_by(1)
    with pytest.raises(LeaseLost):
        WRITES[write](queue, stale)
    assert (queue.get(T, stale.id), queue.events(stale.id, 0), queue.evaluations(stale.id)) == before


def test_a_job_that_kills_its_workers_is_given_up(queue: JobQueue, clock: Clock) -> None:
    job = submit(queue)
    for _ in range(MAX_LOSSES):
        claim(queue)
        clock.pass_by(LEASE_S)
    assert queue.claim("ann", LEASE_S) is None
    failed = queue.get(T, job.id)
    assert failed.state is State.FAILED and failed.attempt == MAX_LOSSES
    assert failed.error is not None and failed.error["code"] == "worker_lost"


def test_a_job_that_gets_somewhere_may_lose_any_number(queue: JobQueue, clock: Clock) -> None:
    submit(queue)
    for number in range(3 * MAX_LOSSES):
        taken = claim(queue)
        queue.add_evaluation(lease_of(taken), number, {"point": [1.0], "score": float(number)})
        clock.pass_by(LEASE_S)
    assert claim(queue).losses == 1


def test_an_attempt_that_failed_is_made_again_after_a_while(queue: JobQueue, clock: Clock) -> None:
    job, later = submit(queue, 1), submit(queue, 2)
    queue.retry(lease_of(claim(queue)), {"code": "away"}, 60)
    waiting = queue.get(T, job.id)
    assert (waiting.state, waiting.owner, waiting.losses, waiting.error) == (State.QUEUED, None, 1, {"code": "away"})
    assert claim(queue).id == later.id  # others do not wait for it
    clock.pass_by(59)
    assert queue.claim("ann", LEASE_S) is not None  # the lease of the other one has run out
    assert queue.claim("ann", LEASE_S) is None
    clock.pass_by(1)
    again = claim(queue)
    assert (again.id, again.attempt, again.losses, again.error) == (job.id, 2, 1, None)


def test_a_job_that_always_fails_ends_with_its_last_error(queue: JobQueue, clock: Clock) -> None:
    job = submit(queue)
    for number in range(MAX_LOSSES):
        assert queue.get(T, job.id).state is State.QUEUED
        queue.retry(lease_of(claim(queue)), {"number": number}, 0)
    failed = queue.get(T, job.id)
    assert (failed.state, failed.error, failed.attempt) == (State.FAILED, {"number": MAX_LOSSES - 1}, MAX_LOSSES)
    assert queue.claim("ann", LEASE_S) is None


def test_a_failure_and_a_killed_worker_count_alike(queue: JobQueue, clock: Clock) -> None:
    job = submit(queue)
    queue.retry(lease_of(claim(queue)), {"code": "away"}, 0)
    for _ in range(MAX_LOSSES - 1):
        claim(queue)
        clock.pass_by(LEASE_S)
    assert queue.claim("ann", LEASE_S) is None
    failed = queue.get(T, job.id)
    assert failed.error is not None and failed.error["code"] == "worker_lost"  # what was last


def test_what_was_cancelled_meanwhile_is_not_tried_again(queue: JobQueue) -> None:
    job = submit(queue)
    for _ in range(MAX_LOSSES - 1):
        queue.retry(lease_of(claim(queue)), {}, 0)
    taken = claim(queue)
    queue.cancel(T, job.id)
    queue.retry(lease_of(taken), {"code": "away"}, 60)
    cancelled = queue.get(T, job.id)
    assert (cancelled.state, cancelled.error, cancelled.lease_until) == (State.CANCELLED, None, None)


def test_a_waiting_job_is_cancelled_at_once(queue: JobQueue) -> None:
    job = submit(queue)
    queue.retry(lease_of(claim(queue)), {"code": "away"}, 60)
    assert queue.cancel(T, job.id).state is State.CANCELLED


def test_as_many_as_the_tenant_may_have(queue: JobQueue) -> None:
    key = Key("k", "hash")
    first, _ = queue.submit(T, "search", {}, key, most=2)
    queue.submit(T, "search", {}, most=2)
    with pytest.raises(LimitReached, match="2 jobs queued or running"):
        queue.submit(T, "search", {}, most=2)
    assert queue.submit(T, "search", {}, key, most=2) == (first, False)
    queue.submit("other", "search", {}, most=1)
    queue.cancel(T, first.id)
    queue.submit(T, "search", {}, most=2)
    assert queue.count_states()[State.QUEUED] == 3


def test_what_was_over_long_ago_is_forgotten(queue: JobQueue, clock: Clock) -> None:
    key = Key("k", "hash")
    old, _ = queue.submit(T, "search", {}, key)
    queue.add_evaluation(lease_of(claim(queue)), 0, {"point": [], "score": 1.0})
    running = submit(queue)
    queue.finish(lease_of(queue.get(T, old.id)), State.DONE)
    claim(queue)
    clock.pass_by(KEPT_S - 1)
    submit(queue)
    assert queue.find_key(T, key) == queue.get(T, old.id)
    clock.pass_by(1)
    submit(queue)
    with pytest.raises(NotFound):
        queue.get(T, old.id)
    assert (queue.events(old.id, 0), queue.evaluations(old.id), queue.find_key(T, key)) == ([], [], None)
    assert queue.get(T, running.id).state is State.RUNNING and len(queue.list_jobs(T, 10)) == 3
    assert queue.count_states() == dict.fromkeys(State, 0) | {State.RUNNING: 1, State.QUEUED: 2}
    assert queue.submit(T, "search", {}, Key("k", "other"))[1]


def test_a_new_job_does_not_wait_for_many_to_be_forgotten(
    queue: JobQueue, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (redis_queue, sqlite_queue):
        monkeypatch.setattr(module, "FORGOTTEN", 2)
    for number in range(5):
        queue.cancel(T, submit(queue, number).id)
        clock.pass_by(1)
    clock.pass_by(KEPT_S)
    submit(queue)
    assert [job.spec["number"] for job in queue.list_jobs(T, 10)] == [0, 4, 3, 2]


def test_what_open_jobs_read(queue: JobQueue) -> None:
    digests = [f"sha256:{number:064x}" for number in range(3)]
    for digest in digests:
        queue.submit(T, "search", {"request": {"files": {"a": digest}}})
    queue.cancel(T, queue.list_jobs(T, 1)[0].id)
    assert queue.digests() == set(digests[:2])
    queue.finish(lease_of(claim(queue)), State.DONE)
    claim(queue)
    assert queue.digests() == {digests[1]}


def test_a_worker_that_leaves_is_no_loss(queue: JobQueue) -> None:
    submit(queue)
    for _ in range(2 * MAX_LOSSES):
        queue.release(lease_of(claim(queue)))
    taken = claim(queue)
    assert taken.losses == 0 and taken.attempt == 2 * MAX_LOSSES + 1


def test_the_jobs_of_a_dead_worker_are_free_at_once(queue: JobQueue) -> None:
    mine, other = submit(queue), submit(queue)
    claim(queue, "ann")
    claim(queue, "bob")
    queue.expire("ann")
    again = claim(queue, "cid")
    assert (again.id, again.losses) == (mine.id, 1)
    queue.release_owner("bob")
    released = claim(queue, "cid")
    assert (released.id, released.losses) == (other.id, 0)


def test_cancelling(queue: JobQueue, clock: Clock) -> None:
    waiting = submit(queue)
    assert queue.cancel(T, waiting.id).state is State.CANCELLED
    assert queue.claim("ann", LEASE_S) is None
    submit(queue)
    running = claim(queue)
    asked = queue.cancel(T, running.id)
    assert (asked.state, asked.cancelling) == (State.RUNNING, True)
    assert queue.cancel(T, running.id) == asked
    assert queue.extend(lease_of(running), LEASE_S) is True
    queue.finish(lease_of(running), State.CANCELLED)
    ended = queue.cancel(T, running.id)
    assert (ended.state, ended.cancelling) == (State.CANCELLED, False)
    assert states(queue, running.id) == ["queued", "running", "running", "cancelled"]


@pytest.mark.parametrize("by", ["lease", "release", "cancel"])
def test_a_cancelled_job_is_not_run_again(queue: JobQueue, clock: Clock, by: str) -> None:
    submit(queue)
    job = claim(queue)
    queue.cancel(T, job.id)
    if by == "release":
        queue.release(lease_of(job))
        assert states(queue, job.id)[-1] == "cancelled"
    else:
        clock.pass_by(LEASE_S)
        if by == "cancel":
            queue.cancel(T, job.id)
    assert queue.claim("bob", LEASE_S) is None
    assert queue.get(T, job.id).state is State.CANCELLED


def test_keys(queue: JobQueue) -> None:
    key = Key("k", "hash")
    job, created = queue.submit(T, "search", {}, key)
    assert created and queue.find_key(T, Key("other", "hash")) is None
    queue.finish(lease_of(claim(queue)), State.DONE)
    assert queue.submit(T, "search", {}, key) == (queue.get(T, job.id), False)
    assert queue.find_key(T, key) == queue.get(T, job.id)
    for conflict in (lambda: queue.submit(T, "search", {}, Key("k", "x")), lambda: queue.find_key(T, Key("k", "x"))):
        with pytest.raises(IdempotencyConflict, match="'k'"):
            conflict()
    assert queue.submit("other-tenant", "search", {}, Key("k", "x"))[1]


def test_tenants_do_not_see_each_other(queue: JobQueue) -> None:
    job = submit(queue)
    assert queue.list_jobs("other", 10) == []
    for look in (queue.get, queue.cancel):
        for tenant, name in (("other", job.id), (T, "nope"), (T, "\ud800"), (T, "../x")):
            with pytest.raises(NotFound):
                look(tenant, name)
    assert queue.get(T, job.id).state is State.QUEUED


def test_evaluations_come_back_bit_for_bit(queue: JobQueue) -> None:
    submit(queue)
    lease = lease_of(claim(queue))
    points = [0.1 + 0.2, 1e-323, 5e-324, 1 / 3, -0.0]
    for number, score in enumerate([1 / 3, float("-inf"), 2.0**-1074]):
        queue.add_evaluation(lease, number, {"point": points, "score": score})
    found = queue.evaluations(lease.job)
    assert json.dumps(found) == json.dumps(
        [{"point": points, "score": score} for score in (1 / 3, float("-inf"), 2.0**-1074)]
    )
    with pytest.raises(AssertionError):
        queue.add_evaluation(lease, 5, {"point": points, "score": 0.0})


def test_all_of_it_is_there_for_another_connection(queue: JobQueue, place: Place) -> None:
    job = submit(queue)
    queue.add_evaluation(lease_of(claim(queue)), 0, {"point": [1.0], "score": 2.0})
    again = place()
    assert again.get(T, job.id) == queue.get(T, job.id)
    assert again.events(job.id, 0) == queue.events(job.id, 0)
    assert again.evaluations(job.id) == [{"point": [1.0], "score": 2.0}]
    assert again.count_states() == {state: int(state is State.RUNNING) for state in State}


def test_a_database_that_is_not_ours_or_not_yet(tmp_path: Path) -> None:
    SqliteQueue(tmp_path / "newer.db").close()
    with closing(sqlite3.connect(tmp_path / "newer.db")) as db, db:
        db.execute("INSERT INTO job_migrations VALUES ('m9999_from_the_future', 0)")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute("CREATE TABLE recipes (name TEXT)")
    (tmp_path / "text.db").write_text("no database, but long enough to be taken for one" * 100)
    for name, word in (("newer", "newer Patchbay"), ("other", "no database of jobs"), ("text", "cannot be used")):
        with pytest.raises(StoreUnavailable, match=word):
            SqliteQueue(tmp_path / f"{name}.db")
