"""Who is next: which sequences get memory, and which of their tokens go into the next forward pass.

Knows nothing of models, threads and sampling: it counts tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, replace
from typing import Any

from patchbay.engine.recipes import Path
from patchbay.engine.sequence import Sequence
from patchbay.errors import QueueFull

MAX_SKIPPED = 32  # later ones that may be let in before one that memory has no room for
TURN_STEPS = 16  # forward passes of one group of sequences while others wait


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_running`: sequences in memory; `max_step`: tokens of one forward pass; `max_waiting`: in the queue.
    `whole_prompts`: a prompt is read in one pass, however long it is.
    """

    max_running: int = 32
    max_step: int = 512
    max_waiting: int = 1024
    whole_prompts: bool = False

    def for_whole_prompts(self) -> Limits:
        return replace(self, whole_prompts=True)


Turn = str | None  # the recipe that is patched in for it, or None for all that need no patch


class Scheduler:
    """`reserve(tokens)` gives memory or None. First come, first served, but that a short one may pass a long one which
    has to wait for memory, `MAX_SKIPPED` times at most.
    """

    def __init__(self, limits: Limits, reserve: Callable[[int], Any]) -> None:
        self.limits = limits
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._reserve = reserve
        self._turn: Turn = None
        self._steps = 0

    def add(self, sequences: Tokens[Sequence]) -> None:
        """All of them or none. Raises QueueFull."""
        if len(self.waiting) + len(sequences) > self.limits.max_waiting:
            raise QueueFull(f"{len(self.waiting)} texts are waiting already: ask again later")
        self.waiting.extend(sequences)

    def admit(self) -> list[Sequence]:
        """Those that have memory from now on."""
        admitted: list[Sequence] = []
        passed: list[Sequence] = []
        for sequence in tuple(self.waiting):
            if passed and passed[0].skipped >= MAX_SKIPPED:  # nobody was passed more often than the first
                break
            if len(self.running) >= self.limits.max_running:
                break
            sequence.place = self._reserve(sequence.num_reserved)
            if sequence.place is None:
                passed.append(sequence)
                continue
            for each in passed:
                each.skipped += 1
            self.waiting.remove(sequence)
            self.running.append(sequence)
            admitted.append(sequence)
        return admitted

    def remove(self, sequences: Iterable[Sequence]) -> None:
        gone = set(sequences)
        self.running = [sequence for sequence in self.running if sequence not in gone]
        if any(sequence in gone for sequence in self.waiting):
            self.waiting = deque(sequence for sequence in self.waiting if sequence not in gone)

    def turn(self) -> Turn:
        """Whose turn the next forward pass is, counting it: groups take turns of `TURN_STEPS`, in order of arrival."""
        groups = list(dict.fromkeys(map(turn_of, self.running)))
        if self._turn not in groups or (self._steps >= TURN_STEPS and len(groups) > 1):
            self._turn = _after(groups, self._turn)
            self._steps = 0
        self._steps += 1
        return self._turn

    def schedule(self, turn: Turn) -> list[tuple[Sequence, int]]:
        """The sequences of one forward pass and how many tokens of each: one of every answer under way, and as much of
        prompts as `max_step` leaves room for, the oldest first.
        """
        group = [sequence for sequence in self.running if turn_of(sequence) == turn]
        chosen = [(sequence, 1) for sequence in group if sequence.is_decoding]
        room = max(1, self.limits.max_step - len(chosen))
        for sequence in group:
            if not sequence.is_decoding and room > 0:
                count = sequence.num_tokens - sequence.computed
                count = count if self.limits.whole_prompts else min(room, count)
                chosen.append((sequence, count))
                room -= count
        return chosen


def turn_of(sequence: Sequence) -> Turn:
    ready = sequence.request.ready
    return ready.key if ready.path is Path.PATCHED else None


def _after(groups: Tokens[Turn], turn: Turn) -> Turn:
    if turn not in groups:
        return groups[0] if groups else None
    return groups[(groups.index(turn) + 1) % len(groups)]
