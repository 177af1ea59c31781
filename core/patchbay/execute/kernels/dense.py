"""A difference that is stored whole. Also what the other kernels are tested against."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Dense:
    """`difference`: fp32 [out, in]; `own_bytes` of it are no other's."""

    difference: torch.Tensor
    own_bytes: int = 0

    @property
    def num_bytes(self) -> int:
        return self.own_bytes

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() @ self.difference.T

    def add_to(self, dense: torch.Tensor, coefficients: torch.Tensor) -> None:
        dense.addcmul_(self.difference, coefficients[:, None])

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        return self.difference[neurons]
