"""NPS-Pruning (arXiv 2505.18713): weights of magnitude groups, searched without gradients, then pruning.

The paper speaks of low-rank subspaces; its algorithm has none. A "subspace" is the part of the task vector whose
magnitudes rank in one interval: M vectors with disjoint supports whose sum is the task vector, each with one scalar
weight. The pruned vector is scored at every evaluation, and the best evaluated point is what is returned.
`TopkNps` is the published form, `SampledNps` ours (see `sampled`). Weights are tuned at one density and used at any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from patchbay.compress.importance import column_scales
from patchbay.compress.options import Optimizer, Options
from patchbay.compress.parts import Distils, Part, Pruner, SparsePart
from patchbay.compress.problem import Problem
from patchbay.compress.prune import KeepLargest, num_kept
from patchbay.compress.record import BudgetSpent
from patchbay.compress.region import Regions
from patchbay.compress.sampled import Sampled, region_weights
from patchbay.compress.sampling import geometric_bounds
from patchbay.compress.search import Point, maximise
from patchbay.delta import SparseRows

SCALES = (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SWEEP = 14  # evaluations of region and scale before the weights are searched one by one
SAMPLED_BOUNDS = (0.0, 4.0)


@dataclass
class TopkNps:
    """The published form. `scope` "retained" cuts the kept entries into groups of equal count, "all" the whole vector,
    whose top K after re-weighting are then kept (spec A1).
    """

    problem: Problem
    options: Options
    distils: Distils = "nothing"
    weights: Point = ()

    def __post_init__(self) -> None:
        self.weights = (1.0,) * self.options.groups

    def tune(self, density: float) -> None:
        keep = num_kept(density, self.problem.vector.numel)
        if self.problem.judge is None or keep == 0 or self.problem.record.left == 0:
            return
        kept = self._kept(keep) if self.options.scope == "retained" else None

        def parts(weights: Point) -> dict[str, Part]:
            rows = self._reweighted(kept, weights) if kept else self._from_all(weights, keep)
            return {name: SparsePart(part, self.values) for name, part in rows}

        found = maximise(
            lambda weights: self.problem.score(weights, lambda: parts(weights)),
            self.weights,
            method=_optimizer(self.options, len(self.weights)),
            budget=self.problem.record.left,
            seed=self.options.seed,
        )
        self.weights = found.best.point

    def pruner(self, density: float) -> Pruner:
        keep = num_kept(density, self.problem.vector.numel)
        if self.options.scope == "retained":
            rows = dict(self._reweighted(self._kept(keep), self.weights))
        else:
            rows = dict(self._from_all(self.weights, keep))
        return lambda name, tau: SparsePart(rows[name], self.values)

    @property
    def values(self) -> str:
        return "int4" if self.options.values == "auto" else self.options.values

    @property
    def params(self) -> Mapping[str, int | float | str | bool]:
        return {"support": "topk", "scope": self.options.scope, **_weight_params(self.weights)}

    def _kept(self, keep: int) -> dict[str, SparseRows]:
        vector = self.problem.vector
        pruner = KeepLargest(vector.read, vector.names, keep)
        return {name: pruner(name, vector.read(name)) for name in vector.names}

    def _reweighted(self, kept: Mapping[str, SparseRows], weights: Point) -> Iterator[tuple[str, SparseRows]]:
        """Group of the k-th largest of K: floor(k M / K), ties by lower index."""
        sizes = [len(rows.values) for rows in kept.values()]
        magnitudes = torch.cat([torch.empty(0), *(rows.values.abs() for rows in kept.values())])
        rank = torch.empty_like(magnitudes, dtype=torch.int64)
        rank[torch.argsort(magnitudes, descending=True, stable=True)] = torch.arange(len(magnitudes))
        group = rank * len(weights) // max(1, len(magnitudes))
        factors = torch.split(torch.tensor(weights)[group], sizes)
        for (name, rows), factor in zip(kept.items(), factors, strict=True):
            yield name, SparseRows(rows.shape, rows.positions, rows.values * factor)

    def _from_all(self, weights: Point, keep: int) -> Iterator[tuple[str, SparseRows]]:
        """The top K of the whole re-weighted vector, whose groups are ranks of the vector as it was."""
        vector, edges = self.problem.vector, self._edges
        factors = torch.tensor(weights)

        def read(name: str) -> torch.Tensor:
            tau = vector.read(name)
            return tau * factors[torch.bucketize(-tau.abs(), edges)]

        pruner = KeepLargest(read, vector.names, keep)
        for name in vector.names:
            yield name, pruner(name, read(name))

    @cached_property
    def _edges(self) -> torch.Tensor:
        """Minus the magnitudes that end each group but the last. Equal magnitudes across an edge share a group."""
        total, groups = self.problem.vector.numel, self.options.groups
        ends = [-(-m * total // groups) for m in range(1, groups)]
        vector = self.problem.vector
        return torch.tensor([-KeepLargest(vector.read, vector.names, max(1, end)).smallest for end in ends])


@dataclass
class SampledNps:
    """Region and scale by a small sweep, then column scales if they help, then every group's weight."""

    problem: Problem
    options: Options
    distils: Distils = "everything"
    weights: Point = ()
    columns: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def tune(self, density: float) -> None:
        vector, groups = self.problem.vector, self.options.groups
        keep = num_kept(density, vector.numel)
        plain = self._plain
        self.weights = region_weights(groups, *self._rule(density))
        if self.problem.judge is None or keep == 0:
            return
        try:
            inside, scale, best = self._sweep(plain, keep, density)
            self.weights = region_weights(groups, inside, scale)
            weighed = Sampled(vector, groups, column_scales(self.problem.judge, vector.names))
            if self._score(weighed, self.weights, keep) > best:
                plain, self.columns = weighed, weighed.columns
            self.weights = self._refine(plain, inside, keep)
        except BudgetSpent:
            return

    def pruner(self, density: float) -> Pruner:
        keep = num_kept(density, self.problem.vector.numel)
        weights = self.weights or region_weights(self.options.groups, *self._rule(density))  # before it is tuned
        vector, groups = self.problem.vector, self.options.groups
        sampled = Sampled(vector, groups, self.columns) if self.columns else self._plain
        return _in_order(sampled.draws(weights, keep, self.options.seed), self.options.values)

    @property
    def params(self) -> Mapping[str, int | float | str | bool]:
        return {"support": "sampled", "columns": bool(self.columns), **_weight_params(self.weights)}

    def _rule(self, density: float) -> tuple[int, float]:
        """Region and scale without calibration inputs."""
        allowed = [inside for inside in range(1, self.options.groups + 1) if self._allowed(inside, density) == inside]
        return self._regions.best(num_kept(density, self.problem.vector.numel), allowed)

    @cached_property
    def _regions(self) -> Regions:
        return Regions.of(self.problem.vector, self._plain.edges)

    @cached_property
    def _plain(self) -> Sampled:
        """Every column counts the same. Made once: it passes over the whole vector."""
        return Sampled(self.problem.vector, self.options.groups)

    def _allowed(self, inside: int, density: float) -> int:
        """A region holds at least twice the entries that are kept, or it is all of them."""
        groups, total = self.options.groups, self.problem.vector.numel
        bounds = geometric_bounds(groups, total)
        smallest = next((m + 1 for m, bound in enumerate(bounds) if bound >= 2 * density * total), groups)
        return max(1, min(groups, max(inside, smallest)))

    def _sweep(self, sampled: Sampled, keep: int, density: float) -> tuple[int, float, float]:
        """Hill climbing on the grid of regions and scales from the rule's point."""
        seen: dict[tuple[int, float], float] = {}

        def score(inside: int, scale: float) -> float:
            if (inside, scale) not in seen:
                seen[inside, scale] = self._score(sampled, region_weights(sampled.groups, inside, scale), keep)
            return seen[inside, scale]

        here = self._rule(density)
        best = score(*here)
        moved = True
        while moved and len(seen) < min(SWEEP, self.problem.record.budget):
            moved = False
            for there in self._neighbours(*here, density):
                if score(*there) > best:
                    here, best, moved = there, score(*there), True
                    self.weights = region_weights(sampled.groups, *here)
                    break
        return *here, best

    def _neighbours(self, inside: int, scale: float, density: float) -> Iterator[tuple[int, float]]:
        place = SCALES.index(scale)
        yield from ((inside, SCALES[other]) for other in (place + 1, place - 1) if 0 <= other < len(SCALES))
        for other in (inside - 1, inside + 1):
            if 1 <= other <= self.options.groups and self._allowed(other, density) == other:
                yield other, scale

    def _refine(self, sampled: Sampled, inside: int, keep: int) -> Point:
        """All weights of the region, from the sweep's point."""
        outside = (0.0,) * (self.options.groups - inside)
        budget = self.problem.record.left
        if budget < 2 or inside < 2:
            return self.weights

        def score(weights: Point) -> float:
            if weights == self.weights[:inside]:
                return self._known(self.weights)
            return self._score(sampled, (*weights, *outside), keep)

        # The start was scored by the sweep: it costs nothing to ask for it again.
        found = maximise(
            score,
            self.weights[:inside],
            method=_optimizer(self.options, inside),
            budget=budget + 1,
            bounds=SAMPLED_BOUNDS,
            seed=self.options.seed,
        )
        return (*found.best.point, *outside)

    def _score(self, sampled: Sampled, weights: Point, keep: int) -> float:
        return self.problem.score(
            (float(bool(sampled.columns)), *weights), lambda: dict(sampled.parts(weights, keep, self.options.seed))
        )

    def _known(self, weights: Point) -> float:
        """The best score of a point that was evaluated already."""
        return max(e.score for e in self.problem.record.evaluations if e.point[1:] == weights)


def _in_order(draws: Iterator[tuple[str, Callable[[torch.Tensor], SparsePart]]], values: str) -> Pruner:
    def prune(name: str, tau: torch.Tensor) -> Part:
        asked, drawn = next(draws)
        assert asked == name, "a pruner is asked in sorted order of names"
        part = drawn(tau)
        return part if values in ("auto", "sign") else SparsePart(part.rows, values)

    return prune


def _optimizer(options: Options, variables: int) -> Optimizer:
    return options.optimizer if variables > 1 else "cobyla"


def _weight_params(weights: Sequence[float]) -> dict[str, float]:
    return {f"w{number}": weight for number, weight in enumerate(weights, 1)}
