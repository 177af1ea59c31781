"""Locks on files (flock) among threads and processes of one host. Knows nothing of what they protect.

The kernel drops a lock when its holder dies, however it dies, so no lock is ever left over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits for the lock on a file, which is made if it does not exist. Raises OSError."""
    lock = take_lock(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        os.close(lock)


def take_lock(path: Path, *, wait: bool) -> int | None:
    """Open and lock a file; its descriptor, which holds the lock until it is closed, or None if someone else holds it.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
