"""Trainings side by side, one process and one thread each.

Threads inside one small training wait for each other at every operation: on a machine with other work they made it ten
times slower. Knows nothing of what is trained, and of what is shown: progress comes out of a queue, and a callback
takes it.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from patchbay_server.demo.display import Step

WORKERS = 2
OnStep = Callable[[str, int, int, str], None]  # (name, steps done, steps in total, note)
_progress: Any = None


def side_by_side(work: Callable[[str, Step], None], names: Sequence[str], on_step: OnStep) -> None:
    """`work(name, step)` for every name; `work` is pickled. What a process raises is raised here."""
    # Spawned, not forked: a fork of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    with ProcessPoolExecutor(WORKERS, context, _start, (events,)) as pool:
        running = [pool.submit(_one, work, name) for name in names]
        while not all(future.done() for future in running):
            _forward(events, on_step)
        for future in running:
            future.result()


def _start(events: Any) -> None:
    global _progress
    _progress = events
    torch.set_num_threads(1)


def _one(work: Callable[[str, Step], None], name: str) -> None:
    work(name, lambda *step: _progress.put((name, *step)))


def _forward(events: Any, on_step: OnStep) -> None:
    try:
        on_step(*events.get(timeout=0.2))
    except queue.Empty:
        return
