"""Jobs side by side, one process and one thread each, shown with an eta.

Two processes of one thread are much faster than one of two on small models. Knows nothing of what jobs do.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from patchbay_server.commands.quiet import silence_libraries

OnProgress = Callable[[int, int, str], None]
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)
POLL = 0.2  # seconds
_events: Any = None  # in a worker: the queue that its progress goes into


class Job(Protocol[ResultT_co]):
    """A small frozen dataclass: it travels to another process."""

    @property
    def title(self) -> str: ...

    def run(self, on_progress: OnProgress) -> ResultT_co: ...


class Workers:
    """`count` processes that stay for several lists of jobs; 1 works in this process.

    Left by an exception (^C too), it ends the processes at once: jobs keep nothing half done.
    """

    def __init__(self, count: int, console: Console) -> None:
        self.count = count
        self.console = console
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Spawned, not forked: a fork of a process that has used torch's threads can hang.
            context = multiprocessing.get_context("spawn")
            self._queue: Any = context.Queue()
            self._pool = ProcessPoolExecutor(count, context, _start, (self._queue,))

    def __enter__(self) -> Self:
        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)

    def run(self, title: str, jobs: Sequence[Job[ResultT]]) -> Iterator[ResultT]:
        """Results as they come. What a job raises is raised here."""
        with _bars(title, len(jobs), self.console) as (finished, on_step):
            for result in self._results(jobs, on_step):
                finished()
                yield result

    def _results(self, jobs: Sequence[Job[ResultT]], on_step: Callable[..., None]) -> Iterator[ResultT]:
        if self._pool is None:
            for job in jobs:
                yield job.run(lambda *step, title=job.title: on_step(title, *step))
            return
        waiting: set[Future[ResultT]] = {self._pool.submit(_run, job) for job in jobs}
        while waiting:
            self._forward(on_step)
            for future in [future for future in waiting if future.done()]:
                waiting.remove(future)
                yield future.result()

    def _forward(self, on_step: Callable[..., None]) -> None:
        try:
            on_step(*self._queue.get(timeout=POLL))
            while True:
                on_step(*self._queue.get_nowait())
        except queue.Empty:
            return


def _start(events: Any) -> None:
    global _events
    _events = events
    threading.Thread(target=_end_with_parent, daemon=True).start()
    silence_libraries()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C in a terminal reaches workers too: they end without a traceback
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "workers are spawned"
    parent.join()
    os._exit(1)


def _run(job: Job[ResultT]) -> ResultT:
    return job.run(lambda *step: _events.put((job.title, *step)))


@contextmanager
def _bars(title: str, count: int, console: Console) -> Iterator[tuple[Callable[[], None], Callable[..., None]]]:
    """One bar for all jobs and one for each that reports steps, which leaves when its steps are done."""
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        whole = bars.add_task(title, total=count)
        steps: dict[str, Any] = {}

        def on_step(job: str, done: int, total: int, note: str) -> None:
            if job not in steps:
                steps[job] = bars.add_task(f"  {job}", total=total)
            bars.update(steps[job], completed=done, total=total, description=f"  {job} {note}"[:60])
            if done >= total:
                bars.remove_task(steps.pop(job))

        yield lambda: bars.advance(whole), on_step
