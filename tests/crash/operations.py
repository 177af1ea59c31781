"""A program that forks processes which change a store at random until they are killed, and say so in a log each.

`python operations.py REDIS_URL` (or an empty text); each line on stdin, `SEED ROUND TENANT FOLDER LOG`, is one more
process, whose id is printed. A line in its log says what it is about to do, the next one what came of it: that is its
acknowledgement. Written with one system call, a line outlives the process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.crash.stores import opened

from patchbay.errors import NotFound, StoreUnavailable, VersionConflict
from patchbay.store import Hub, collect, hub
from patchbay_server.jobs.base import JobQueue, LeaseLost, State, lease_of

NAMES = ("math", "code", "law")
CONTENTS = 60
CONTENTS_PER_ROUND = 3
"""So many are written no more from the next round on: what is written again is held again, and never collected."""
HELD_S = 10.0
"""Instead of minutes and a day, so that there is something to collect. A stall of one process must stay shorter."""
LEASE_S = 0.2


class Gone(Exception):
    """The store is: an answer was lost, and with it what this process knows."""


def content(number: int) -> bytes:
    source = random.Random(number)
    return source.randbytes(source.randrange(1, 8000))


class Changes:
    """One process's changes: its names are its own, blobs and jobs are everybody's."""

    def __init__(self, store: Hub, queue: JobQueue, tenant: str, source: random.Random, turn: int, log: int) -> None:
        self._hub, self._queue, self._tenant, self._source, self._log = store, queue, tenant, source, log
        self._first = turn * CONTENTS_PER_ROUND
        self._owner = f"{tenant}-{os.getpid()}"
        self._brought: dict[str, float] = {}

    def one(self) -> None:
        """Any of them, uploads most often."""
        changes: list[tuple[Callable[[], None], int]] = [
            (self.publish, 6),
            (self.choose, 2),
            (self.delete, 2),
            (self.bring, 2),
            (self.leave, 1),
            (self.collect, 2),
            (self.submit, 3),
            (self.work, 2),  # less than what comes, so that some jobs wait for long
            (self.cancel, 1),
        ]
        change = self._source.choices([change for change, _ in changes], [weight for _, weight in changes])[0]
        change()

    def publish(self) -> None:
        name, data = self._source.choice(NAMES), self._content()
        with self._hub.begin_upload(1 << 20) as upload:
            upload.write(data)
            with self._told("publish", name=name, digest=upload.finish()) as done:
                done["version"] = self._hub.commit(upload, self._tenant, name, "{}")[0].version

    def choose(self) -> None:
        name, version = self._version()
        with self._told("choose", name=name, version=version):
            self._hub.catalog.set_current(self._tenant, name, version)

    def delete(self) -> None:
        name, version = self._version()
        chosen = self._source.choice([version, None])
        with self._told("delete", name=name, version=chosen):
            self._hub.catalog.delete_delta(self._tenant, name, chosen)

    def bring(self) -> None:
        with self._hub.begin_upload(1 << 20) as upload:
            upload.write(self._content())
            with self._told("bring", digest=upload.finish(), at=time.time()):
                self._hub.keep_blob(upload, self._tenant)
                self._brought[upload.digest] = time.monotonic()

    def leave(self) -> None:
        """A blob without a name, as a process leaves it that dies between the two."""
        with self._hub.begin_upload(1 << 20) as upload:
            upload.write(self._content())
            with self._told("leave", digest=upload.finish()):
                self._hub.blobs.put(upload.path, upload.digest)

    def collect(self) -> None:
        with self._told("collect") as done:
            done["removed"] = [blob.digest for blob in collect.collect(self._hub, 0, self._queue.digests)]

    def submit(self) -> None:
        """A job that reads what was brought: held long enough to be named by it."""
        fresh = [digest for digest, at in self._brought.items() if time.monotonic() - at < HELD_S / 3]
        if not fresh or not self._hub.has_blob(self._tenant, digest := self._source.choice(fresh)):
            return
        with self._told("submit", reads=digest) as done:
            done["job"] = self._queue.submit(self._tenant, "search", {"reads": digest})[0].id

    def work(self) -> None:
        """Some evaluations of whoever's job, and then one of the ends that there are."""
        job = None
        with self._told("claim"):
            job = self._queue.claim(self._owner, LEASE_S)
        if job is None:
            return
        lease, known = lease_of(job), len(self._queue.evaluations(job.id))
        for number in range(known, known + self._source.randrange(4)):
            value = self._source.random()
            with self._told("evaluate", job=job.id, number=number, value=value):
                self._queue.add_evaluation(lease, number, {"value": value})
        end = self._source.choice(["finish", "retry", "release", "nothing"])
        if end == "finish":
            result = {"value": self._source.random()}
            with self._told("finish", job=job.id, result=result):
                self._queue.finish(lease, State.DONE, result=result)
        elif end != "nothing":
            with self._told(end):
                self._queue.release(lease) if end == "release" else self._queue.retry(lease, {}, LEASE_S)

    def cancel(self) -> None:
        jobs = [job for job in self._queue.list_jobs(self._tenant, 20) if not job.state.is_final]
        if jobs:
            job = self._source.choice(jobs).id
            with self._told("cancel", job=job) as done:
                done["state"] = self._queue.cancel(self._tenant, job).state

    def _content(self) -> bytes:
        return content(self._first + self._source.randrange(CONTENTS))

    def _version(self) -> tuple[str, int]:
        """Mostly one that there is."""
        name = self._source.choice(NAMES)
        try:
            return name, self._source.choice(self._hub.catalog.list_versions(self._tenant, name)).version
        except NotFound:
            return name, 1

    @contextmanager
    def _told(self, change: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Before it is made, and what came of it: done, refused (nothing was changed), or nobody knows."""
        self._tell({"change": change, **arguments})
        done: dict[str, Any] = {}
        try:
            yield done
        except (NotFound, VersionConflict, LeaseLost):
            self._tell({"came": "refused"})
        except StoreUnavailable as error:
            if error.__cause__ is not None:  # not a decision of ours: the store did not answer
                raise Gone from error
            self._tell({"came": "refused"})
        else:
            self._tell({"came": "done", **done})

    def _tell(self, line: dict[str, Any]) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")


def change_until_killed(redis_url: str, seed: str, turn: int, tenant: str, folder: Path, log: Path) -> None:
    hub.PUBLISHING_S = hub.KEPT_S = collect.CONDEMNED_S = HELD_S
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        with opened(folder, redis_url) as (store, queue):
            changes = Changes(store, queue, tenant, random.Random(seed), turn, descriptor)
            while True:
                changes.one()
    except (Gone, StoreUnavailable):
        pass  # the store was killed first
    except BaseException:
        os.write(descriptor, json.dumps({"failed": traceback.format_exc()}).encode() + b"\n")
    finally:
        os._exit(0)


def main(redis_url: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead are nobody's to wait for
    print("ready", flush=True)
    for line in sys.stdin:
        seed, turn, tenant, folder, log = line.split()
        child = os.fork()
        if child == 0:
            change_until_killed(redis_url, seed, int(turn), tenant, Path(folder), Path(log))
        print(child, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
