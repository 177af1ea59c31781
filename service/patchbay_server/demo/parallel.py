"""Fine-tunes side by side, one process and one thread each.

Threads inside one small training wait for each other at every operation: on a machine with other work they made it ten
times slower. Knows nothing of what is shown: progress comes out of a queue, and a callback takes it.
"""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from patchbay_server.demo.tasks import TASKS
from patchbay_server.demo.train import Training, finetune

WORKERS = 2
OnTask = Callable[[str, int, int, str], None]  # (task, steps done, steps in total, note)
_progress: Any = None


def finetune_all(base: Path, names: Sequence[str], out: Path, training: Training, on_progress: OnTask) -> None:
    """Fine-tunes `base` on every named task into `out / name`. What a process raises is raised here."""
    # Spawned, not forked: a fork of a process that has used torch's threads can hang.
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    with ProcessPoolExecutor(WORKERS, context, _start, (events,)) as pool:
        running = [pool.submit(_finetune, base, name, out / name, training) for name in names]
        while not all(future.done() for future in running):
            _forward(events, on_progress)
        for future in running:
            future.result()


def _start(events: Any) -> None:
    global _progress
    _progress = events
    torch.set_num_threads(1)


def _finetune(base: Path, name: str, out: Path, training: Training) -> None:
    task = next(task for task in TASKS if task.name == name)
    finetune(base, task, out, lambda *step: _progress.put((name, *step)), training=training)


def _forward(events: Any, on_progress: OnTask) -> None:
    try:
        on_progress(*events.get(timeout=0.2))
    except queue.Empty:
        return
