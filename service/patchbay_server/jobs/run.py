"""What a handler is given: its job, what was found out before, and where to report. Knows no kind of job."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from patchbay.errors import StoreUnavailable
from patchbay_server.jobs.base import Job, JobQueue, Json, best_score, lease_of

REPORT_S = 0.5
"""Between two progress events, so that a long job's history stays short."""


class Stopped(Exception):
    """The job goes back into the queue, which is not its fault: the worker is told to end, or the queue is away."""


class Cancelled(Exception):
    """Somebody cancelled the job."""


class Run:
    """One attempt at one job. Handlers let Stopped, Cancelled and LeaseLost pass, from whichever call they come."""

    def __init__(
        self,
        queue: JobQueue,
        job: Job,
        lease_s: float,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.lease = lease_of(job)
        self._queue, self._lease_s, self._is_stopping, self._clock = queue, lease_s, is_stopping, clock
        with _stopped_without_queue():
            self._evaluations = queue.evaluations(job.id)
        self._num_known = len(self._evaluations)
        self._progress: dict[str, Any] = {"stage": "start", "done": 0, "total": 0, "eta_seconds": None}
        self._reported = clock()
        self._began: tuple[float, int] | None = None  # when the stage's first step was done, and which it was
        self._budget: int | None = None
        self._is_new = True

    @property
    def history(self) -> Sequence[Json]:
        """The evaluations so far, this attempt's and those before it, as they were given to `on_evaluation`."""
        return tuple(self._evaluations)

    def expect(self, evaluations: int) -> None:
        """How many evaluations there will be at most."""
        self._budget = evaluations

    def on_progress(self, done: int, total: int, stage: str) -> None:
        """May be called as often as one likes. The first word of `stage` names it; what follows is a note on the step.

        The eta is that of the stage: every one has a pace of its own, which is known from its second step on.
        """
        now = self._clock()
        if self._began is None or done <= self._began[1] or _name(stage) != _name(self._progress["stage"]):
            self._began = now, done
        began, first = self._began
        eta = (now - began) * (total - done) / (done - first) if done > first else None
        self._progress = {"stage": stage, "done": done, "total": total, "eta_seconds": eta}
        self._is_new = True
        self._tick()

    def on_evaluation(self, point: Sequence[float], score: float) -> None:
        """Recorded before the search goes on: what is lost with the worker is at most the next evaluation.

        It is shown with the `on_progress` that follows: the two say the same number.
        """
        evaluation = {"point": list(point), "score": score}
        with _stopped_without_queue():
            self._queue.add_evaluation(self.lease, len(self._evaluations), evaluation)
        if len(self._evaluations) == self._num_known:
            self._began = None  # replaying those before it took no time
        self._evaluations.append(evaluation)
        self._is_new = True
        self.check()

    def check(self) -> None:
        """Raises Stopped, Cancelled or LeaseLost where the job is not to go on: ask before what cannot be undone."""
        if self._is_stopping():
            raise Stopped
        with _stopped_without_queue():
            is_cancelled = self._queue.extend(self.lease, self._lease_s)
        if is_cancelled:
            raise Cancelled

    def flush(self) -> None:
        """Reports what was held back."""
        if self._is_new:
            with _stopped_without_queue():
                self._queue.report(self.lease, self._shown())
            self._is_new = False

    def _tick(self) -> None:
        now = self._clock()
        if now - self._reported >= REPORT_S:
            self._reported = now
            self.check()
            self.flush()

    def _shown(self) -> Json:
        best = best_score(self._evaluations)
        assert best is None or math.isfinite(best)
        return {
            "evaluation": len(self._evaluations),
            "evaluations": self._budget,
            "best_score": best,
            **self._progress,
        }


@contextmanager
def _stopped_without_queue() -> Iterator[None]:
    """What was not recorded, or whose answer was lost, the next attempt finds out."""
    try:
        yield
    except StoreUnavailable as error:
        raise Stopped(error.message) from error


def _name(stage: str) -> str:
    return stage.partition(" ")[0]
