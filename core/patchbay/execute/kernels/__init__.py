"""A matrix's difference D, ready to be multiplied: one class for each way it is stored, chosen in one table.

Knows nothing of recipes, layers and requests.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch

from patchbay.architecture import TensorSpec
from patchbay.delta import Delta
from patchbay.delta.delta import KeptRows
from patchbay.delta.packed import PackedRows
from patchbay.execute.kernels.dense import Dense
from patchbay.execute.kernels.low_rank import LowRank
from patchbay.execute.kernels.packed import Packed, can_pack
from patchbay.execute.kernels.sparse import Sparse

__all__ = ["Kernel", "compile_entries", "compile_matrix", "parts_of"]


class Kernel(Protocol):
    """D [out, in], out = neurons: the rows of the matrix, or its columns where the layer stores it transposed."""

    @property
    def num_bytes(self) -> int:
        """Of memory that is not the delta's own."""
        ...

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x D^T: [n, in] -> [n, out], in fp32."""
        ...

    def add_to(self, dense: torch.Tensor, coefficients: torch.Tensor) -> None:
        """dense += C D, in place: fp32 [out, in], contiguous; C the `coefficients` of its rows, fp32 [out] or [1]."""
        ...

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        """D's rows of these neurons, int64 [n] -> fp32 [n, in]."""
        ...


def compile_matrix(delta: Delta, name: str, spec: TensorSpec, device: torch.device) -> Kernel:
    """The kernel for one matrix of a delta, on `device`. The matrix has two dimensions."""
    transposed = spec.neuron_axis == 1
    if name in delta.vectors:
        whole = delta.vectors[name]
        difference = (whole.T if transposed else whole).contiguous().to(device)
        return Dense(difference, _own_bytes(difference, whole))
    sparse = compile_entries(delta.matrices[name], transposed, device) if name in delta.matrices else None
    if name not in delta.factors:
        assert sparse is not None, f"the delta does not change {name}"
        return sparse
    factors = delta.factors[name]
    left, right = (factors.right, factors.left) if transposed else (factors.left, factors.right)
    there = left.to(device), right.to(device)
    return LowRank(*there, sparse, _own_bytes(there[0], left) + _own_bytes(there[1], right))


def parts_of(kernel: Kernel) -> tuple[Kernel, ...]:
    """Kernels whose products add up to this one's: entries can be multiplied with those of other deltas."""
    if isinstance(kernel, LowRank) and kernel.rest is not None:
        return replace(kernel, rest=None), kernel.rest
    return (kernel,)


def _own_bytes(made: torch.Tensor, source: torch.Tensor) -> int:
    return 0 if made.data_ptr() == source.data_ptr() else made.nbytes


def compile_entries(rows: KeptRows, transposed: bool, device: torch.device) -> Sparse | Packed:
    if isinstance(rows, PackedRows) and rows.transposed == transposed and can_pack(rows.inputs, device):
        return Packed(rows)
    return Sparse.of(rows.unpacked(), transposed=transposed, device=device)
