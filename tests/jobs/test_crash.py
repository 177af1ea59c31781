"""Workers killed with SIGKILL, again and again: a compression ends as if nothing had happened, in the same bytes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.jobs.killing import Forker, Outcome, forking_workers, search_spec
from tests.long import LONG, long
from tests.waiting import until

from patchbay.store import Hub
from patchbay_server.jobs.base import Job, JobQueue, Json, State
from patchbay_server.jobs.opened import open_queue
from patchbay_server.settings import Settings
from patchbay_server.stores.opened import open_store

KILLS = 11
BOUNDS = {"target_size": {"target_size": 15_000}, "target_kl": {"target_kl": 0.00003}}
FEW = {"target_size": 15_000, "evaluations": 24}
SHORT_LEASE_S = 2.0
T = "default"


@pytest.fixture(scope="module")
def base(model_folder: Callable[..., Path]) -> Path:
    return model_folder("bert_classifier")


@pytest.fixture(scope="module")
def tuned(finetune_folder: Callable[..., Path]) -> Path:
    return finetune_folder("bert_classifier")


@pytest.fixture(scope="module")
def forker(base: Path) -> Iterator[Forker]:
    with forking_workers(base) as forker:
        yield forker


@pytest.fixture(params=["s3", "redis"] if LONG else ["s3"])
def far_stores(request: pytest.FixtureRequest, redis_database: str) -> dict[str, str]:
    """Settings of a catalog and blobs that other hosts reach."""
    if request.param == "redis":
        return {"store_url": redis_database, "blob_url": redis_database}
    return {"store_url": redis_database, "blob_url": request.getfixturevalue("new_bucket")()}


def is_over(queue: JobQueue, job: Job) -> bool:
    return queue.get(T, job.id).state.is_final


def run_killed(forker: Forker, store: Path, queue: JobQueue, job: Job, kills: int, evaluations: int) -> None:
    """The job's worker is killed `kills` times, in the middle of a search of that many evaluations."""
    source = random.Random(kills)
    for kill in range(kills):
        forker.start(f"worker-{kill}", store)
        # At least one evaluation further, so that no job is given up, then anywhere: even in the last one's commit.
        further = 1 + len(queue.evaluations(job.id)) + source.randrange(evaluations // kills)
        wanted = min(further, evaluations - (kills - kill - 1))
        until(lambda wanted=wanted: len(queue.evaluations(job.id)) >= wanted or is_over(queue, job))
        time.sleep(source.random() * 0.02)
        forker.kill(f"worker-{kill}")
        queue.expire(f"worker-{kill}")  # as the server says that watches its workers
        assert not is_over(queue, job), queue.get(T, job.id).error
    forker.start("last", store)
    until(lambda: is_over(queue, job))
    forker.kill("last")


def outcome(queue: JobQueue, hub: Hub, job: Job) -> Outcome:
    done = queue.get(T, job.id)
    assert done.state is State.DONE and done.result is not None, done.error
    [record] = hub.catalog.list_versions(T, "math")  # the same bytes again are the same version
    assert done.result["delta"]["digest"] == record.digest
    return Outcome(done, queue.evaluations(job.id), hub.open_blob(record.digest).read_bytes())


def run(forker: Forker, store: Path, make_spec: Callable[[Hub], Json], kills: int, evaluations: int) -> Outcome:
    settings = Settings(base="-", store=store)
    store.mkdir()
    with closing(open_queue(settings)) as queue, closing(open_store(settings)) as hub:
        job, _ = queue.submit(T, "compression", make_spec(hub))
        run_killed(forker, store, queue, job, kills, evaluations)
        return outcome(queue, hub, job)


@long
@pytest.mark.parametrize("bound", BOUNDS)
def test_killed_again_and_again_it_ends_in_identical_weights(
    forker: Forker, base: Path, tuned: Path, tmp_path: Path, bound: str
) -> None:
    def make_spec(hub: Hub) -> Json:
        return search_spec(hub.blobs, base, tuned, BOUNDS[bound])

    whole = run(forker, tmp_path / "whole", make_spec, kills=0, evaluations=0)
    killed = run(forker, tmp_path / "killed", make_spec, kills=KILLS, evaluations=len(whole.evaluations))
    assert (whole.job.attempt, killed.job.attempt) == (1, KILLS + 1)
    assert len(whole.evaluations) > 2 * KILLS and killed.evaluations == whole.evaluations
    assert killed.delta == whole.delta and killed.report == whole.report
    temps = (tmp_path / "killed" / "blobs" / "tmp").rglob("*")
    assert not [path for path in temps if path.is_file() and path.name != ".lock"]


def test_another_host_ends_the_jobs_of_one_that_was_killed(
    forker: Forker, base: Path, tuned: Path, tmp_path: Path, far_stores: dict[str, str]
) -> None:
    """Two workers that share nothing but a catalog in Redis and remote blobs, and nobody who says which one is dead."""

    def make_spec(hub: Hub) -> Json:
        return search_spec(hub.blobs, base, tuned, FEW)

    whole = run(forker, tmp_path / "whole", make_spec, kills=0, evaluations=0)
    settings = Settings(base="-", store=tmp_path / "here", **far_stores)
    with closing(open_queue(settings)) as queue, closing(open_store(settings)) as hub:
        jobs = [queue.submit(T, "compression", make_spec(hub))[0] for _ in range(2)]
        for owner in ("ann", "bob"):
            forker.start(owner, tmp_path / owner, SHORT_LEASE_S, **far_stores)
        until(lambda: all(len(queue.evaluations(job.id)) > 3 for job in jobs))
        [first, second] = queue.running()
        assert {first.owner, second.owner} == {"ann", "bob"}
        forker.kill(str(first.owner))
        until(lambda: all(is_over(queue, job) for job in jobs))
        forker.kill(str(second.owner))
        taken, other = (outcome(queue, hub, job) for job in jobs)
    assert (taken.job.attempt, other.job.attempt) == (2, 1)
    assert taken.evaluations == other.evaluations == whole.evaluations
    assert taken.delta == other.delta == whole.delta and taken.report == whole.report
    assert not (tmp_path / "ann" / "jobs.db").exists() and not (tmp_path / "bob" / "blobs").exists()
