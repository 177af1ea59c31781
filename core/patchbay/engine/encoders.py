"""Requests to an encoder, from many threads, that share its forward passes whatever their recipes.

Nobody waits for others to come: while one batch runs, the next one gathers. Knows nothing of what is asked, of the web
and of how recipes are made ready.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import Condition

import torch

from patchbay.backbone import Backbone
from patchbay.engine.joint import Joint, Part
from patchbay.engine.lock import FairLock
from patchbay.engine.observer import Observer
from patchbay.engine.patience import FOREVER, LOOK_S, Patience
from patchbay.engine.recipes import Path, Ready
from patchbay.models.inputs import MAX_BATCH, Batch, most_rows, parts
from patchbay.models.replay import Readout

MAX_STEP = 2048  # tokens of one forward pass of several requests, padding included: more gain nothing on a CPU
SHORTEST = 16  # texts up to here are padded to each other, then up to each power of two
logger = logging.getLogger(__name__)
Patch = Callable[[Ready | None], AbstractContextManager[None]]


@dataclass(slots=True, eq=False)
class Job:
    """Part of one request, and once it is over what was found, fp32 [rows, width], or why it failed."""

    part: Part
    ready: Ready
    found: torch.Tensor | None = None
    error: Exception | None = None

    @property
    def is_over(self) -> bool:
        return self.found is not None or self.error is not None

    def taken_error(self) -> Exception:
        """Its traceback holds the frames that hold the job: they would hold each other, and the recipe in memory."""
        error, self.error = self.error, None
        assert error is not None
        return error


class Encoders:
    """`lock` is of the resident weights; `patch(ready)`, under it, gives the weights that a recipe is patched into, or
    the base's where that is None.
    """

    def __init__(self, backbone: Backbone, lock: FairLock, patch: Patch) -> None:
        self.observer = Observer()
        self._joint = Joint(backbone)
        self._lock, self._patch = lock, patch
        self._changed = Condition()  # of what is below
        self._waiting: list[Job] = []
        self._is_led = False
        self._reasons: dict[Hashable, str | None] = {}

    def run(self, readout: Readout, ready: Ready, inputs: Batch, patience: Patience = FOREVER) -> torch.Tensor:
        """fp32 [inputs, width]. Raises what the model raises on them; while they wait Cancelled, DeadlineExceeded."""
        jobs = [Job(Part(part, ready.active, readout), ready) for part in parts(inputs, most_rows(inputs))]
        with self._changed:
            self._waiting.extend(jobs)
        try:
            self._finish(jobs, patience)
        finally:  # nobody asks any more
            self._remove(jobs)
        for job in jobs:
            if job.error is not None:
                raise job.taken_error()
        return torch.cat([job.found for job in jobs if job.found is not None])

    def forget(self) -> None:
        """Batches that were kept for the next request."""
        self._joint.forget()

    def why_alone(self, readout: Readout) -> str | None:
        """Why requests for this readout run by themselves, where they do. Found out once for each class of models,
        under the lock.
        """
        kind = (type(readout), type(readout.model))
        if kind not in self._reasons:
            reason = self._joint.why_not(readout)
            if reason:
                logger.warning("%s answers one request at a time: %s", type(readout.model).__name__, reason)
            self._reasons[kind] = reason
        return self._reasons[kind]

    def _finish(self, jobs: list[Job], patience: Patience) -> None:
        """Returns when they are over. Of all who wait one leads a batch, which may not be with its own jobs."""
        while True:
            with self._changed:
                while not all(job.is_over for job in jobs):
                    patience.check()
                    if not self._is_led:
                        break
                    self._changed.wait(LOOK_S)
                else:
                    return
                self._is_led = True
            try:
                with self._lock:
                    self._run(self._take())
            finally:
                with self._changed:
                    self._is_led = False
                    self._changed.notify_all()

    def _take(self) -> list[Job]:
        """The oldest job and those that may run with it. They wait until they are over: who leads may be stopped."""
        with self._changed:
            first, *others = self._waiting
        taken, kind = [first], self._kind(first)
        if kind is None:
            return taken
        rows, longest = first.part.num_rows, first.part.length or 0
        for job in others:
            more, length = rows + job.part.num_rows, max(longest, job.part.length or 0)
            if more <= MAX_BATCH and more * length <= MAX_STEP and self._kind(job) == kind:
                taken.append(job)
                rows, longest = more, length
        # Neighbours of one plan are a slice, and the same plans in the same order a batch that is there already.
        return sorted(taken, key=lambda job: id(job.part.plan))

    def _kind(self, job: Job) -> Hashable:
        """Jobs of one kind may share a forward pass; None for one that may not."""
        if job.ready.path is Path.PATCHED or self.why_alone(job.part.readout):
            return None
        inputs = job.part.inputs
        if job.part.length is None:
            shape: Hashable = tuple(tensor.shape[1:] for tensor in inputs.values())
        elif "attention_mask" in inputs:
            shape = max(SHORTEST - 1, job.part.length - 1).bit_length()
        else:
            shape = ("exactly", job.part.length)
        return tuple(inputs), shape

    def _run(self, jobs: list[Job]) -> None:
        """Where the pass fails, each half tries by itself: whoever is at fault fails alone."""
        try:
            found = self._forward(jobs)
        except Exception as error:  # whatever the model or a hook on it raises
            if len(jobs) > 1:
                middle = len(jobs) // 2
                self._run(jobs[:middle])
                self._run(jobs[middle:])
            else:
                jobs[0].error = error
                self._remove(jobs)
            return
        for job, answers in zip(jobs, found, strict=True):
            job.found = answers
        self._remove(jobs)

    @torch.inference_mode()
    def _forward(self, jobs: list[Job]) -> list[torch.Tensor]:
        first = jobs[0]
        is_patched = first.ready.path is Path.PATCHED
        self.observer.stepped(is_patched, [job.ready for job in jobs])
        with self._patch(first.ready if is_patched else None):
            if is_patched or self.why_alone(first.part.readout):
                return [self._joint.alone(first.part)]
            return self._joint.together([job.part for job in jobs])

    def _remove(self, jobs: Iterable[Job]) -> None:
        gone = set(jobs)
        with self._changed:
            self._waiting = [job for job in self._waiting if job not in gone]
