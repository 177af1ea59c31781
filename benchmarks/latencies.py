"""What the times of tokens say: when answers began, went on and ended, and how many of them were soon enough.

An answer is soon enough where the first token takes at most five times as long as on the base alone and unloaded,
and each later one at most twice as long. Knows no system and no table.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Times = Sequence[float]  # of an answer's tokens, seconds after the start
PERCENTS = (50, 95, 99)
FIRST, LATER = 5.0, 2.0  # times the unloaded base's


@dataclass(frozen=True, slots=True)
class Objective:
    """The most that a first token may take, and each later one on average; seconds."""

    first: float
    later: float

    @classmethod
    def beside(cls, unloaded: Sequence[Times]) -> Objective:
        """From answers that the base gave one at a time, each asked for at 0: their medians."""
        first = statistics.median(times[0] for times in unloaded)
        return cls(FIRST * first, LATER * statistics.median(map(per_token, unloaded)))

    def is_met(self, times: Times, arrival: float) -> bool:
        return times[0] - arrival <= self.first and per_token(times) <= self.later


def per_token(times: Times) -> float:
    """Seconds of a token behind the first, on average; 0 where there is none."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


def goodput(served: Sequence[Times], arrivals: Sequence[float], objective: Objective) -> float:
    """Answers a second that met the objective, from the start to the last token of all."""
    met = sum(objective.is_met(*pair) for pair in zip(served, arrivals, strict=True))
    return met / max(times[-1] for times in served)


def latencies(rounds: Sequence[Sequence[Times]], arrivals: Sequence[float]) -> dict[str, dict[str, float]]:
    """Percentiles over all answers of all rounds, seconds: `ttft` to the first token, `itl` between two that follow
    each other, `e2e` to the last.
    """
    answers = [pair for served in rounds for pair in zip(served, arrivals, strict=True)]
    return {
        "ttft": _percentiles([times[0] - at for times, at in answers]),
        "itl": _percentiles([after - before for times, _ in answers for before, after in pairwise(times)]),
        "e2e": _percentiles([times[-1] - at for times, at in answers]),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{percent}": _at(values, percent) for percent in PERCENTS}


def _at(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))] if ordered else 0.0


def shown(percentiles: Mapping[str, float], unit: float, digits: int, percents: Sequence[int] = PERCENTS) -> str:
    """`12 / 34 / 56`, in units of `unit` seconds."""
    return " / ".join(f"{percentiles[f'p{percent}'] / unit:.{digits}f}" for percent in percents)
