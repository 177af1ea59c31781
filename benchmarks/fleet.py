"""Replicas as a discrete-event simulation: requests arrive, wait for a delta that is not there, share a replica.

The choice among replicas is the service's own code (`patchbay_server.replicas.affinity`), told what replicas have once
a second, as there. A replica is processor sharing: of its `n` requests under way each goes `speed(n) / n` times as fast
as one alone, which is what one forward pass for all of them does. Knows nothing of processes and of HTTP.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from patchbay_server.replicas.affinity import Candidate, Held, rank

TOLD_EVERY_S = 1.0


class Policy(StrEnum):
    """Where a request goes: by `affinity`, or to whom has the least to do."""

    AFFINITY = "affinity"
    LEAST_LOAD = "least load"


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured of one replica. `alone_s`: a request by itself, its delta in memory. `speeds[k]`: requests that
    are finished a second with `2**k` under way, over those with one. `load_s`: reading and decoding a delta. `room`:
    deltas that fit into its memory. `capacity`: requests that it runs at a time.
    """

    alone_s: float
    speeds: tuple[float, ...]
    load_s: float
    delta_bytes: int
    room: int
    capacity: int = 32

    def speed(self, count: int) -> float:
        """Between two measurements on the line between them, beyond the last as that one."""
        place = math.log2(count)
        low = min(int(place), len(self.speeds) - 1)
        high = min(low + 1, len(self.speeds) - 1)
        return self.speeds[low] + (place - low) * (self.speeds[high] - self.speeds[low])

    @property
    def most_per_s(self) -> float:
        """Requests a second, deltas in memory."""
        return max(self.speeds) / self.alone_s


@dataclass(frozen=True, slots=True)
class Load:
    """Requests that arrive at random, `rate` a second, over `deltas` whose popularity is Zipf's with that exponent."""

    requests: int
    rate: float
    deltas: int
    exponent: float = 1.0
    seed: int = 0

    def draw(self) -> Iterator[tuple[float, int]]:
        """(second, delta), in order."""
        generator = random.Random(self.seed)
        weights = list(itertools.accumulate(1 / (rank + 1) ** self.exponent for rank in range(self.deltas)))
        at = 0.0
        for _ in range(self.requests):
            at += generator.expovariate(self.rate)
            yield at, generator.choices(range(self.deltas), cum_weights=weights)[0]


@dataclass(slots=True)
class Result:
    """Of every request its seconds, and of all of them how many found their delta, and how often one was loaded."""

    seconds: list[float] = field(default_factory=list)
    hits: int = 0
    loads: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / len(self.seconds)

    def percentile(self, percent: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))]


class _Replica:
    """Work is counted in seconds of a request alone: all under way have done equally much since they began together, so
    who is finished first is known when each begins.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.deltas: OrderedDict[int, float] = OrderedDict()  # and when each is there
        self.waiting = 0  # for a delta
        self._running: list[tuple[float, int]] = []  # by how much work all will have done when it is finished
        self._done, self._since = 0.0, 0.0
        self.version = 0

    @property
    def load(self) -> int:
        return len(self._running) + self.waiting

    def take(self, delta: int, now: float) -> tuple[float, bool]:
        """When the delta is there, and whether it had to be loaded."""
        there = self.deltas.get(delta)
        is_new = there is None
        if there is None:
            there = now + self._machine.load_s
        self.deltas[delta] = there
        self.deltas.move_to_end(delta)
        while len(self.deltas) > self._machine.room:
            self.deltas.popitem(last=False)
        return max(now, there), is_new

    def begin(self, request: int, now: float) -> None:
        self._work_until(now)
        heapq.heappush(self._running, (self._done + self._machine.alone_s, request))

    def next_end(self) -> float | None:
        """When the first is finished, if nobody comes."""
        if not self._running:
            return None
        count = len(self._running)
        return self._since + (self._running[0][0] - self._done) * count / self._machine.speed(count)

    def end(self, now: float) -> int:
        self._work_until(now)
        return heapq.heappop(self._running)[1]

    def _work_until(self, now: float) -> None:
        count = len(self._running)
        if count:
            self._done += (now - self._since) * self._machine.speed(count) / count
        self._since = now
        self.version += 1  # what was foreseen before is void


def simulate(machine: Machine, load: Load, replicas: int, policy: Policy = Policy.AFFINITY) -> Result:
    """All requests, from the first to the last answer."""
    return _Run(machine, load, replicas, policy).run()


class _Run:
    def __init__(self, machine: Machine, load: Load, replicas: int, policy: Policy) -> None:
        self._machine, self._policy = machine, policy
        self._replicas = [_Replica(machine) for _ in range(replicas)]
        self._now, self._told = 0.0, -math.inf
        self._held = Held(lambda: self._now)
        self._arrived: list[float] = []
        self._arrivals = load.draw()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._result = Result()

    def run(self) -> Result:
        self._await_arrival()
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        return self._result

    def _at(self, second: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (second, next(self._numbers), happen))

    def _await_arrival(self) -> None:
        found = next(self._arrivals, None)
        if found is not None:
            self._at(found[0], lambda: self._arrive(found[1]))

    def _arrive(self, delta: int) -> None:
        request = len(self._arrived)
        self._arrived.append(self._now)
        replica = self._replicas[self._choose(delta)]
        ready, is_new = replica.take(delta, self._now)
        self._result.loads += is_new
        self._result.hits += not is_new
        replica.waiting += 1
        self._at(ready, lambda: self._begin(replica, request))
        self._await_arrival()

    def _choose(self, delta: int) -> int:
        if self._policy is Policy.LEAST_LOAD:
            return min(range(len(self._replicas)), key=lambda number: self._replicas[number].load)
        self._tell()
        wanted = frozenset({str(delta)})
        chosen = int(rank(self._candidates(), wanted)[0].name)
        self._held.sent(str(chosen), wanted)
        return chosen

    def _candidates(self) -> Sequence[Candidate]:
        return [
            Candidate(str(number), self._held.of(str(number)), replica.load, self._machine.capacity)
            for number, replica in enumerate(self._replicas)
        ]

    def _tell(self) -> None:
        if self._now - self._told >= TOLD_EVERY_S:
            self._told = self._now
            for number, replica in enumerate(self._replicas):
                self._held.said(str(number), [str(delta) for delta, at in replica.deltas.items() if at <= self._now])

    def _begin(self, replica: _Replica, request: int) -> None:
        replica.waiting -= 1
        replica.begin(request, self._now)
        self._foresee(replica)

    def _foresee(self, replica: _Replica) -> None:
        end, version = replica.next_end(), replica.version
        if end is not None:
            self._at(end, lambda: self._end(replica, version))

    def _end(self, replica: _Replica, version: int) -> None:
        if version == replica.version:
            self._result.seconds.append(self._now - self._arrived[replica.end(self._now)])
            self._foresee(replica)
