"""What a method decides for one tensor, before it is written: the common language of methods and file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from patchbay.delta import Factors, SparseRows
from patchbay.delta.delta import multiplied_out
from patchbay.delta.low_rank import FactorPair

Progress = Callable[[int, int, str], None]
# What may be tuned once entries are chosen: nothing, one scale a matrix, or norms and biases as well.
Distils = Literal["nothing", "scales", "everything"]


@dataclass(frozen=True, slots=True)
class SparsePart:
    """Kept entries. `multiples`: how often each counts the value that `values` holds for many; `seed` is what the
    positions came from, if they did. `bands`: the low-rank difference that they are added to.
    """

    rows: SparseRows
    values: str
    multiples: torch.Tensor | None = None
    seed: int | None = None
    bands: tuple[FactorPair, ...] = ()

    @property
    def factors(self) -> Factors | None:
        return joined(self.rows.shape, self.bands) if self.bands else None

    def to_dense(self) -> torch.Tensor:
        factors = self.factors
        return self.rows.to_dense() if factors is None else multiplied_out(self.rows, factors)

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> SparsePart:
        """Of a tensor that keeps no entry."""
        return cls(SparseRows(shape, torch.empty(0, dtype=torch.int32), torch.empty(0)), "sign_tensor")


@dataclass(frozen=True, slots=True)
class DensePart:
    """Every entry, in one encoding."""

    difference: torch.Tensor
    values: str


@dataclass(frozen=True, slots=True)
class LowRankPart:
    """sum_b left_b right_b^T over bands (left [rows, r], right [columns, r], encoding)."""

    shape: tuple[int, ...]
    bands: tuple[FactorPair, ...]

    @property
    def factors(self) -> Factors:
        return joined(self.shape, self.bands)

    def to_dense(self) -> torch.Tensor:
        return self.factors.to_dense()


Part = SparsePart | DensePart | LowRankPart
# Asked for the prunable matrices in sorted order of names, each once, with its full fp32 difference.
Pruner = Callable[[str, torch.Tensor], Part]


@dataclass(frozen=True, slots=True)
class Vector:
    """The prunable matrices of one task vector: names in order, how to read them, and rms(tau) / rms(base).

    What `read` returns is the caller's to change.
    """

    names: tuple[str, ...]
    read: Callable[[str], torch.Tensor]
    sizes: Mapping[str, int]
    ratio: float

    @property
    def numel(self) -> int:
        return sum(self.sizes[name] for name in self.names)


def scaled(part: Part, scale: float) -> Part:
    """The part with every value times `scale`."""
    if scale == 1.0:
        return part
    match part:
        case SparsePart():
            rows = replace(part.rows, values=part.rows.values * scale)
            return replace(part, rows=rows, bands=_scaled_bands(part.bands, scale))
        case DensePart():
            return replace(part, difference=part.difference * scale)
        case LowRankPart():
            return replace(part, bands=_scaled_bands(part.bands, scale))


class QuickFactors(Factors):
    """Of a candidate that no file holds: multiplied out by a matrix product, whose last bits are the machine's."""

    __slots__ = ()

    def to_dense(self) -> torch.Tensor:
        product: torch.Tensor = self.left @ self.right.T
        return product.reshape(self.shape)


def joined(shape: tuple[int, ...], bands: Sequence[FactorPair]) -> Factors:
    """All bands' factors side by side."""
    lefts, rights = [left for left, _, _ in bands], [right for _, right, _ in bands]
    return QuickFactors(shape, torch.cat(lefts, 1), torch.cat(rights, 1))


def _scaled_bands(bands: Sequence[FactorPair], scale: float) -> tuple[FactorPair, ...]:
    return tuple((left * scale, right, values) for left, right, values in bands)
