"""A lock that is had in the order in which it was asked for: who takes it again and again shuts nobody out.

Knows nothing of what it guards.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from types import TracebackType


class FairLock:
    """Whoever lets go hands it to the one that waits longest: it is never free for somebody who comes by just then."""

    def __init__(self) -> None:
        self.num_asked = 0  # for it, since the start
        self._changing = Lock()  # of all others
        self._taken = False
        self._waiting: deque[Lock] = deque()  # each is let go when its owner's turn has come

    def __enter__(self) -> None:
        with self._changing:
            self.num_asked += 1
            if not self._taken:
                self._taken = True
                return
            turn = Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:  # the main thread's wait may end with a KeyboardInterrupt
            self._give_up(turn)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changing:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._waiting:
            self._waiting.popleft().release()
        else:
            self._taken = False

    def _give_up(self, turn: Lock) -> None:
        with self._changing:
            if turn in self._waiting:
                self._waiting.remove(turn)
            else:  # it was its turn already
                self._hand_over()
