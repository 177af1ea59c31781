"""Which replica should answer: one that has the deltas already, unless it is overloaded. Knows no Ray and no HTTP.

A replica is overloaded when as many requests are under way at it as it runs at a time, and more than twice as many as
at the idlest one: then loading a delta once more, at another, costs less than waiting, and from then on two have it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

SENT_S = 10.0
"""How long a delta counts as held by whom a request for it was sent to, whatever that one says: it may be loading."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica: the deltas that it has, the requests under way at it, and how many it runs at a time."""

    name: str
    deltas: Collection[str]
    load: int
    capacity: int


class Outcome(StrEnum):
    """Why a request went where it did: it needs no delta, all of its deltas were there, they were nowhere all together,
    or they were where there was too much to do.
    """

    ANY = "any"
    HIT = "hit"
    COLD = "cold"
    SPILLED = "spilled"


@dataclass(slots=True)
class Wanted:
    """What a request needs; `outcome` is written by whoever chooses for it."""

    deltas: frozenset[str] = frozenset()
    outcome: Outcome = Outcome.ANY


def rank(candidates: Sequence[Candidate], wanted: frozenset[str]) -> list[Candidate]:
    """The best first: not overloaded; most of what is wanted; least load; fewest deltas. Where all of that is equal,
    what is wanted decides, so that two who choose at once choose the same.
    """
    idlest = min((candidate.load for candidate in candidates), default=0)

    def cost(candidate: Candidate) -> tuple[bool, int, int, int, bytes]:
        overloaded = candidate.load >= candidate.capacity and candidate.load > 2 * idlest
        missing = sum(delta not in candidate.deltas for delta in wanted)
        return overloaded, missing, candidate.load, len(candidate.deltas), _draw(candidate.name, wanted)

    return sorted(candidates, key=cost)


def outcome_of(chosen: Candidate, candidates: Iterable[Candidate], wanted: frozenset[str]) -> Outcome:
    if not wanted:
        return Outcome.ANY
    if wanted.issubset(chosen.deltas):
        return Outcome.HIT
    return Outcome.SPILLED if any(wanted.issubset(other.deltas) for other in candidates) else Outcome.COLD


def _draw(name: str, wanted: frozenset[str]) -> bytes:
    return hashlib.sha256("\n".join([name, *sorted(wanted)]).encode()).digest()


@dataclass(slots=True)
class _Told:
    deltas: Sequence[str] = ()
    known: frozenset[str] = frozenset()
    sent: dict[str, float] = field(default_factory=dict)


class Held:
    """Which deltas each replica has: what it said last, and what it was sent since then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._replicas: dict[str, _Told] = {}

    def said(self, name: str, deltas: Sequence[str]) -> None:
        """The same list again is no news, and costs nothing."""
        told = self._replicas.setdefault(name, _Told())
        if told.deltas is not deltas:
            told.deltas, told.known = deltas, frozenset(deltas)

    def sent(self, name: str, wanted: Iterable[str]) -> None:
        """A request for these goes there."""
        told = self._replicas.setdefault(name, _Told())
        told.sent.update(dict.fromkeys((delta for delta in wanted if delta not in told.known), self._clock()))

    def of(self, name: str) -> frozenset[str]:
        told = self._replicas.get(name)
        if told is None:
            return frozenset()
        if not told.sent:
            return told.known
        since = self._clock() - SENT_S
        told.sent = {delta: at for delta, at in told.sent.items() if at > since and delta not in told.known}
        return told.known.union(told.sent)

    def keep(self, names: Collection[str]) -> None:
        """The others are gone, and what they had with them."""
        for name in self._replicas.keys() - set(names):
            del self._replicas[name]
