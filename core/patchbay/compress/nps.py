"""NPS-Pruning (arXiv 2505.18713): weights of magnitude groups, searched without gradients, then pruning.

The paper speaks of low-rank subspaces; its algorithm has none. A "subspace" is the part of the task vector whose
magnitudes rank in one interval: M vectors with disjoint supports whose sum is the task vector, each with one scalar
weight. The pruned vector is scored at every evaluation, and the best evaluated point is what is returned.
`TopkNps` is the published form, ours is in `sampled_nps`. Weights are tuned at one density and used at any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from patchbay.compress.options import Optimizer, Options
from patchbay.compress.parts import Distils, Part, Pruner, SparsePart
from patchbay.compress.problem import Problem
from patchbay.compress.prune import KeepLargest, num_kept
from patchbay.compress.search import Point, maximise
from patchbay.delta import SparseRows


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

    def choose(self, density: float) -> None:
        """Weights change no size."""

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
            method=optimizer_for(self.options, len(self.weights)),
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
        return {"support": "topk", "scope": self.options.scope, **weight_params(self.weights)}

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


def optimizer_for(options: Options, variables: int) -> Optimizer:
    """CMA-ES needs two variables."""
    return options.optimizer if variables > 1 else "cobyla"


def weight_params(weights: Sequence[float]) -> dict[str, float]:
    """As a manifest's `params` lists them."""
    return {f"w{number}": weight for number, weight in enumerate(weights, 1)}
