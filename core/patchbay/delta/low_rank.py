"""Low-rank differences U V^T, multiplied out to the same bits on every machine. Knows no files."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Matrix = npt.NDArray[np.float32]
FactorPair = tuple[torch.Tensor, torch.Tensor, str]  # left [rows, rank], right [columns, rank], value encoding
BLOCK = 1 << 16  # entries that stay in a core's cache


@dataclass(frozen=True, slots=True)
class Factors:
    """U V^T: fp32 `left` [rows, rank] and `right` [columns, rank], rows the first dimension of `shape`."""

    shape: tuple[int, ...]
    left: torch.Tensor
    right: torch.Tensor

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def num_bytes(self) -> int:
        return self.left.nbytes + self.right.nbytes

    @property
    def largest(self) -> float:
        """No entry is larger than sum_k max |U_k| max |V_k|."""
        if not self.left.numel() or not self.right.numel():
            return 0.0
        return float((self.left.abs().amax(0).double() * self.right.abs().amax(0).double()).sum())

    def to_dense(self) -> torch.Tensor:
        """fp32 [shape]."""
        return torch.from_numpy(product(self.left.numpy(), self.right.numpy())).reshape(self.shape)


def product(left: Matrix, right: Matrix) -> Matrix:
    """fp32 [rows, columns] from left factors [rows, rank] and right factors [columns, rank].

    Starts from 0 and adds u v^T column by column, each product and each sum rounded to fp32: a matrix product would
    add in an order, and with a fused rounding, of the machine's choice.
    """
    rows, columns = len(left), len(right)
    total = np.zeros((rows, columns), np.float32)
    across = np.ascontiguousarray(right.T)
    step = max(1, BLOCK // max(1, columns))
    scratch = np.empty((step, columns), np.float32)
    for start in range(0, rows, step):
        block = total[start : start + step]
        for column, row in zip(left[start : start + step].T, across, strict=True):
            np.add(block, np.multiply(column[:, None], row, out=scratch[: len(block)]), out=block)
    return total
