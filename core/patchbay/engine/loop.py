"""The thread that steps for as long as there is something to do, and another that notices when it dies.

Knows nothing of what a step is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Condition, Thread

logger = logging.getLogger(__name__)


class Loop:
    """Calls `step` until it returns False, and again whenever it is woken. What `step` raises ends the thread:
    `on_death` is called, and a new one starts, whatever that raises.
    """

    def __init__(self, step: Callable[[], bool], on_death: Callable[[], None]) -> None:
        self.restarts = 0
        self._step, self._on_death = step, on_death
        self._changed = Condition()
        self._awake = self._stopping = self._started = False
        self._worker = self._new_worker()
        self._watcher = Thread(target=self._watch, name="patchbay-watch", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether what is woken will step. The threads start when they are first needed."""
        return not self._started or self._worker.is_alive()

    def wake(self) -> None:
        with self._changed:
            if not self._started:
                self._started = True
                self._worker.start()
                self._watcher.start()
            self._awake = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Returns when the step under way is over."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._watcher.is_alive():
            self._watcher.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._awake or self._stopping)
                if self._stopping:
                    return
                self._awake = False
            while self._step() and not self._stopping:
                pass

    def _watch(self) -> None:
        while True:
            self._worker.join()
            if self._stopping:
                return
            self.restarts += 1
            logger.error("the engine's thread died: it is started again")
            try:
                self._on_death()
            except Exception:  # such as a caller who is gone and cannot be told: others will come
                logger.exception("not everybody could be told that the engine's thread died")
            self._worker = self._new_worker()
            self._worker.start()

    def _new_worker(self) -> Thread:
        return Thread(target=self._run, name="patchbay-engine", daemon=True)
