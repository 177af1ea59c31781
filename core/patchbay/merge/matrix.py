"""One matrix of every term, seen by its neurons: what a method that is linear in each row needs to know of it.

A neuron is a row of what is flattened from the tensor with its neuron axis in front. Everything is float64 and
computed when it is asked for. Knows nothing of files and of names of deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from patchbay.architecture import TensorSpec
from patchbay.delta import Delta, NeuronStatistics
from patchbay.merge.stack import Base, difference_of, is_sampled, largest_loss

BLOCK = 1 << 18  # entries of one term that are looked at together: a core's cache holds them with a few others


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """y = base_scale * (x W0^T) + sum_t coefficients[t] * (x D_t^T).

    `base_scale` [R] or [1] and `coefficients` [T, R] or [T, 1] are fp32; R = output neurons.
    """

    base_scale: torch.Tensor
    coefficients: torch.Tensor

    def times(self, scale: float) -> MatrixPlan:
        """The merged task vector times `scale`: what the base's rows are scaled by is 1 and a part of that vector."""
        return MatrixPlan(1 + scale * (self.base_scale - 1), scale * self.coefficients)


class Matrix:
    """`weights` fp32 [T]. With `whole`, the tensor is one neuron: what methods want that flatten it."""

    def __init__(
        self, name: str, deltas: Sequence[Delta], weights: torch.Tensor, base: Base, *, whole: bool = False
    ) -> None:
        self.name, self.deltas, self.weights, self.base = name, deltas, weights, base
        self.spec: TensorSpec = base.specs[name]
        self._axis = None if whole else self.spec.neuron_axis

    @property
    def sigma(self) -> float:
        """`largest_loss` of the terms."""
        return largest_loss(self.deltas)

    @property
    def num_neurons(self) -> int:
        return 1 if self._axis is None else self.spec.shape[self._axis]

    def flattened(self) -> Matrix:
        """The same tensor as one neuron."""
        return Matrix(self.name, self.deltas, self.weights, self.base, whole=True)

    @cached_property
    def base_energy(self) -> torch.Tensor:
        """|w_r|^2, [R]."""
        return self._by_neuron(self._row_energy)

    @cached_property
    def projections(self) -> torch.Tensor:
        """<tau_t,r, w_r>, [R, T]: from the statistics of the whole fine-tune where the delta has them."""
        found = [
            self._exact_projection(delta) if self._statistics(delta) else self._cross(position)
            for position, delta in enumerate(self.deltas)
        ]
        return torch.stack(found, dim=1)

    @cached_property
    def gram(self) -> torch.Tensor:
        """<tau_t,r, tau_u,r>, [R, T, T]: its diagonal from the statistics of the whole fine-tunes, as far as there are
        any, for what is pruned at random has the right mean and too much energy; products of two terms from the
        deltas.
        """
        gram = self._sparse_gram() if self._is_sparse else self._dense_gram()
        for position, delta in enumerate(self.deltas):
            statistics = self._statistics(delta)
            if statistics:
                gram[:, position, position] = self._by_neuron(statistics.energy)
        return gram

    @property
    def _is_sparse(self) -> bool:
        return all(delta.is_sparse(self.name) or self.name not in delta for delta in self.deltas)

    @cached_property
    def _base_rows(self) -> torch.Tensor:
        return self._rows(self.base.stored(self.name))

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(1, -1) if self._axis is None else tensor.movedim(self._axis, 0).flatten(1)

    def _statistics(self, delta: Delta) -> NeuronStatistics | None:
        """Of a term that was pruned at random. Where the largest entries were kept, those are what is merged."""
        return delta.neurons.get(self.name) if self.name in delta and is_sampled(delta) else None

    def _exact_projection(self, delta: Delta) -> torch.Tensor:
        statistics = delta.neurons[self.name]
        return self._by_neuron(statistics.cosine.double() * (statistics.energy.double() * self._row_energy).sqrt())

    @cached_property
    def _row_energy(self) -> torch.Tensor:
        """|w_r|^2 of the tensor's own neurons, flattened or not."""
        axis = self.spec.neuron_axis
        rows = self.base.stored(self.name)
        rows = rows.reshape(1, -1) if axis is None else rows.movedim(axis, 0).flatten(1)
        return torch.cat([block.double().square().sum(1) for block in self._blocks(rows)])

    def _by_neuron(self, statistic: torch.Tensor) -> torch.Tensor:
        return statistic.double().sum().reshape(1) if self._axis is None else statistic.double()

    def _cross(self, position: int) -> torch.Tensor:
        """<tau_r, w_r> of one term, from the delta."""
        delta = self.deltas[position]
        if self.name not in delta:
            return torch.zeros(self.num_neurons, dtype=torch.float64)
        if not delta.is_sparse(self.name):
            pairs = zip(
                self._blocks(self._rows(delta.difference(self.name))), self._blocks(self._base_rows), strict=True
            )
            return torch.cat([torch.linalg.vecdot(rows.double(), base.double()) for rows, base in pairs])
        rows = delta.matrices[self.name].unpacked()
        products = rows.values.double() * self.base.stored(self.name).reshape(-1)[rows.positions.long()].double()
        return torch.bincount(self._neurons(rows.positions), products, self.num_neurons)

    def _neurons(self, positions: torch.Tensor) -> torch.Tensor:
        """The neuron of each flat position of the tensor."""
        if self._axis is None:
            return torch.zeros_like(positions)
        neurons = positions // torch.Size(self.spec.shape[self._axis + 1 :]).numel()
        return neurons % self.num_neurons if self._axis else neurons

    def _sparse_gram(self) -> torch.Tensor:
        """Term after term is laid out whole, and those behind it are looked up in it."""
        count = len(self.deltas)
        gram = torch.zeros(self.num_neurons, count, count, dtype=torch.float64)
        laid = torch.zeros(self.spec.numel)
        terms = [(place, self._listed(delta)) for place, delta in enumerate(self.deltas) if self.name in delta]
        for done, (first, (where, _, values)) in enumerate(terms):
            laid.index_copy_(0, where, values.float())
            has_energy = self._statistics(self.deltas[first]) is not None
            for second, (others, neurons, other_values) in terms[done + has_energy :]:
                products = laid.index_select(0, others).double().mul_(other_values)
                gram[:, first, second] = torch.bincount(neurons, products, self.num_neurons)
                gram[:, second, first] = gram[:, first, second]
            laid.index_fill_(0, where, 0.0)
        return gram

    def _listed(self, delta: Delta) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Positions, their neurons, and values."""
        rows = delta.matrices[self.name].unpacked()
        return rows.positions.long(), self._neurons(rows.positions), rows.values.double()

    def _dense_gram(self) -> torch.Tensor:
        terms = [self._rows(difference_of(delta, self.name, self.spec.shape)) for delta in self.deltas]
        blocks = zip(*(self._blocks(term) for term in terms), strict=True)
        if self._axis is None:
            blocks = zip(*(torch.split(term, BLOCK, 1) for term in terms), strict=True)
            return sum(
                (_gram_of(block) for block in blocks), torch.zeros(1, len(terms), len(terms), dtype=torch.float64)
            )
        return torch.cat([_gram_of(block) for block in blocks])

    def _blocks(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Neurons in blocks of about BLOCK entries."""
        return torch.split(rows, max(1, BLOCK // max(1, rows.shape[1])))


def _gram_of(block: Sequence[torch.Tensor]) -> torch.Tensor:
    """[R, T, T] of T blocks [R, d]."""
    rows = torch.stack([part.double() for part in block], dim=1)
    return rows @ rows.mT
