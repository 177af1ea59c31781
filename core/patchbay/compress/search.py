"""Gradient-free maximisation of a score that is expensive to evaluate, such as the accuracy of a pruned model.

Both methods stand behind one ask/tell contract. A run that was cut off is resumed by replaying its recorded scores, so
nothing but points and scores is ever kept. Knows nothing of models, deltas and calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cma  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, minimize  # type: ignore[import-untyped]

from patchbay.errors import InvalidRecipe

Point = tuple[float, ...]
Interval = tuple[float, float]
Vector = npt.NDArray[np.float64]

# The published runs used bounds of width 3.8 and first steps of .6333, a sixth of it: the unit of both methods.
DEFAULT_BOUNDS: Interval = (0.1, 3.9)
UNITS = 6
COBYLA_FINAL_STEP = 1e-3  # units; weights that differ by less have the same score
COBYLA_MAX_EVALUATIONS = 10_000  # `budget` ends a run. This one is fixed, because a run must not depend on its budget
CMAES_SIGMA = 0.3 / 3.8 * UNITS  # units; .3 in the default bounds
COST_LIMIT = 1e30


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A point and its score; higher is better. A score that is not finite counts as worse than all finite ones."""

    point: Point
    score: float


@dataclass(frozen=True, slots=True)
class SearchResult:
    """`best` is the evaluated point with the highest score, the first among equals."""

    best: Evaluation
    evaluations: tuple[Evaluation, ...]


class Search(Protocol):
    """One maximisation. The first point asked is the start; all points are within the bounds."""

    def ask(self) -> Point | None:
        """The point whose score is wanted next, the same one until it is told; None when the method has converged."""
        ...

    def tell(self, score: float) -> None:
        """The score of the asked point. Raises InvalidRecipe when none is wanted any more."""
        ...


class Cobyla:
    """Constrained optimisation by linear approximation (Powell, 1994): few evaluations, one coordinate at a time first.

    SciPy's interface is a callback, so every `ask` runs the method again on the scores known so far, up to its first
    unknown point. It is deterministic and takes about 1 ms an evaluation.
    """

    def __init__(self, start: Sequence[float], bounds: Interval | Sequence[Interval] = DEFAULT_BOUNDS) -> None:
        self._box = _Box.of(start, bounds)
        self._scores: list[float] = []
        self._costs: list[float] = []
        self._next: Point | None = self._replay()

    def ask(self) -> Point | None:
        return self._next

    def tell(self, score: float) -> None:
        _check_asked(self._next)
        self._scores.append(score)
        self._costs.append(_costs(self._scores)[-1])  # of what was known then, so that a replay sees the same
        self._next = self._replay()

    def _replay(self) -> Point | None:
        known = iter(self._costs)

        def cost(steps: Vector) -> float:
            try:
                return next(known)
            except StopIteration:
                raise _Unknown(self._box.point(steps)) from None

        options = {"rhobeg": 1.0, "tol": COBYLA_FINAL_STEP, "maxiter": COBYLA_MAX_EVALUATIONS}
        bounds = Bounds(*self._box.limits)
        try:
            with np.errstate(all="ignore"):
                minimize(cost, np.zeros_like(self._box.start), method="COBYLA", bounds=bounds, options=options)
        except _Unknown as unknown:
            return unknown.point
        return None


class CmaEs:
    """Covariance matrix adaptation evolution strategy (Hansen, 2016), generations of 4 + floor(3 ln n) points.

    The start is evaluated before the first generation and not told to it. Draws from a generator of its own.
    Raises InvalidRecipe for a single variable, which the method does not have.
    """

    def __init__(
        self, start: Sequence[float], bounds: Interval | Sequence[Interval] = DEFAULT_BOUNDS, *, seed: int = 0
    ) -> None:
        self._box = _Box.of(start, bounds)
        if len(self._box.start) < 2:
            raise InvalidRecipe("cmaes needs two variables or more; search a single one with cobyla", param="method")
        self._strategy = _strategy(self._box, seed)
        self._scores: list[float] = []
        self._generation: list[Vector] = []
        self._wanted: list[Point] = [self._box.point(np.zeros_like(self._box.start))]

    def ask(self) -> Point | None:
        return self._wanted[0] if self._wanted else None

    def tell(self, score: float) -> None:
        _check_asked(self.ask())
        self._wanted.pop(0)
        self._scores.append(score)
        if not self._wanted:
            with np.errstate(all="ignore"):
                self._advance()

    def _advance(self) -> None:
        if self._generation:
            self._strategy.tell(self._generation, _costs(self._scores)[-len(self._generation) :])
        if not self._strategy.stop():
            self._generation = self._strategy.ask()
            self._wanted = [self._box.point(steps) for steps in self._generation]


Method = Literal["cobyla", "cmaes"]
METHODS: Mapping[str, Callable[[Sequence[float], Interval | Sequence[Interval], int], Search]] = {
    "cobyla": lambda start, bounds, seed: Cobyla(start, bounds),
    "cmaes": lambda start, bounds, seed: CmaEs(start, bounds, seed=seed),
}


def maximise(
    function: Callable[[Point], float],
    start: Sequence[float],
    *,
    method: Method,
    budget: int,
    bounds: Interval | Sequence[Interval] = DEFAULT_BOUNDS,
    seed: int = 0,
    history: Sequence[Evaluation] = (),
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """The best of at most `budget` evaluations of `function`, the first of them at `start`.

    `bounds` are one (lower, upper) for all variables or one for each. `history`, the first evaluations of an earlier
    run with the same arguments, counts towards the budget and is not evaluated again; the run goes on as if it had
    never stopped. `on_evaluation` sees each new evaluation. COBYLA draws nothing at random, so `seed` is CMA-ES's.
    Raises InvalidRecipe for arguments without a meaning and for a history that these arguments do not produce.
    """
    if method not in METHODS:
        raise InvalidRecipe(f"there is no search {method!r}; the methods are {', '.join(METHODS)}", param="method")
    if budget < max(1, len(history)):
        raise InvalidRecipe(f"a budget of {budget} evaluations, {len(history)} of them used already", param="budget")
    search = METHODS[method](start, bounds, seed)
    _replay(search, history)
    evaluations = list(history)
    while len(evaluations) < budget and (point := search.ask()) is not None:
        evaluations.append(Evaluation(point, float(function(point))))
        search.tell(evaluations[-1].score)
        if on_evaluation:
            on_evaluation(evaluations[-1])
    return SearchResult(max(evaluations, key=_rank), tuple(evaluations))


def _replay(search: Search, history: Sequence[Evaluation]) -> None:
    for number, evaluation in enumerate(history):
        point = search.ask()
        if point != tuple(evaluation.point):
            raise InvalidRecipe(
                f"evaluation {number} of the history is at {evaluation.point}, but this search is at {point}: the "
                "history was made with other options or another version of the library; start without it",
                param="history",
            )
        search.tell(evaluation.score)


@dataclass(frozen=True, slots=True)
class _Box:
    """The bounds as both methods see them: steps from the start, in units of a sixth of each variable's range."""

    start: Vector
    lower: Vector
    upper: Vector

    @classmethod
    def of(cls, start: Sequence[float], bounds: Interval | Sequence[Interval]) -> _Box:
        origin = np.array(start, np.float64)
        if origin.ndim != 1 or not len(origin):
            raise InvalidRecipe("a search starts at a list of at least one number", param="start")
        if np.shape(bounds) not in ((2,), (len(origin), 2)):
            raise InvalidRecipe(f"bounds are one (lower, upper) or {len(origin)} of them", param="bounds")
        lower, upper = np.broadcast_to(np.array(bounds, np.float64), (len(origin), 2)).T
        if not (np.isfinite([lower, upper]).all() and (lower < upper).all()):
            raise InvalidRecipe("every lower bound must be below its upper bound, and both finite", param="bounds")
        if not ((lower <= origin) & (origin <= upper)).all():
            raise InvalidRecipe(f"the start {tuple(start)} is outside the bounds", param="start")
        return cls(origin, lower, upper)

    @property
    def limits(self) -> tuple[Vector, Vector]:
        """The bounds in steps."""
        unit = (self.upper - self.lower) / UNITS
        return (self.lower - self.start) / unit, (self.upper - self.start) / unit

    def point(self, steps: Vector) -> Point:
        """Inside the bounds, also where the method steps over them."""
        there = self.start + steps * (self.upper - self.lower) / UNITS
        return tuple(np.clip(there, self.lower, self.upper).tolist())


class _Unknown(Exception):
    """Ends a replay at the first point without a score."""

    def __init__(self, point: Point) -> None:
        super().__init__(point)
        self.point = point


def _strategy(box: _Box, seed: int) -> cma.CMAEvolutionStrategy:
    generator = np.random.default_rng(seed)
    options = {
        # By default the library seeds and draws from NumPy's global generator, which all threads share.
        "seed": math.nan,
        "randn": lambda *shape: generator.standard_normal(shape),
        "bounds": [limit.tolist() for limit in box.limits],
        "popsize": 4 + int(3 * math.log(len(box.start))),
        "verbose": -9,
        "verb_log": 0,
        "signals_filename": "",  # else it reads options from a file in the working directory
    }
    with np.errstate(all="ignore"):
        return cma.CMAEvolutionStrategy(np.zeros_like(box.start), CMAES_SIGMA, options)


def _costs(scores: Sequence[float]) -> list[float]:
    """What the methods minimise. A score that is not finite costs clearly more than all finite ones so far."""
    finite = [min(max(-score, -COST_LIMIT), COST_LIMIT) for score in scores if math.isfinite(score)]
    highest, lowest = max(finite, default=0.0), min(finite, default=0.0)
    penalty = highest + max(1.0, highest - lowest)
    known = iter(finite)
    return [next(known) if math.isfinite(score) else penalty for score in scores]


def _rank(evaluation: Evaluation) -> float:
    return evaluation.score if math.isfinite(evaluation.score) else -math.inf


def _check_asked(point: Point | None) -> None:
    if point is None:
        raise InvalidRecipe("the search has converged and wants no more scores", param="score")
