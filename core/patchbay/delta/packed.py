"""Kept entries in two bytes each, or four: how a delta waits in memory for products, and what it can be had back from.

Neurons (the matrix's rows, or its columns where layers store it transposed) are taken 256 at a time, a window; in a
window those with about as many entries stand together, 16 to a slice, and of a slice's neurons the entries side by
side, a step each. So sixteen sums are made at once, and no neuron's end has to be looked for. Where every value of an
input column has the same size, as in deltas of signs, an entry is its column and its sign; else a value is beside it,
in two bytes where bf16 has it to the bit.

Knows nothing of products (rows.c in execute/kernels reads this layout) and of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch

from patchbay.delta.delta import SparseRows

LANES, WINDOW = 16, 256
SLICES = WINDOW // LANES
WIDEST = (2**16 - 1) // 2  # inputs: a slot tells columns of both signs apart, and padding from them


@dataclass(frozen=True)
class PackedRows:
    """One matrix's delta: `unpacked` is what was packed, to the bit."""

    shape: tuple[int, int]
    transposed: bool  # neurons are the stored matrix's columns
    slots: torch.Tensor  # uint16 [steps, 16]: column, + inputs where negative and values are signs; padding is past all
    sizes: torch.Tensor | None  # bf16 or fp32 [steps, 16]: values; None where they are signs
    scale: torch.Tensor | None  # fp32 [inputs]: |value| of a column's entries, where they are signs
    lengths: torch.Tensor  # uint16 [slices]: steps
    order: torch.Tensor  # uint8 [windows, 256]: slice by slice the neuron, from its window's first
    rank: torch.Tensor  # uint8 [windows, 256]: where `order` has the neuron
    starts: torch.Tensor  # int32 [windows]: the first step

    @classmethod
    def of(cls, rows: SparseRows, *, transposed: bool) -> Self:
        """The matrix has two dimensions, and WIDEST inputs at the most."""
        neurons, columns, values = _by_neuron(rows, transposed)
        outputs, inputs = reversed(rows.shape) if transposed else rows.shape
        windows = -(-outputs // WINDOW)
        counts = torch.bincount(neurons, minlength=windows * WINDOW)
        most_first, order = counts.view(windows, WINDOW).sort(dim=1, descending=True, stable=True)
        lengths = most_first.view(-1, LANES)[:, 0]
        begins = lengths.cumsum(0) - lengths
        rank = torch.empty_like(order).scatter_(1, order, torch.arange(WINDOW).expand_as(order))
        # An entry's step is its slice's first, and one for each entry of the same neuron that is before it.
        slices = (torch.arange(windows)[:, None] * SLICES + rank // LANES).flatten()
        steps = (begins[slices] - (counts.cumsum(0) - counts))[neurons] + torch.arange(len(neurons))
        places = steps * LANES + (rank % LANES).flatten()[neurons]
        scale = _scale(columns, values, inputs)
        signed = columns if scale is None else columns + torch.signbit(values) * inputs
        total, padding = int(lengths.sum()) * LANES, inputs if scale is None else 2 * inputs
        return cls(
            shape=(rows.shape[0], rows.shape[1]),
            transposed=transposed,
            slots=_placed(signed.to(torch.int32), places, total, padding).to(torch.uint16),
            sizes=_placed(_narrow(values), places, total, 0) if scale is None else None,
            scale=scale,
            lengths=lengths.to(torch.uint16),
            order=order.to(torch.uint8),
            rank=rank.to(torch.uint8),
            starts=begins[::SLICES].to(torch.int32),
        )

    @property
    def outputs(self) -> int:
        return self.shape[1] if self.transposed else self.shape[0]

    @property
    def inputs(self) -> int:
        return self.shape[0] if self.transposed else self.shape[1]

    @cached_property
    def num_bytes(self) -> int:
        parts = (self.slots, self.sizes, self.scale, self.lengths, self.order, self.rank, self.starts)
        return sum(part.nbytes for part in parts if part is not None)

    def unpacked(self) -> SparseRows:
        neurons, columns, values = self.entries(torch.arange(self.outputs))
        if not self.transposed:
            return SparseRows(self.shape, neurons * self.shape[1] + columns, values)
        positions, order = (columns * self.shape[1] + neurons).sort()
        return SparseRows(self.shape, positions, values[order])

    def to_dense(self) -> torch.Tensor:
        """fp32 [shape], zeros where nothing is kept."""
        return self.unpacked().to_dense()

    def entries(self, neurons: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of these neurons, int64 [n]: which of the n an entry belongs to, its column, its value; in that order."""
        windows, rank = neurons // WINDOW, self.rank.view(-1)[neurons].long()
        lengths = self.lengths.to(torch.int64)
        begins = lengths.cumsum(0) - lengths
        slices = windows * SLICES + rank // LANES
        counts = lengths[slices]
        owners = torch.repeat_interleave(torch.arange(len(neurons)), counts)
        steps = torch.arange(len(owners)) + (begins[slices] - (counts.cumsum(0) - counts))[owners]
        places = steps * LANES + (rank % LANES)[owners]
        slots = self.slots.view(-1)[places].to(torch.int64)
        kept = slots != (self.inputs if self.scale is None else 2 * self.inputs)
        owners, slots = owners[kept], slots[kept]
        if self.scale is None:
            assert self.sizes is not None
            return owners, slots, self.sizes.view(-1)[places[kept]].float()
        columns = slots % self.inputs
        values = self.scale[columns]
        return owners, columns, torch.where(slots < self.inputs, values, -values)


def _by_neuron(rows: SparseRows, transposed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of every entry the neuron, in order, the column and the value."""
    positions = rows.positions.long()
    first, second = positions // rows.shape[1], positions % rows.shape[1]
    if not transposed:
        return first, second, rows.values
    order = torch.argsort(second, stable=True)
    return second[order], first[order], rows.values[order]


def _scale(columns: torch.Tensor, values: torch.Tensor, inputs: int) -> torch.Tensor | None:
    """[inputs], where entries of one column differ in nothing but signs."""
    sizes = values.abs()
    scale = torch.zeros(inputs)
    scale[columns] = sizes
    return scale if torch.equal(scale[columns], sizes) else None


def _narrow(values: torch.Tensor) -> torch.Tensor:
    halves = values.bfloat16()
    return halves if torch.equal(halves.float(), values) else values


def _placed(values: torch.Tensor, places: torch.Tensor, total: int, padding: float) -> torch.Tensor:
    """[total / 16, 16]"""
    found = torch.full((total,), padding, dtype=values.dtype)
    found[places] = values
    return found.view(-1, LANES)
