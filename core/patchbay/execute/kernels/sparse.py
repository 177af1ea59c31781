"""Kept entries, row by row."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Self

import torch

from patchbay.delta import SparseRows

FEW = 3  # inputs up to which one product each is faster than one of all: torch's product of matrices has a slow start


@dataclass(frozen=True, slots=True)
class Sparse:
    """Compressed rows: of neuron r the columns and values at `starts[r]` to `starts[r + 1]`. Indices are int32."""

    shape: tuple[int, int]
    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor  # fp32
    matrix: torch.Tensor  # the same memory as torch's own sparse matrix

    @classmethod
    def of(cls, rows: SparseRows, *, transposed: bool, device: torch.device) -> Self:
        """`transposed`: neurons are the stored matrix's columns."""
        stored_rows, stored_columns = rows.shape
        positions = rows.positions.long()
        first, second = positions // stored_columns, positions % stored_columns
        values = rows.values
        if transposed:
            order = torch.argsort(second, stable=True)
            first, second, values = second[order], first[order], values[order]
        shape = (stored_columns, stored_rows) if transposed else (stored_rows, stored_columns)
        starts = torch.zeros(shape[0] + 1, dtype=torch.int32)
        starts[1:] = torch.bincount(first, minlength=shape[0]).cumsum(0)
        starts, columns, values = starts.to(device), second.to(device, torch.int32), values.to(device)
        return cls(shape, starts, columns, values, _csr(shape, starts, columns, values))

    @property
    def num_bytes(self) -> int:
        return self.starts.nbytes + self.columns.nbytes + self.values.nbytes

    def product(self, x: torch.Tensor) -> torch.Tensor:
        count, given = x.shape[0], x.float()
        if count == 1:
            return torch.mv(self.matrix, given[0])[None]
        if count <= FEW and not x.is_cuda:
            return torch.stack([torch.mv(self.matrix, row) for row in given])
        return (self.matrix @ given.T).T

    def add_to(self, dense: torch.Tensor, coefficients: torch.Tensor) -> None:
        outputs, inputs = self.shape
        counts = self.starts.diff()
        neurons = torch.repeat_interleave(torch.arange(outputs, device=dense.device), counts)
        factors = coefficients if len(coefficients) == 1 else coefficients[neurons]
        dense.view(-1).index_add_(0, neurons * inputs + self.columns, self.values * factors)

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        starts = self.starts[neurons].long()
        counts = self.starts[neurons + 1].long() - starts
        owners = torch.repeat_interleave(torch.arange(len(neurons), device=neurons.device), counts)
        within = torch.arange(len(owners), device=owners.device) - (counts.cumsum(0) - counts)[owners]
        entries = starts[owners] + within
        found = torch.zeros(len(neurons), self.shape[1], device=neurons.device)
        found[owners, self.columns[entries].long()] = self.values[entries]
        return found


def _csr(shape: tuple[int, int], starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(starts, columns, values, size=shape, check_invariants=False)
