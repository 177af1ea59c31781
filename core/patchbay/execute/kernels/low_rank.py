"""Singular vectors U V^T, alone or with kept entries beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from patchbay.execute.kernels.sparse import Sparse


@dataclass(frozen=True, slots=True)
class LowRank:
    """`left` fp32 [out, rank], `right` fp32 [in, rank]; `rest` is added."""

    left: torch.Tensor
    right: torch.Tensor
    rest: Sparse | None

    @property
    def num_bytes(self) -> int:
        return self.left.nbytes + self.right.nbytes + (self.rest.num_bytes if self.rest else 0)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        found = (x.float() @ self.right) @ self.left.T
        return found if self.rest is None else found.add_(self.rest.product(x))

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        found = self.left[neurons] @ self.right.T
        return found if self.rest is None else found.add_(self.rest.rows(neurons))
