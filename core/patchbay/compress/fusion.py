"""NPS fusion: several pruned task vectors in one, each entry divided by the number of tasks that kept it.

Elementwise, so the result is a new delta and not a merge plan. Knows nothing of models, files and how a score is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from patchbay.compress.search import DEFAULT_BOUNDS, Evaluation, Interval, Method, Point, SearchResult, maximise
from patchbay.delta import Factors, SparseRows
from patchbay.delta.delta import KeptRows, multiplied_out
from patchbay.errors import InvalidRecipe, WrongShape


class PrunedTaskVector(Protocol):
    """Such as a `Delta`. Entries that are not stored, or stored as zero, are not kept; factors keep every entry."""

    @property
    def matrices(self) -> Mapping[str, KeptRows]: ...

    @property
    def vectors(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def factors(self) -> Mapping[str, Factors]: ...


@dataclass(frozen=True, slots=True)
class Fused:
    """`matrices` hold the union of the kept entries; `vectors` are dense fp32, as is what any task stores densely;
    `factors` those of all tasks side by side.
    """

    matrices: Mapping[str, SparseRows]
    vectors: Mapping[str, torch.Tensor]
    factors: Mapping[str, Factors] = field(default_factory=dict)

    def difference(self, name: str) -> torch.Tensor:
        """One matrix's, dense."""
        rows, factors = self.matrices.get(name), self.factors.get(name)
        if factors is None:
            return self.matrices[name].to_dense()
        return multiplied_out(rows, factors)


class Fusion:
    """Pruned task vectors with their kept entries aligned, which is the slow part, to be fused with many weights.

    Memory is a position and a value for each kept entry of each task. Matrices do not become dense, but where a task
    stores one whole, or all tasks' factors together have more ranks than it can.
    Raises InvalidRecipe where there are no task vectors, WrongShape where two of them disagree about a tensor.
    """

    def __init__(self, tasks: Sequence[PrunedTaskVector]) -> None:
        if not tasks:
            raise InvalidRecipe("fusion needs at least one task vector", param="terms")
        self.num_tasks = len(tasks)
        factored = {name: _factored(tasks, name) for name in sorted({name for task in tasks for name in task.factors})}
        dense = {name for task in tasks for name in task.vectors}
        dense |= {name for name, parts in factored.items() if _rank(parts) > min(_sides(parts))}
        sparse = {name for task in tasks for name in task.matrices} - dense
        aligned = {name: _Aligned.of(name, _sparse(tasks, name)) for name in sorted(sparse)}
        self._matrices = {name: rows for name, rows in aligned.items() if name not in factored}
        self._factored = {
            name: _Factored(parts, aligned.get(name)) for name, parts in factored.items() if name not in dense
        }
        for name, both in self._factored.items():
            _common_shape(name, [*(part.shape for part in both.parts.values()), *both.kept_shapes])
        self._vectors = {name: _dense(tasks, name) for name in sorted(dense)}

    def fuse(self, weights: Sequence[float], *, scale: float = 1.0, literal: bool = False) -> Fused:
        """scale * sum_i w_i m_i tau_i / max(1, sum_i m_i), elementwise; m_i = 1 where task i kept the entry, else 0.

        `literal` is Eq. 7 as printed, sum_i w_i m_i tau_i / sum_i w_i, in which a common factor cancels: `scale` too.
        Computed in float64, rounded once. Raises InvalidRecipe for weights that do not fit or that sum to nothing.
        """
        factors = self._factors(weights, scale, literal)
        products = {name: both.fuse(factors, count=not literal) for name, both in self._factored.items()}
        matrices = {name: aligned.fuse(factors, count=not literal) for name, aligned in self._matrices.items()}
        return Fused(
            matrices | {name: rows for name, (_, rows) in products.items() if rows is not None},
            {name: _fuse_dense(parts, factors, count=not literal) for name, parts in self._vectors.items()},
            {name: product for name, (product, _) in products.items()},
        )

    def _factors(self, weights: Sequence[float], scale: float, literal: bool) -> list[float]:
        if len(weights) != self.num_tasks or not all(math.isfinite(number) for number in (*weights, scale)):
            raise InvalidRecipe(f"fusion of {self.num_tasks} tasks needs as many finite weights", param="weights")
        if not literal:
            return [scale * weight for weight in weights]
        total = sum(weights)
        if abs(total) <= 1e-6 * sum(map(abs, weights)):
            raise InvalidRecipe(f"the weights of a mean sum to {total:g}", param="weights")
        return [weight / total for weight in weights]


def fuse(
    tasks: Sequence[PrunedTaskVector], weights: Sequence[float], *, scale: float = 1.0, literal: bool = False
) -> Fused:
    """One fusion: see `Fusion` and its `fuse`."""
    return Fusion(tasks).fuse(weights, scale=scale, literal=literal)


def search_lambdas(
    tasks: Sequence[PrunedTaskVector],
    scores: Callable[[Fused], Sequence[float]],
    *,
    budget: int,
    scale: float = 1.0,
    start: Sequence[float] | None = None,
    method: Method = "cobyla",
    bounds: Interval | Sequence[Interval] = DEFAULT_BOUNDS,
    seed: int = 0,
    history: Sequence[Evaluation] = (),
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> SearchResult:
    """One weight a task, from all ones: the point with the best mean of `scores`, one score a task on held-out data.

    The other arguments, resuming and errors are those of `maximise`.
    """
    fusion = Fusion(tasks)

    def mean_score(weights: Point) -> float:
        each = scores(fusion.fuse(weights, scale=scale))
        return sum(each) / len(each)

    return maximise(
        mean_score,
        [1.0] * len(tasks) if start is None else start,
        method=method,
        budget=budget,
        bounds=bounds,
        seed=seed,
        history=history,
        on_evaluation=on_evaluation,
    )


@dataclass(frozen=True, slots=True)
class _Aligned:
    """One matrix: where any task keeps an entry, how many do, and each task's values with their places among these."""

    shape: tuple[int, ...]
    positions: torch.Tensor
    counts: torch.Tensor
    tasks: Mapping[int, tuple[torch.Tensor, torch.Tensor]]  # number of the task -> places, values

    @classmethod
    def of(cls, name: str, tasks: Mapping[int, SparseRows]) -> _Aligned:
        shape = _common_shape(name, [rows.shape for rows in tasks.values()])
        kept = {number: rows.positions[rows.values != 0] for number, rows in tasks.items()}
        values = {number: rows.values[rows.values != 0] for number, rows in tasks.items()}
        positions, counts = torch.unique(torch.cat(list(kept.values())), return_counts=True)
        few = len(positions) < 2**31
        places = {number: torch.searchsorted(positions, own, out_int32=few) for number, own in kept.items()}
        return cls(shape, positions, counts, {number: (places[number], values[number]) for number in kept})

    def fuse(self, factors: Sequence[float], *, count: bool) -> SparseRows:
        total = self.sum(factors)
        return SparseRows(self.shape, self.positions, (total / self.counts if count else total).float())

    def sum(self, factors: Sequence[float]) -> torch.Tensor:
        """float64, at `positions`."""
        total = torch.zeros(len(self.positions), dtype=torch.float64)
        for number, (places, values) in self.tasks.items():
            total.index_add_(0, places, values.double(), alpha=factors[number])
        return total


@dataclass(frozen=True, slots=True)
class _Factored:
    """One matrix that tasks have as factors, which keep every entry: `parts` by number of the task. `kept`: what any
    task keeps, beside factors or without.
    """

    parts: Mapping[int, Factors]
    kept: _Aligned | None

    @property
    def kept_shapes(self) -> list[tuple[int, ...]]:
        return [] if self.kept is None else [self.kept.shape]

    def fuse(self, factors: Sequence[float], *, count: bool) -> tuple[Factors, SparseRows | None]:
        """The factors side by side over their number, and what kept entries make of the product at their places."""
        over = len(self.parts) if count else 1
        left = torch.cat([part.left.double() * (factors[n] / over) for n, part in self.parts.items()], 1)
        right = torch.cat([part.right for part in self.parts.values()], 1)
        product = Factors(next(iter(self.parts.values())).shape, left.float(), right)
        if self.kept is None:
            return product, None
        row, column = self.kept.positions.long() // len(right), self.kept.positions.long() % len(right)
        there = (left[row] * right.double()[column]).sum(1)
        counts = over + (self._without_factors() if count else 0)
        values = (over * there + self.kept.sum(factors)) / counts - there
        return product, SparseRows(self.kept.shape, self.kept.positions, values.float())

    def _without_factors(self) -> torch.Tensor:
        """How many tasks keep each of the entries, of those without factors."""
        assert self.kept is not None
        counts = torch.zeros(len(self.kept.positions), dtype=torch.float64)
        for number, (places, _) in self.kept.tasks.items():
            if number not in self.parts:
                counts.index_add_(0, places, torch.ones(len(places), dtype=torch.float64))
        return counts


def _sparse(tasks: Sequence[PrunedTaskVector], name: str) -> dict[int, SparseRows]:
    return {number: task.matrices[name].unpacked() for number, task in enumerate(tasks) if name in task.matrices}


def _dense(tasks: Sequence[PrunedTaskVector], name: str) -> dict[int, torch.Tensor]:
    found = {number: task.vectors[name] for number, task in enumerate(tasks) if name in task.vectors}
    found |= {number: rows.to_dense() for number, rows in _sparse(tasks, name).items()}
    for number, factors in _factored(tasks, name).items():
        found[number] = factors.to_dense() + found.get(number, torch.zeros(()))
    _common_shape(name, [tuple(tensor.shape) for tensor in found.values()])
    return found


def _factored(tasks: Sequence[PrunedTaskVector], name: str) -> dict[int, Factors]:
    found = {number: task.factors[name] for number, task in enumerate(tasks) if name in task.factors}
    _common_shape(name, [factors.shape for factors in found.values()])
    return found


def _rank(parts: Mapping[int, Factors]) -> int:
    return sum(factors.left.shape[1] for factors in parts.values())


def _sides(parts: Mapping[int, Factors]) -> tuple[int, int]:
    first = next(iter(parts.values()))
    return len(first.left), len(first.right)


def _fuse_dense(tasks: Mapping[int, torch.Tensor], factors: Sequence[float], *, count: bool) -> torch.Tensor:
    total = sum((factors[number] * tensor.double() for number, tensor in tasks.items()), torch.zeros(()))
    kept = sum(((tensor != 0).double() for tensor in tasks.values()), torch.zeros(()))
    return (total / kept.clamp(min=1) if count else total).float()


def _common_shape(name: str, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    for shape in shapes:
        if shape != shapes[0]:
            raise WrongShape(f"{name!r} is {list(shapes[0])} in one task vector, {list(shape)} in another", param=name)
    return shapes[0] if shapes else ()
