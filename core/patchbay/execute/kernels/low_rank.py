"""Singular vectors U V^T, alone or with kept entries beside them, and a layer's of many deltas in two products.

Knows nothing of plans and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from patchbay.execute.kernels.packed import Packed
from patchbay.execute.kernels.sparse import Sparse


@dataclass(frozen=True, slots=True)
class LowRank:
    """`left` fp32 [out, rank], `right` fp32 [in, rank]; `rest` is added. `own_bytes` of the factors are no other's."""

    left: torch.Tensor
    right: torch.Tensor
    rest: Sparse | Packed | None
    own_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.own_bytes + (self.rest.num_bytes if self.rest else 0)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        found = (x.float() @ self.right) @ self.left.T
        return found if self.rest is None else found.add_(self.rest.product(x))

    def add_to(self, dense: torch.Tensor, coefficients: torch.Tensor) -> None:
        dense.addmm_(self.left * coefficients[:, None], self.right.T)
        if self.rest is not None:
            self.rest.add_to(dense, coefficients)

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        found = self.left[neurons] @ self.right.T
        return found if self.rest is None else found.add_(self.rest.rows(neurons))


@dataclass(frozen=True, slots=True)
class Joined:
    """Factors of several deltas side by side: y += ((x V) * weights) U^T, where a row's weights are 0 for those that it
    does not use. A few inputs of each delta cost two calls, not two for each delta.
    """

    left: torch.Tensor  # fp32 [ranks, out]
    right: torch.Tensor  # fp32 [in, ranks]
    weights: torch.Tensor  # fp32 [rows, 1, ranks]

    @classmethod
    def of(
        cls, kernels: Sequence[LowRank], counts: Sequence[int], rows: torch.Tensor, factors: torch.Tensor, num_rows: int
    ) -> Joined:
        """`rows`, int [sum of counts]: kernel by kernel the batch's rows that use it, each with its number of
        `factors`; the same row and kernel may be there twice.
        """
        owners = torch.repeat_interleave(torch.arange(len(kernels)), torch.tensor(counts)).to(rows.device)
        table = torch.zeros(num_rows, len(kernels), device=rows.device)
        table.index_put_((rows, owners), factors, accumulate=True)
        ranks = torch.tensor([kernel.left.shape[1] for kernel in kernels], device=rows.device)
        return cls(
            left=torch.cat([kernel.left for kernel in kernels], 1).T.contiguous(),
            right=torch.cat([kernel.right for kernel in kernels], 1),
            weights=torch.repeat_interleave(table, ranks, 1)[:, None],
        )

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Into `outputs` [rows, tokens, out], from `inputs` [rows, tokens, in]."""
        outputs.add_(((inputs.float() @ self.right).mul_(self.weights)) @ self.left)
