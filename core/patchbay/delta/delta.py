"""`Delta`: a compressed task vector, decoded and ready to be merged or patched in. Knows no files and no models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch

from patchbay.checkpoint import as_bits
from patchbay.delta.low_rank import Factors
from patchbay.delta.manifest import Manifest

LOSSLESS = "lossless"  # the method that leaves nothing out, and the encoding of parts written from both models' bits


class KeptRows(Protocol):
    """One matrix's delta, however it is kept."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def num_bytes(self) -> int: ...

    def unpacked(self) -> SparseRows:
        """With positions and values at hand, which may have to be worked out: ask once for both."""
        ...

    def to_dense(self) -> torch.Tensor:
        """fp32 [shape], zeros where nothing is kept."""
        ...


@dataclass(frozen=True, slots=True)
class SparseRows:
    """As files are decoded to. `positions` (int32 or int64, strictly increasing) index the row-major `shape`."""

    shape: tuple[int, ...]
    positions: torch.Tensor
    values: torch.Tensor  # fp32

    @property
    def num_bytes(self) -> int:
        return self.positions.nbytes + self.values.nbytes

    def unpacked(self) -> SparseRows:
        return self

    def to_dense(self) -> torch.Tensor:
        dense = torch.zeros(torch.Size(self.shape).numel())
        dense[self.positions.long()] = self.values
        return dense.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Exceptions:
    """Entries whose fine-tuned bits differ from round(base + delta); `bits` are those values, in their own dtype."""

    positions: torch.Tensor
    bits: torch.Tensor


@dataclass(frozen=True, slots=True)
class NeuronStatistics:
    """fp32 [neurons] each, of the full task vector tau before pruning, row by row of the weight w.

    `energy` = |tau_r|^2; `cosine` = <tau_r, w_r> / (|tau_r| |w_r|).
    """

    energy: torch.Tensor
    cosine: torch.Tensor


@dataclass(frozen=True)
class Delta:
    """All parts under the base's tensor names, except `added`, which carries the fine-tune's names of its heads."""

    manifest: Manifest
    matrices: Mapping[str, KeptRows]
    vectors: Mapping[str, torch.Tensor]  # dense fp32 deltas: norms, biases, matrices stored whole
    added: Mapping[str, torch.Tensor]
    copied: Mapping[str, torch.Tensor]
    exceptions: Mapping[str, Exceptions]
    neurons: Mapping[str, NeuronStatistics] = field(default_factory=dict)
    appended: Mapping[str, torch.Tensor] = field(default_factory=dict)  # rows behind the base's last, fine-tune's dtype
    factors: Mapping[str, Factors] = field(default_factory=dict)  # alone, or what `matrices` are added to

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.manifest.labels

    @property
    def is_exact(self) -> bool:
        """Whether the base with the delta at weight 1 is its fine-tune, bit for bit."""
        return bool(self.exceptions) or self.manifest.compression.method == LOSSLESS

    @cached_property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        dense = [t for part in (self.vectors, self.added, self.copied, self.appended) for t in part.values()]
        return (
            sum(rows.num_bytes for rows in self.matrices.values())
            + sum(factors.num_bytes for factors in self.factors.values())
            + sum(t.nbytes for t in dense)
            + sum(e.positions.nbytes + e.bits.nbytes for e in self.exceptions.values())
            + sum(n.energy.nbytes + n.cosine.nbytes for n in self.neurons.values())
        )

    @cached_property
    def norm(self) -> float:
        """|tau|_2 of the task vector: of the whole one where statistics tell it, for a draw of entries is longer."""
        return math.sqrt(sum(self._energy(name) for name in {*self.matrices, *self.factors, *self.vectors}))

    def _energy(self, name: str) -> float:
        if name in self.neurons:
            return float(self.neurons[name].energy.double().sum())
        rows = self.matrices[name].unpacked().values if self.is_sparse(name) else self.difference(name)
        return float(torch.linalg.vector_norm(rows, dtype=torch.float64)) ** 2

    def __contains__(self, name: str) -> bool:
        return name in self.matrices or name in self.vectors or name in self.factors

    def is_sparse(self, name: str) -> bool:
        """Whether only kept entries of the tensor change."""
        return name in self.matrices and name not in self.factors

    def difference(self, name: str) -> torch.Tensor:
        """The whole fp32 difference of one tensor, dense. Raises KeyError where the delta has none."""
        if name in self.vectors:
            return self.vectors[name]
        if name not in self.factors:
            return self.matrices[name].to_dense()
        return multiplied_out(self.matrices.get(name), self.factors[name])


def multiplied_out(rows: KeptRows | None, factors: Factors) -> torch.Tensor:
    """A difference with factors, dense: the product, then the kept entries' values added to it."""
    dense = factors.to_dense()
    if rows is not None:
        found = rows.unpacked()
        dense.view(-1)[found.positions.long()] += found.values
    return dense


def apply_difference(base: torch.Tensor, difference: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """round(fp32(base) + difference) to `dtype`: added in fp32, rounded once, to nearest even."""
    return (base.to(torch.float32) + difference.reshape(base.shape)).to(dtype)


def find_exceptions(base: torch.Tensor, difference: torch.Tensor, tuned: torch.Tensor) -> Exceptions:
    """The entries whose bits in `tuned` are others than those of `apply_difference`."""
    reached = apply_difference(base, difference, tuned.dtype)
    positions = torch.nonzero(as_bits(reached.contiguous()) != as_bits(tuned.contiguous())).flatten()
    return Exceptions(positions, tuned.reshape(-1)[positions])
