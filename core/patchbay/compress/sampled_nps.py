"""NPS with a sampled support: what is drawn from, how much of it, and which part of the bytes goes to singular vectors.

One search on the calibration inputs finds all of that: the share of the leading singular vectors, column weights,
region and scale, then every group's weight. Found at one density and used at any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property

from patchbay.compress.importance import column_scales
from patchbay.compress.leading import Allocation
from patchbay.compress.mixture import Choice, Mixture
from patchbay.compress.nps import optimizer_for, weight_params
from patchbay.compress.options import Options
from patchbay.compress.parts import Distils, Pruner
from patchbay.compress.problem import Problem
from patchbay.compress.prune import num_kept
from patchbay.compress.record import BudgetSpent
from patchbay.compress.sampled import Scales, region_weights
from patchbay.compress.search import Point, maximise

SCALES = (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
FIRST_SHARES = (0.25, 0.75)  # where the search for a share begins, with either allocation
ALLOCATIONS: tuple[Allocation, ...] = ("even", "energy")
SWEEP = 14  # evaluations of region and scale, at most
BOUNDS = (0.0, 4.0)


@dataclass
class SampledNps:
    """`choice` is what was found."""

    problem: Problem
    options: Options
    distils: Distils = "everything"
    choice: Choice | None = None
    _density: float | None = None
    _seen: dict[Choice, float] = field(default_factory=dict)

    def choose(self, density: float) -> None:
        """The share of singular vectors, and whether columns are weighed."""
        self.choice = self._mixture.rule(density)
        if self._is_searched(density):
            with suppress(BudgetSpent):
                self._score(self.choice, density)
                best = self._find_share(self.choice, density)
                if best.share < 1:
                    self._better(best, replace(best, columns=True), density)

    def tune(self, density: float) -> None:
        if self.choice is None:
            self.choose(density)
        best = self.choice
        assert best is not None
        if self._is_searched(density) and best.share < 1:
            with suppress(BudgetSpent):
                self._score(best, density)
                best = self._climb_region(best, density, min(SWEEP, self.problem.record.left // 2))
                self.choice = self._refine(best, density)

    def _is_searched(self, density: float) -> bool:
        """Whether there is anything to score. Scores are those of one density."""
        if density != self._density:
            self._density = density
            self._seen.clear()
        return self.problem.judge is not None and num_kept(density, self.problem.vector.numel) > 0

    def pruner(self, density: float) -> Pruner:
        return self._mixture.pruner(self.choice or self._mixture.rule(density), density)

    @property
    def params(self) -> Mapping[str, int | float | str | bool]:
        if self.choice is None:
            return {"support": "sampled"}
        found = self.choice
        leading = {"low_rank": found.share, "allocation": found.allocation} if found.share else {"low_rank": 0.0}
        return {"support": "sampled", "columns": found.columns, **leading, **weight_params(found.weights)}

    @cached_property
    def _mixture(self) -> Mixture:
        options = self.options
        return Mixture(self.problem.vector, options.groups, options.seed, options.values, self._column_scales)

    def _column_scales(self) -> Scales:
        assert self.problem.judge is not None, "columns are weighed on calibration inputs"
        return column_scales(self.problem.judge, self.problem.vector.names)

    def _climb_region(self, best: Choice, density: float, most: int) -> Choice:
        """Hill climbing on the grid of regions and scales, in about `most` evaluations."""
        last = len(self.problem.record.evaluations) + most
        moved = True
        while moved and len(self.problem.record.evaluations) < last:
            moved = False
            for inside, scale in self._neighbours(best, density):
                weights = region_weights(self.options.groups, inside, scale)
                there = self._better(best, replace(best, inside=inside, scale=scale, weights=weights), density)
                if there is not best:
                    best, moved = there, True
                    break
        return best

    def _neighbours(self, choice: Choice, density: float) -> Iterator[tuple[int, float]]:
        place, inside = SCALES.index(choice.scale), choice.inside
        yield from ((inside, SCALES[other]) for other in (place + 1, place - 1) if 0 <= other < len(SCALES))
        for other in (inside - 1, inside + 1):
            if other in self._mixture.regions(choice, density):
                yield other, choice.scale

    def _find_share(self, best: Choice, density: float) -> Choice:
        """Hill climbing from the best of four points, if one of them is better than no singular vectors."""
        for share in FIRST_SHARES:
            for allocation in ALLOCATIONS:
                best = self._better(best, self._mixture.beside(best, share, allocation, density), density)
        moved = best.share > 0
        while moved:
            place, before = SHARES.index(best.share), best
            for other in (place - 1, place + 1):
                if 1 <= other < len(SHARES):
                    there = self._mixture.beside(before, SHARES[other], before.allocation, density)
                    best = self._better(best, there, density)
            moved = best is not before
        return best

    def _refine(self, best: Choice, density: float) -> Choice:
        """All weights of the region, from the best point."""
        inside, budget = best.inside, self.problem.record.left
        if budget < 2 or inside < 2:
            return best
        outside = (0.0,) * (self.options.groups - inside)

        def score(weights: Point) -> float:
            return self._score(replace(best, weights=(*weights, *outside)), density)

        # The start was scored before: it costs nothing to ask for it again.
        found = maximise(
            score,
            best.weights[:inside],
            method=optimizer_for(self.options, inside),
            budget=budget + 1,
            bounds=BOUNDS,
            seed=self.options.seed,
        )
        return replace(best, weights=(*found.best.point, *outside))

    def _better(self, one: Choice, other: Choice, density: float) -> Choice:
        """`other` if its score is higher, or the first that is no NaN; what is left of a search that ends here."""
        self.choice = one
        score, before = self._score(other, density), self._score(one, density)
        if score > before or (math.isnan(before) and not math.isnan(score)):
            self.choice = other
        return self.choice

    def _score(self, choice: Choice, density: float) -> float:
        if choice not in self._seen:
            self._seen[choice] = self.problem.score(
                choice.point, lambda: self.problem.prune(self._mixture.pruner(choice, density))
            )
        return self._seen[choice]
