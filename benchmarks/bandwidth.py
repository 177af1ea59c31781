"""How fast this machine moves bytes: in memory, from the page cache, and to its storage and back.

What swaps checkpoints is bound by these, so they stand beside its numbers. Knows nothing of models.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.results import Line

COPIED = 256 << 20  # bytes: more than any cache of a processor holds
PIECE = 8 << 20
REPETITIONS = 5


def bandwidths(checkpoint: Path, folder: Path) -> Line:
    """Bytes a second, as fields of a line: of memory, of reading the checkpoint from the page cache, of writing it to
    `folder` and of reading it back from there.
    """
    written, read = storage(checkpoint, folder)
    return {
        "memory_bytes_s": memory(),
        "cached_read_bytes_s": cached_read(checkpoint),
        "write_bytes_s": written,
        "read_bytes_s": read,
    }


def memory(num_bytes: int = COPIED) -> float:
    """Bytes read and written a second by copying `num_bytes`, with torch's threads; the median of five."""
    source = torch.ones(num_bytes, dtype=torch.uint8)
    target = torch.empty_like(source)
    target.copy_(source)  # pages are there from now on
    return 2 * num_bytes / _median(lambda: target.copy_(source))


def cached_read(file: Path) -> float:
    """Bytes a second of reading a file that has just been read; the median of five."""
    _read(file)
    return file.stat().st_size / _median(lambda: _read(file))


def storage(source: Path, folder: Path) -> tuple[float, float | None]:
    """Bytes a second of writing a copy of `source` into `folder`, until it is on the storage, and of reading the copy
    when the page cache has dropped it: None where this system cannot be asked to. The copy is removed.

    A folder in memory drops nothing, and a virtual machine's host may keep what the machine has dropped.
    """
    data = source.read_bytes()
    copy = folder / f".bandwidth-{os.getpid()}"
    try:
        start = time.perf_counter()
        with copy.open("wb", buffering=0) as out:
            for at in range(0, len(data), PIECE):
                out.write(data[at : at + PIECE])
            os.fsync(out.fileno())
        written = len(data) / (time.perf_counter() - start)
        if not _drop(copy):
            return written, None
        return written, len(data) / _seconds(lambda: _read(copy))
    finally:
        copy.unlink(missing_ok=True)


def _drop(file: Path) -> bool:
    if not hasattr(os, "posix_fadvise"):
        return False
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _read(file: Path) -> int:
    """All of it, into the same memory piece by piece; how many bytes that were."""
    piece, total = memoryview(bytearray(PIECE)), 0
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(piece):
            total += count
    return total


def _median(act: Callable[[], object]) -> float:
    return statistics.median(_seconds(act) for _ in range(REPETITIONS))


def _seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
