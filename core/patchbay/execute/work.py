"""What one matrix costs a batch: the products to be made of each delta, where they go, and what they are multiplied by.

Knows nothing of plans, segments and layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from patchbay.execute.kernels import Kernel
from patchbay.execute.kernels.low_rank import Joined, LowRank
from patchbay.execute.kernels.packed import Packed, Together

MANY = 16  # inputs of one product from which on copies around it cost more than calls
Rows = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers that many rows share: `values` [entries, out] or [entries, 1], and which entry each row has, None where
    row i has entry i.
    """

    values: torch.Tensor
    entries: torch.Tensor | None

    def of_rows(self, rows: slice = slice(None)) -> torch.Tensor:
        """[rows, 1, out] or [rows, 1, 1]."""
        values = self.values[rows] if self.entries is None else self.values[self.entries[rows]]
        return values[:, None]


@dataclass(frozen=True, slots=True)
class Places:
    """For each delta the batch's rows that use it, and how many, and of all these, one delta after the other, the row
    [N] and the number of the pair of delta and segment that it comes from, None where there are as many pairs as rows.
    """

    by_delta: tuple[Rows, ...]
    counts: tuple[int, ...]
    rows: torch.Tensor
    pairs: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Products:
    """Products to be made, where they go, and what they are multiplied by; None where that is 1 throughout.

    `together`: all of them in one call, where one can, and `joined`, where there are few inputs of each.
    """

    kernels: tuple[Kernel, ...]
    places: Places
    coefficients: Table | None
    together: Together | None
    joined: Joined | None

    @classmethod
    def of(
        cls, kernels: Sequence[Kernel], places: Places, coefficients: Sequence[torch.Tensor], num_rows: int
    ) -> Products:
        """`coefficients`: [out] or [1] of every pair of a delta and a segment, in the order of `places`."""
        numbers = stacked(coefficients)
        table = None if bool((numbers == 1).all()) else Table(numbers, places.pairs)
        together, joined = _together(kernels, places, table), _joined(kernels, places, table, num_rows)
        return cls(tuple(kernels), places, table, together, joined)

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """To `outputs` [rows, tokens, out] of a batch, from its `inputs` [rows, tokens, in]."""
        if self.together is not None and self.together.takes(inputs, outputs):
            self.together.add(inputs, outputs)
            return
        given = inputs.float()
        if len(self.places.rows) * given.shape[1] > MANY * len(self.kernels):
            self._add_one_by_one(given, outputs)
        elif self.joined is not None:
            self.joined.add(given, outputs)
        else:
            self._add_at_once(given, outputs)

    def _add_at_once(self, given: torch.Tensor, outputs: torch.Tensor) -> None:
        """Few inputs a product: calls cost more than what is copied."""
        products = [
            kernel.product(given[rows].flatten(0, 1))
            for kernel, rows in zip(self.kernels, self.places.by_delta, strict=True)
        ]
        z = torch.cat(products).view(len(self.places.rows), -1, outputs.shape[-1])
        if self.coefficients is not None:
            z.mul_(self.coefficients.of_rows())
        outputs.index_add_(0, self.places.rows, z.to(outputs.dtype))

    def _add_one_by_one(self, given: torch.Tensor, outputs: torch.Tensor) -> None:
        """Many inputs a product: each goes where it belongs at once."""
        end = 0
        for kernel, rows in zip(self.kernels, self.places.by_delta, strict=True):
            inputs = given[rows]
            product = kernel.product(inputs.flatten(0, 1)).view(*inputs.shape[:2], -1)
            start, end = end, end + len(inputs)
            if self.coefficients is not None:
                product = product * self.coefficients.of_rows(slice(start, end))
            if isinstance(rows, slice):
                outputs[rows].add_(product)
            else:
                outputs.index_add_(0, rows, product.to(outputs.dtype))


@dataclass(frozen=True, slots=True)
class Work:
    """What one matrix costs a batch: `scale` of the base's product, and what is added to it."""

    scale: Table | None
    products: tuple[Products, ...]


def _together(kernels: Sequence[Kernel], places: Places, coefficients: Table | None) -> Together | None:
    packed = [kernel for kernel in kernels if isinstance(kernel, Packed)]
    if not packed or len(packed) < len(kernels):
        return None
    factors = None if coefficients is None else coefficients.values
    return Together.of(packed, places.counts, places.rows, factors, places.pairs)


def _joined(kernels: Sequence[Kernel], places: Places, coefficients: Table | None, num_rows: int) -> Joined | None:
    """Only where a delta has one number for all neurons: else the product comes before the coefficients."""
    factors = [kernel for kernel in kernels if isinstance(kernel, LowRank) and kernel.rest is None]
    if len(factors) < len(kernels) or (coefficients is not None and coefficients.values.shape[1] > 1):
        return None
    numbers = torch.ones(len(places.rows), device=places.rows.device)
    if coefficients is not None:
        numbers = coefficients.of_rows().flatten()
    return Joined.of(factors, places.counts, places.rows, numbers, num_rows)


def stacked(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """[rows, out], or [rows, 1] where all are single numbers."""
    widest = max((len(row) for row in rows), default=1)
    return torch.stack([row.expand(widest) for row in rows]) if rows else torch.empty(0, 1)
