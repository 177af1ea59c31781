"""The leading singular vectors of a task vector's matrices: what they cost, and what they leave to be sampled.

Few vectors that touch every entry carry what a sampled support pays for entry by entry. Knows nothing of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch

from patchbay.compress.low_rank import (
    Factors,
    affordable_rank,
    as_stored,
    is_exact,
    singular_factors,
    split_bands,
    stored_bytes,
)
from patchbay.compress.parts import Vector
from patchbay.delta.low_rank import FactorPair

# How a budget is dealt out: the same bits an entry for every matrix, or to whichever vectors carry the most energy.
Allocation = Literal["even", "energy"]
Bands = Mapping[str, tuple[FactorPair, ...]]
KEPT = 8  # of each matrix, vectors up to 1 / KEPT of its numbers
BITS = 4  # of a number of a singular vector, on average: what the mixed encodings come to


@dataclass
class Leading:
    """Singular vectors of one task vector at any budget. The last ones asked for are kept, and of each matrix with a
    side up to EXACT_SIDE as many as take an eighth of its numbers.
    """

    vector: Vector

    def __post_init__(self) -> None:
        self._kept: tuple[tuple[float, Allocation], Bands] | None = None
        self._factors: dict[str, Factors] = {}

    def bands(self, bits: float, allocation: Allocation) -> Bands:
        """The factors of every matrix that gets any, as they are read back, in at most `bits` an entry of all."""
        if self._kept is None or self._kept[0] != (bits, allocation):
            self._kept = (bits, allocation), self._find(self._budgets(bits, allocation))
        return self._kept[1]

    def rest(self, bands: Bands) -> Vector:
        """The vector without what `bands` stand for."""
        read = self.vector.read
        return replace(self.vector, read=lambda name: less(read(name), bands.get(name, ())))

    def _budgets(self, bits: float, allocation: Allocation) -> dict[str, float]:
        """Bits an entry of each matrix."""
        sizes = self.vector.sizes
        if allocation == "even":
            return dict.fromkeys(sizes, bits)
        prices = torch.cat([torch.full((len(self._energies[name]),), self._sides[name]) for name in sizes])
        gains = torch.cat([self._energies[name] / self._sides[name] for name in sizes])
        order = gains.argsort(descending=True, stable=True)
        paid = torch.empty(len(order), dtype=torch.bool)
        paid[order] = prices[order].double().cumsum(0) * BITS <= bits * self.vector.numel
        counts = [int(part.sum()) for part in torch.split(paid, [len(self._energies[name]) for name in sizes])]
        return {
            name: BITS * count * self._sides[name] / size
            for (name, size), count in zip(sizes.items(), counts, strict=True)
        }

    def _find(self, budgets: Mapping[str, float]) -> Bands:
        found: dict[str, tuple[FactorPair, ...]] = {}
        for name, bits in budgets.items():
            rank = affordable_rank(self._shapes[name], bits)
            if rank:
                left, right = self._vectors(name, rank)
                found[name] = tuple(map(_stored, split_bands(left[:, :rank], right[:, :rank], bits)))
        return {name: bands for name, bands in found.items() if bands}

    def _vectors(self, name: str, rank: int) -> Factors:
        """At least the first `rank`, if there are as many."""
        if name in self._factors and rank <= self._most(name):
            return self._factors[name]
        matrix = self.vector.read(name).flatten(1)
        if rank > self._most(name):
            return singular_factors(matrix, rank)
        self._factors[name] = singular_factors(matrix, self._most(name))
        return self._factors[name]

    def _most(self, name: str) -> int:
        """How many vectors are kept: none where a part of them is found faster than all, and is not their beginning."""
        rank = self.vector.sizes[name] // (KEPT * self._sides[name])
        return rank if is_exact(self._shapes[name], rank) else 0

    @cached_property
    def _energies(self) -> dict[str, torch.Tensor]:
        """Squared singular values of each matrix, float64, largest first."""
        return {name: _energies(self.vector.read(name)) for name in self.vector.names}

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: self.vector.read(name).flatten(1).shape for name in self.vector.names}

    @cached_property
    def _sides(self) -> dict[str, int]:
        """Numbers that one vector on either side takes."""
        return {name: sum(shape) for name, shape in self._shapes.items()}


def stored_bits(bands: Bands) -> int:
    """Of all factors, before they are compressed further."""
    listed = (band for parts in bands.values() for band in parts)
    return 8 * sum(stored_bytes(values, left.shape[1], (len(left), len(right))) for left, right, values in listed)


def _energies(tau: torch.Tensor) -> torch.Tensor:
    matrix = tau.flatten(1).double()
    gram = matrix.T @ matrix if len(matrix) > matrix.shape[1] else matrix @ matrix.T
    energies: torch.Tensor = torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)
    return energies


def _stored(band: FactorPair) -> FactorPair:
    left, right, values = band
    return as_stored(left, values), as_stored(right, values), values


def less(tau: torch.Tensor, bands: Sequence[FactorPair]) -> torch.Tensor:
    """What `bands` leave of a matrix. A matrix product, whose last bits vary: what is left is only sampled from."""
    rest = tau.flatten(1)
    for left, right, _ in bands:
        rest = torch.addmm(rest, left, right.T, alpha=-1)
    return rest.reshape(tau.shape)
