"""A process that takes one job after another: `patchbay worker`, or a child of the server.

Imports nothing heavy before the first job: an idle worker is small. Never the serving process, so that a search takes
neither its interpreter lock nor its memory.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from types import FrameType

from patchbay.errors import PatchbayError, StoreError, StoreUnavailable
from patchbay_server.jobs.base import Job, JobQueue, Json, Lease, LeaseLost, State, lease_of
from patchbay_server.jobs.opened import open_queue
from patchbay_server.jobs.run import Cancelled, Run, Stopped
from patchbay_server.logs import configured
from patchbay_server.settings import Settings

LEASE_S = 30.0
POLL_S = 0.25
PAUSE_S = 1.0  # before a queue that did not answer is asked again
RETRY_S = 30.0  # before a job is tried again for which catalog or blobs were away
NICE = 10

Handler = Callable[[Run], Json]
"""Does the job and returns its result."""
logger = logging.getLogger("patchbay_server.jobs")


class Worker:
    """Takes jobs from `queue` as `owner`. `open_handlers` is called with the first job: it may import what it likes."""

    def __init__(
        self,
        queue: JobQueue,
        owner: str,
        open_handlers: Callable[[], Mapping[str, Handler]],
        lease_s: float = LEASE_S,
    ) -> None:
        self._queue, self._owner, self._lease_s = queue, owner, lease_s
        self._open_handlers = open_handlers
        self._handlers: Mapping[str, Handler] | None = None
        self._stopping = False

    def stop(self) -> None:
        """Ends at the next report; safe in a signal handler, which an Event is not."""
        self._stopping = True

    def run_forever(self) -> None:
        while not self._stopping:
            try:
                if not self.run_one():
                    time.sleep(POLL_S)
            except StoreError as error:
                logger.error("%s", error.message)
                self._wait_for_queue()

    def _wait_for_queue(self) -> None:
        """A claim whose answer was lost may have been made: what this worker does not know that it runs goes back."""
        while not self._stopping:
            time.sleep(PAUSE_S)
            with suppress(StoreError):
                self._queue.release_owner(self._owner)
                return

    def run_one(self) -> bool:
        """Takes a job, if there is one, and brings it to an end. False where there was none."""
        job = self._queue.claim(self._owner, self._lease_s)
        if job is None:
            return False
        with self._heartbeat(lease_of(job)):
            try:
                self._attempt(job)
            except LeaseLost as error:
                logger.warning("%s", error)  # another worker's job by now, or cancelled: nothing is left to do here
        return True

    def _attempt(self, job: Job) -> None:
        lease = lease_of(job)
        try:
            run = Run(self._queue, job, self._lease_s, lambda: self._stopping)
            result = self._handler(job.kind)(run)
            run.flush()
        except Stopped as stopped:
            logger.info("job %s goes back into the queue: %s", job.id, str(stopped) or "the worker ends")
            self._queue.release(lease)
        except Cancelled:
            self._queue.finish(lease, State.CANCELLED)
        except LeaseLost:
            raise
        except StoreUnavailable as error:
            logger.warning("job %s is tried again: %s", job.id, error.message)
            self._queue.retry(lease, describe(error), RETRY_S)
        except Exception as error:
            self._queue.finish(lease, State.FAILED, error=describe(error))
        else:
            self._queue.finish(lease, State.DONE, result=result)

    def _handler(self, kind: str) -> Handler:
        if self._handlers is None:
            self._handlers = self._open_handlers()
        return self._handlers[kind]

    @contextmanager
    def _heartbeat(self, lease: Lease) -> Iterator[None]:
        """Keeps the lease while one step takes longer than it lasts. What it finds out, the job finds out itself."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._lease_s / 3):
                with suppress(PatchbayError, LeaseLost):
                    self._queue.extend(lease, self._lease_s)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def describe(error: Exception) -> Json:
    """The `error` object of the API. What is not for the caller goes to the log."""
    from patchbay_server.errors import error_of  # noqa: PLC0415 - the web framework comes with the first failure

    if not isinstance(error, PatchbayError):
        logger.error("a job failed", exc_info=error)
    elif error.outside != error.message:
        logger.error("a job failed: %s", error.message)
    return error_of(error)


def make_owner() -> str:
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"


def work(settings: Settings, owner: str | None = None) -> None:
    """Blocks until SIGINT or SIGTERM. With an `owner` also until stdin ends: the parent has died."""

    def open_handlers() -> Mapping[str, Handler]:
        from patchbay_server.jobs.wiring import open_handlers  # noqa: PLC0415 - torch comes with the first job

        return open_handlers(settings)

    with configured(settings.log_format, settings.log_level), closing(open_queue(settings)) as queue:
        worker = Worker(queue, owner or make_owner(), open_handlers)

        def stop(number: int, frame: FrameType | None) -> None:
            worker.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        os.nice(NICE)
        if owner is not None:
            threading.Thread(target=_leave_with_parent, args=[queue, owner], daemon=True).start()
        worker.run_forever()


def _leave_with_parent(queue: JobQueue, owner: str) -> None:
    """At once and in the middle of whatever it is: every write after it would be refused, and the next server waits."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: it returns when the other end is closed
    with suppress(PatchbayError):
        queue.release_owner(owner)
    os._exit(1)


def main() -> None:
    try:
        work(Settings(base=os.environ["PATCHBAY_BASE"]), owner=sys.argv[1])
    except PatchbayError as error:
        sys.exit(f"patchbay worker: {error.message}")


if __name__ == "__main__":
    main()
