"""Damages valid files and reads what comes of it, in children of their own: what is no `DeltaError` is a bug.

A program: `python -m tests.attacks.mutate COUNT [FIRST]` prints a JSON line a batch. A mutation is its number: the same
number is the same bytes. Knows nothing of what is expected.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests.attacks.mutations import MUTATIONS, SAMPLES

from patchbay.delta import Delta, read_delta
from patchbay.errors import DeltaError

BATCH = 500
MEMORY = Path("/dev/shm")  # files without a disk
HANG_S = 60  # of a single file, after which the child is killed
MORE_MEMORY = 1 << 30  # address space of a child beside what it starts with: a bomb fails instead of swapping
MAX_FILE = 16 << 20


def mutated(number: int) -> tuple[str, str, bytes]:
    """The sample, the kind of damage, and the file."""
    source = random.Random(number)
    sample, kind = source.choice(SAMPLES), source.choice(sorted(MUTATIONS))
    return sample.name, kind, MUTATIONS[kind](sample, source)


def outcome(number: int, path: Path) -> tuple[str, str]:
    """How it ended, and the story where it should not have."""
    name, kind, data = mutated(number)
    sample = next(sample for sample in SAMPLES if sample.name == name)
    path.write_bytes(data)
    try:
        delta = read_delta(path, sample.specs, sample.fingerprint, MAX_FILE, read_base=sample.read_base)
        assert is_sound(delta), "it decoded to what is not allowed"
    except DeltaError as error:
        sound = bool(error.param) and len(error.message) < 1000
        return (type(error).__name__, "") if sound else ("crash", f"{number} ({name}, {kind}): {error.message!r}")
    except BaseException:
        return "crash", f"{number} ({name}, {kind}): {traceback.format_exc()}"
    return "accepted", ""


def is_sound(delta: Delta) -> bool:
    """Positions rise and stay inside, and what was pruned is finite: what execution relies on without looking."""
    for rows in delta.matrices.values():
        positions = rows.positions.long()
        inside = not len(positions) or (positions[0] >= 0 and positions[-1] < torch.Size(rows.shape).numel())
        if not inside or not positions.diff().gt(0).all() or not torch.isfinite(rows.values).all():
            return False
    return all(torch.isfinite(vector).all() for vector in delta.vectors.values())


def read_batch(first: int, count: int) -> dict[str, object]:
    found: Counter[str] = Counter()
    stories, slowest = [], 0.0
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        for number in range(first, first + count):
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            started = time.process_time()
            end, story = outcome(number, Path(folder) / "mutated")
            slowest = max(slowest, time.process_time() - started)
            found[end] += 1
            stories += [story] if story else []
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    return {"first": first, "found": found, "slowest_s": slowest, "peak": peak, "stories": stories[:5]}


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MORE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def run(count: int, first: int, tell: Callable[[dict[str, Any]], None]) -> None:
    for start in range(first, first + count, BATCH):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            limit_memory()
            with os.fdopen(write_end, "w") as pipe:
                json.dump(read_batch(start, min(BATCH, first + count - start)), pipe)
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        tell(json.loads(said) if status == 0 else {"first": start, "died": status})


if __name__ == "__main__":
    run(
        int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, lambda line: print(json.dumps(line), flush=True)
    )
