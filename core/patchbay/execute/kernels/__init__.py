"""A matrix's difference D, ready to be multiplied: one class for each way it is stored, chosen in one table.

Knows nothing of recipes, layers and requests.
"""

from __future__ import annotations

from typing import Protocol

import torch

from patchbay.architecture import TensorSpec
from patchbay.delta import Delta
from patchbay.execute.kernels.dense import Dense
from patchbay.execute.kernels.low_rank import LowRank
from patchbay.execute.kernels.sparse import Sparse

__all__ = ["Kernel", "compile_matrix"]


class Kernel(Protocol):
    """D [out, in], out = neurons: the rows of the matrix, or its columns where the layer stores it transposed."""

    @property
    def num_bytes(self) -> int: ...

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x D^T: [n, in] -> [n, out], in fp32."""
        ...

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        """D's rows of these neurons, int64 [n] -> fp32 [n, in]."""
        ...


def compile_matrix(delta: Delta, name: str, spec: TensorSpec, device: torch.device) -> Kernel:
    """The kernel for one matrix of a delta, on `device`. The matrix has two dimensions."""
    transposed = spec.neuron_axis == 1
    if name in delta.vectors:
        whole = delta.vectors[name]
        return Dense((whole.T if transposed else whole).contiguous().to(device))
    sparse = Sparse.of(delta.matrices[name], transposed=transposed, device=device) if name in delta.matrices else None
    if name not in delta.factors:
        assert sparse is not None, f"the delta does not change {name}"
        return sparse
    factors = delta.factors[name]
    left, right = (factors.right, factors.left) if transposed else (factors.left, factors.right)
    return LowRank(left.to(device), right.to(device), sparse)
