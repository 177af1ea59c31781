"""In idle moments: is what lies in memory still, bit for bit, what was put there?

Memory fails and code has bugs, and a wrong bit shows in no answer. The base is compared with the digest of its load,
everything else with its own of the first round that found it. Knows nothing of requests and of how anything is made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from threading import Event, Thread
from typing import Any
from weakref import ReferenceType, ref

import torch

from patchbay.backbone import Backbone
from patchbay.checkpoint import byte_pieces
from patchbay.engine.lock import FairLock
from patchbay.engine.pool import Pool

QUIET_S = 0.5  # without a forward pass, and nobody is likely to come just now
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """What was found of an object, for as long as it is there."""

    owner: ReferenceType[Any]
    digest: bytes


class Integrity:
    """`lock` is of the resident weights. Every `every` seconds, where nobody asks for them, a round goes on until
    somebody does: they wait for one piece at the most. With 0 nothing is checked but by who takes `steps`.

    In the thread that checks, `distrust_base` is told that the weights are wrong, and `distrust` under which key
    something in one of `pools` is.
    """

    def __init__(
        self,
        backbone: Backbone,
        lock: FairLock,
        pools: Sequence[Pool[Any]],
        *,
        distrust_base: Callable[[], None],
        distrust: Callable[[str], None],
        every: float = 0,
    ) -> None:
        self.num_rounds = 0  # that are over
        self.num_failures = 0  # things that were not what they had been
        self._backbone, self._lock, self._pools = backbone, lock, pools
        self._distrust_base, self._distrust = distrust_base, distrust
        self._every = every
        self._is_base_lost = False
        self._known: dict[tuple[int, str], Known] = {}
        self._own = 0  # times that this asked for the lock
        self._stopping = Event()
        self._thread = Thread(target=self._run, name="patchbay-integrity", daemon=True)
        if every:
            self._thread.start()

    def stop(self) -> None:
        """Returns when the piece under way is hashed."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def steps(self) -> Iterator[None]:
        """One round, a piece of a megabyte at the most a step."""
        if not self._is_base_lost:
            yield from self._check_base()
        for number, pool in enumerate(self._pools):
            for key in pool.keys:  # not the values: between two steps anything may be thrown out
                value = pool.peek(key)
                if value is not None:
                    yield from self._check(number, key, value)
        self._known = {place: known for place, known in self._known.items() if known.owner() is not None}
        self.num_rounds += 1

    def _run(self) -> None:
        steps = self.steps()
        while not self._stopping.wait(self._every):
            try:
                if self._advance(steps):
                    steps = self.steps()
            except Exception:  # such as a pinned delta that cannot be loaded again
                logger.exception("a check of what is in memory failed")
                steps = self.steps()

    def _advance(self, steps: Iterator[None]) -> bool:
        """Goes on for as long as nobody asks. Whether the round is over."""
        before = self._asked_by_others
        if self._stopping.wait(QUIET_S):
            return False
        while self._asked_by_others == before and not self._stopping.is_set():
            if next(steps, self) is self:
                return True
        return False

    @property
    def _asked_by_others(self) -> int:
        return self._lock.num_asked - self._own

    def _check_base(self) -> Iterator[None]:
        digest, pieces = hashlib.sha256(), self._backbone.pieces()
        while True:
            self._own += 1
            with self._lock:  # outside of it somebody's patch may be applied
                piece = next(pieces, None)
                if piece is None:
                    break
                digest.update(piece)
            yield
        if f"sha256:{digest.hexdigest()}" != self._backbone.resident_digest:
            self._is_base_lost = True
            self._distrust_base()
            self.num_failures += 1  # whoever sees the count finds that nothing is answered
            logger.critical("the resident weights are not what was loaded: nothing is answered any more; restart")

    def _check(self, pool: int, key: str, value: object) -> Iterator[None]:
        digest = hashlib.sha256()
        for tensor in tensors_of(value):
            for piece in byte_pieces(tensor):
                digest.update(piece)
                yield
        known = self._known.get((pool, key))
        if known is None or known.owner() is not value:
            self._known[pool, key] = Known(ref(value), digest.digest())
        elif known.digest != digest.digest():
            self.num_failures += 1
            logger.error("%s %s has changed in memory: it is dropped and made anew", type(value).__name__, key)
            self._distrust(key)


def tensors_of(thing: object) -> Iterator[torch.Tensor]:
    """All that it holds, however deep, in an order of its own. A sparse tensor's memory is that of others beside it."""
    if isinstance(thing, torch.Tensor):
        if thing.layout is torch.strided:
            yield thing
    elif isinstance(thing, Mapping):
        for value in thing.values():
            yield from tensors_of(value)
    elif isinstance(thing, tuple | list):
        for value in thing:
            yield from tensors_of(value)
    elif is_dataclass(thing) and not isinstance(thing, type):
        for each in fields(thing):
            yield from tensors_of(getattr(thing, each.name))
