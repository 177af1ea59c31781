"""One worker in this process: how a job ends, what is reported, and what cancelling and losing it do."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from tests.jobs.clocks import Clock
from tests.jobs.searching import search

from patchbay.errors import InvalidRecipe, StoreFull, StoreUnavailable
from patchbay_server.jobs.base import MAX_LOSSES, Job, JobQueue, Json, State, lease_of
from patchbay_server.jobs.run import REPORT_S, Cancelled, Run
from patchbay_server.jobs.worker import RETRY_S, Handler, Worker

LEASE_S = 30.0
T = "default"
SPEC = {"seed": 3, "budget": 20, "work": 0}


def run_one(queue: JobQueue, handler: Handler, spec: Json = SPEC, owner: str = "ann") -> Job:
    job, _ = queue.submit(T, "search", spec)
    assert Worker(queue, owner, lambda: {"search": handler}, LEASE_S).run_one()
    return queue.get(T, job.id)


def test_a_search_ends_with_its_result(queue: JobQueue) -> None:
    job = run_one(queue, search)
    assert job.state is State.DONE and job.result is not None
    found = queue.evaluations(job.id)
    assert len(found) == 20 and job.result["score"] == max(e["score"] for e in found)
    assert job.progress is not None
    assert job.progress["evaluation"] == job.progress["evaluations"] == 20
    assert job.progress["best_score"] == job.result["score"]
    assert not Worker(queue, "ann", dict, LEASE_S).run_one()


def test_handlers_are_opened_with_the_first_job(queue: JobQueue) -> None:
    opened = []

    def open_handlers() -> dict[str, Handler]:
        opened.append(1)
        return {"search": search}

    worker = Worker(queue, "ann", open_handlers, LEASE_S)
    assert not worker.run_one() and not opened
    for _ in range(2):
        queue.submit(T, "search", SPEC)
        assert worker.run_one()
    assert opened == [1]


@pytest.mark.parametrize("losses", [0, 1, 7, 19, 20])
def test_the_next_attempt_goes_on_where_the_last_was_lost(queue: JobQueue, losses: int) -> None:
    whole = run_one(queue, search)

    def lost(run: Run) -> Json:
        for entry in queue.evaluations(whole.id)[:losses]:
            run.on_evaluation(entry["point"], entry["score"])
        queue.expire("ann")
        raise KeyboardInterrupt  # the process ends here: nothing is written any more

    with pytest.raises(KeyboardInterrupt):
        run_one(queue, lost)
    assert Worker(queue, "bob", lambda: {"search": search}, LEASE_S).run_one()
    again = queue.list_jobs(T, 1)[0]
    assert again.attempt == 2 and again.result == whole.result
    assert queue.evaluations(again.id) == queue.evaluations(whole.id)


@pytest.mark.parametrize(
    ("error", "message", "type_", "code"),
    [
        (InvalidRecipe("too dense", param="density"), "too dense", "invalid_request_error", "invalid_recipe"),
        (StoreFull("no space at /srv"), StoreFull("").outside, "server_error", "store_full"),
        (ZeroDivisionError("secret"), "the worker failed; the server's log says why", "server_error", "internal_error"),
    ],
)
def test_a_failure_has_the_shape_of_an_error(
    queue: JobQueue, error: Exception, message: str, type_: str, code: str
) -> None:
    def fail(run: Run) -> Json:
        raise error

    job = run_one(queue, fail)
    param = getattr(error, "param", None)
    assert (job.state, job.error) == (
        State.FAILED,
        {"message": message, "type": type_, "param": param, "code": code},
    )
    assert run_one(queue, search).state is State.DONE


def test_a_store_that_is_away_ends_the_attempt_and_not_the_job(queue: JobQueue, clock: Clock) -> None:
    def interrupted(run: Run) -> Json:
        if len(run.history) < 10:
            run.on_evaluation([0.0], 1.0)
            raise StoreUnavailable.plain(f"away at {len(run.history)}")
        return {}

    worker = Worker(queue, "ann", lambda: {"search": interrupted}, LEASE_S)
    job, _ = queue.submit(T, "search", SPEC)
    for number in range(1, 11):
        assert worker.run_one()
        waiting = queue.get(T, job.id)
        assert (waiting.state, waiting.losses) == (State.QUEUED, 1)  # it gets somewhere, so it is never given up
        assert waiting.error is not None and waiting.error["message"] == f"away at {number}"
        assert not worker.run_one()
        clock.pass_by(RETRY_S)
    assert worker.run_one() and queue.get(T, job.id).state is State.DONE


def test_a_store_that_stays_away_ends_the_job_with_the_last_error(queue: JobQueue, clock: Clock) -> None:
    def fail(run: Run) -> Json:
        raise StoreUnavailable.plain(f"attempt {run.job.attempt}")

    worker = Worker(queue, "ann", lambda: {"search": fail}, LEASE_S)
    job, _ = queue.submit(T, "search", SPEC)
    while worker.run_one():
        clock.pass_by(RETRY_S)
    failed = queue.get(T, job.id)
    assert (failed.state, failed.attempt) == (State.FAILED, MAX_LOSSES)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["message"]) == ("store_unavailable", f"attempt {MAX_LOSSES}")


def test_a_kind_that_nobody_knows(queue: JobQueue) -> None:
    job, _ = queue.submit(T, "dream", {})
    assert Worker(queue, "ann", lambda: {"search": search}, LEASE_S).run_one()
    assert queue.get(T, job.id).state is State.FAILED


def test_cancelling_ends_a_search_at_its_next_evaluation(queue: JobQueue) -> None:
    def cancelled(run: Run) -> Json:
        run.on_evaluation([0.0], 1.0)
        queue.cancel(T, run.job.id)
        with pytest.raises(Cancelled):
            run.on_evaluation([0.0], 2.0)
        run.on_evaluation([0.0], 3.0)
        raise AssertionError("it went on")

    job = run_one(queue, cancelled)
    assert (job.state, job.result, len(queue.evaluations(job.id))) == (State.CANCELLED, None, 3)


def test_what_is_published_already_is_done_and_not_cancelled(queue: JobQueue) -> None:
    def late(run: Run) -> Json:
        queue.cancel(T, run.job.id)
        return {"published": True}

    job = run_one(queue, late)
    assert (job.state, job.cancelling) == (State.DONE, False)


def test_a_worker_that_is_told_to_end_puts_its_job_back(queue: JobQueue) -> None:
    job, _ = queue.submit(T, "search", SPEC)

    def stop_in_the_middle(run: Run) -> Json:
        worker.stop()
        return search(run)

    worker = Worker(queue, "ann", lambda: {"search": stop_in_the_middle}, LEASE_S)
    worker.run_forever()
    again = queue.get(T, job.id)
    assert (again.state, again.owner, again.attempt, len(queue.evaluations(job.id))) == (State.QUEUED, None, 1, 1)


def test_a_worker_whose_job_was_taken_lets_go(queue: JobQueue) -> None:
    def taken(run: Run) -> Json:
        queue.expire("ann")
        assert queue.claim("bob", LEASE_S) is not None
        return {"stale": True}

    job = run_one(queue, taken)
    assert (job.state, job.owner, job.result) == (State.RUNNING, "bob", None)


def test_the_lease_is_kept_while_one_step_takes_long(queue: JobQueue, clock: Clock) -> None:
    def slow(run: Run) -> Json:
        first = queue.get(T, run.job.id).lease_until
        assert first is not None
        clock.pass_by(1)
        while queue.get(T, run.job.id).lease_until == first:
            assert threading.active_count() > 1, "nobody keeps the lease"
        return {}

    job, _ = queue.submit(T, "search", {})
    assert Worker(queue, "ann", lambda: {"search": slow}, lease_s=0.03).run_one()
    assert queue.get(T, job.id).state is State.DONE


@pytest.fixture
def running(queue: JobQueue, clock: Clock) -> Callable[[], Run]:
    def make() -> Run:
        queue.submit(T, "search", {})
        job = queue.claim("ann", LEASE_S)
        assert job is not None
        return Run(queue, job, LEASE_S, clock=clock)

    return make


def reports(queue: JobQueue, run: Run) -> list[Json]:
    return [event.data for event in queue.events(run.job.id, 0) if event.kind == "progress"]


def test_progress_is_held_back(queue: JobQueue, clock: Clock, running: Callable[[], Run]) -> None:
    run = running()
    for done in range(1000):
        run.on_progress(done, 1000, "layer")
        clock.pass_by(REPORT_S / 100)
    assert 9 <= len(reports(queue, run)) <= 11
    run.flush()
    assert reports(queue, run)[-1]["done"] == 999
    run.flush()
    assert reports(queue, run)[-1] != reports(queue, run)[-2]


def test_the_eta_is_of_the_stage(queue: JobQueue, clock: Clock, running: Callable[[], Run]) -> None:
    run = running()
    for done in range(3):
        run.on_progress(done, 4, "compare")
        clock.pass_by(100)
    run.on_progress(0, 10, "encode")
    clock.pass_by(6)
    run.on_progress(2, 10, "encode")
    last = reports(queue, run)[-1]
    assert (last["stage"], last["done"], last["total"], last["eta_seconds"]) == ("encode", 2, 10, 24.0)
    assert last["best_score"] is None


def test_the_eta_of_a_stage_that_counts_from_one(queue: JobQueue, clock: Clock, running: Callable[[], Run]) -> None:
    run = running()
    run.on_progress(0, 40, "compare layer")
    clock.pass_by(100)
    for number in range(1, 4):
        run.on_progress(number, 10, f"search evaluation {number}")
        clock.pass_by(3)
    run.on_progress(1, 4, "distil")
    etas = [report["eta_seconds"] for report in reports(queue, run)]
    assert etas == [None, 24.0, 21.0, None]


def test_evaluations_of_an_earlier_attempt_are_not_in_the_eta(queue: JobQueue, clock: Clock) -> None:
    queue.submit(T, "search", {})
    first = queue.claim("ann", LEASE_S)
    assert first is not None
    for number in range(5):
        queue.add_evaluation(lease_of(first), number, {"point": [0.0], "score": 1.0})
    queue.expire("ann")
    again = queue.claim("bob", LEASE_S)
    assert again is not None
    run = Run(queue, again, LEASE_S, clock=clock)
    for number in range(1, 6):  # replayed, in no time
        run.on_progress(number, 10, f"search evaluation {number}")
    for number in (6, 7, 8):
        clock.pass_by(3)
        run.on_evaluation([0.0], 1.0)
        run.on_progress(number, 10, f"search evaluation {number}")
    run.flush()
    assert reports(queue, run)[-1]["eta_seconds"] == 6.0


def test_scores_that_are_no_numbers_are_kept_and_never_best(queue: JobQueue, running: Callable[[], Run]) -> None:
    run = running()
    for score in (float("nan"), float("inf"), 1.5, float("-inf")):
        run.on_evaluation([0.0], score)
    run.flush()
    assert reports(queue, run)[-1]["best_score"] == 1.5
    assert [lease_of(run.job) == run.lease, len(run.history)] == [True, 4]
