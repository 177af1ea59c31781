"""The learning rate of every step (paper, table 13). Knows nothing of optimisers."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 0.15


@dataclass(frozen=True, slots=True)
class Schedule:
    """One cycle over `cycle` steps: from `highest / first_division` up to `highest` in 15 % of them, and down to
    `highest / first_division / last_division`, each along half a cosine; then `rest` steps from where the cycle began
    to `lowest`. The paper lists both and not how they go together; with the second as long as the first they add up to
    its number of steps.
    """

    cycle: int
    rest: int
    highest: float = 3e-4
    first_division: float = 25.0
    last_division: float = 1e4
    lowest: float = 1e-5

    @property
    def steps(self) -> int:
        return self.cycle + self.rest

    def rate(self, step: int) -> float:
        """Of the step with this number, from 0."""
        begin = self.highest / self.first_division
        if step >= self.cycle:
            return _along(begin, min(self.lowest, begin), step - self.cycle, self.rest)
        top = max(1, round(WARM_UP * self.cycle) - 1)
        if step <= top:
            return _along(begin, self.highest, step, top)
        return _along(self.highest, begin / self.last_division, step - top, max(1, self.cycle - 1 - top))


def _along(begin: float, end: float, step: int, steps: int) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))) / 2
