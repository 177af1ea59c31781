"""A lock that is had in the order in which it was asked for: who takes it again and again shuts nobody out."""

from __future__ import annotations

from threading import Lock
from types import TracebackType


class FairLock:
    """Whoever waits stands in the entrance, where the one that has just let go has to queue again."""

    def __init__(self) -> None:
        self._entrance, self._inside = Lock(), Lock()

    def __enter__(self) -> None:
        with self._entrance:
            self._inside.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inside.release()
