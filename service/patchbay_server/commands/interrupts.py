"""Ctrl-C and SIGTERM while something runs that should end with a whole step. Knows nothing of what runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STDERR = 2


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """Yields whether to stop: the first signal only says so, and that it does; the second is a KeyboardInterrupt."""
    is_asked = False

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked:
            raise KeyboardInterrupt
        is_asked = True
        # Not print: the signal may have come in the middle of one.
        os.write(STDERR, b"stopping after this step; once more stops at once\n")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: is_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
