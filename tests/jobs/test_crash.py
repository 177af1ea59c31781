"""Workers killed with SIGKILL, again and again: the search ends as if nothing had happened, with one delta."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.e2e.processes import ENVIRONMENT, ended

from patchbay.store import FileBlobs, Hub, SqliteCatalog
from patchbay_server.jobs.base import Job, Json, State
from patchbay_server.jobs.sqlite import SqliteQueue

FORKING = Path(__file__).with_name("forking.py")
ROOT = Path(__file__).parents[2]
KILLS = 11
BUDGET = 60
SPEC = {"seed": 5, "budget": BUDGET, "work": 2000}
DEADLINE_S = 60.0
T = "default"


class Forker:
    """Real workers, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self.count, self.worker = 0, 0

    @property
    def owner(self) -> str:
        return f"worker-{self.count}"

    def start(self, store: Path) -> None:
        self.count += 1
        self._orders.write(f"{self.owner} {store}\n")
        self._orders.flush()
        self.worker = int(self._answers.readline())

    def kill(self, queue: SqliteQueue) -> None:
        """And say so, as the server does that watches its workers."""
        self.close()
        queue.expire(self.owner)

    def close(self) -> None:
        if self.worker:
            os.kill(self.worker, signal.SIGKILL)
        self.worker = 0


@pytest.fixture(scope="module")
def forker(model_folder: Callable[..., Path], finetune_folder: Callable[..., Path]) -> Iterator[Forker]:
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([ENVIRONMENT["PYTHONPATH"], str(ROOT)])}
    process = subprocess.Popen(
        [sys.executable, str(FORKING), str(model_folder("vit")), str(finetune_folder("vit"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with ended(process):
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        forker = Forker(process)
        try:
            yield forker
        finally:
            forker.close()  # it holds the pipes that the end waits for


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def run(forker: Forker, store: Path, kills: int) -> tuple[Job, list[Json], list[str]]:
    """The ended job, its evaluations and the digests of the deltas there are; `kills` of its workers were killed."""
    source = random.Random(kills)
    with closing(SqliteQueue(store / "jobs.db")) as queue:
        job, _ = queue.submit(T, "search", SPEC)
        for kill in range(kills):
            forker.start(store)
            # At least one evaluation further, so that no job is given up, then anywhere: even in the last one's commit.
            further = 1 + len(queue.evaluations(job.id)) + source.randrange(BUDGET // kills)
            wanted = min(further, BUDGET - (kills - kill - 1))
            wait_for(lambda wanted=wanted: len(queue.evaluations(job.id)) >= wanted)
            time.sleep(source.random() * 0.01)
            forker.kill(queue)
        forker.start(store)
        wait_for(lambda: queue.get(T, job.id).state.is_final)
        forker.kill(queue)
        done, evaluations = queue.get(T, job.id), queue.evaluations(job.id)
    with closing(Hub(SqliteCatalog(store / "catalog.db"), FileBlobs(store / "blobs"), frozenset())) as hub:
        return done, evaluations, [record.digest for record in hub.catalog.list_versions(T, "math")]


def test_killed_eleven_times_it_ends_in_the_identical_result(forker: Forker, tmp_path: Path) -> None:
    whole, evaluations, [digest] = run(forker, tmp_path / "whole", kills=0)
    killed, again, digests = run(forker, tmp_path / "killed", kills=KILLS)
    assert (whole.state, whole.attempt) == (State.DONE, 1)
    assert (killed.state, killed.attempt) == (State.DONE, KILLS + 1)
    assert len(evaluations) == BUDGET and again == evaluations
    assert killed.result == whole.result
    assert digests == [digest]
