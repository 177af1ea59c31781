"""The evaluations of a run: made once, remembered, and replayed when a run that was cut off is repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from patchbay.compress.parts import Progress
from patchbay.compress.search import Evaluation, Point
from patchbay.errors import InvalidRecipe


class BudgetSpent(Exception):
    """Private to this room: no evaluation is left."""


@dataclass
class Record:
    """Counts evaluations against `budget`. The first ones come from `history`, in order, without computing anything but
    the first of them, to see that it was made with the same inputs.

    A run is deterministic, so a point that differs from the recorded one means other options or versions, and another
    first score other inputs: InvalidRecipe.
    """

    budget: int
    history: Sequence[Evaluation] = ()
    on_evaluation: Callable[[Evaluation], None] | None = None
    on_progress: Progress | None = None
    evaluations: list[Evaluation] = field(default_factory=list)

    def __call__(self, point: Point, score: Callable[[], float]) -> float:
        if len(self.evaluations) >= self.budget:
            raise BudgetSpent
        index = len(self.evaluations)
        if index < len(self.history):
            evaluation = Evaluation(point, self.history[index].score)
            if tuple(self.history[index].point) != point:
                raise _changed(index, "is of another point than this run asks for")
            if index == 0 and not _close(score(), evaluation.score):
                raise _changed(index, "has another score than this run gets")
        else:
            evaluation = Evaluation(point, score())
            if self.on_evaluation:
                self.on_evaluation(evaluation)
        self.evaluations.append(evaluation)
        if self.on_progress:
            self.on_progress(index + 1, self.budget, f"evaluation {index + 1}, best score {self.best_score:.4g}")
        return evaluation.score

    @property
    def left(self) -> int:
        return self.budget - len(self.evaluations)

    @property
    def best_score(self) -> float | None:
        """NaN only where all are: no other score is larger than NaN, nor smaller."""
        scores = [e.score for e in self.evaluations]
        return max((score for score in scores if not math.isnan(score)), default=scores[0] if scores else None)


def _close(one: float, other: float) -> bool:
    """Up to the rounding of another machine."""
    return math.isclose(one, other, rel_tol=1e-2, abs_tol=1e-6) or not (math.isfinite(one) or math.isfinite(other))


def _changed(index: int, how: str) -> InvalidRecipe:
    return InvalidRecipe(
        f"evaluation {index} of the history {how}: the inputs, options or library versions have changed; start again "
        "without it",
        param="history",
    )
