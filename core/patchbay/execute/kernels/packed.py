"""Entries of two bytes, multiplied by the C code: a matrix alone, and a layer's matrices of many deltas in one call.

Knows nothing of plans and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from patchbay.delta.packed import WIDEST, PackedRows
from patchbay.execute.kernels import native

_IS_BF16 = {torch.float32: 0, torch.bfloat16: 1}


def can_pack(inputs: int, device: torch.device) -> bool:
    """Whether a matrix with so many inputs can be multiplied in this form here."""
    return native.is_there() and device.type == "cpu" and inputs <= WIDEST


@dataclass(frozen=True, slots=True)
class Packed:
    """The delta's own memory: nothing is copied."""

    packed: PackedRows

    @property
    def num_bytes(self) -> int:
        return 0

    def product(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(x), self.packed.outputs)
        together = Together.of([self], [len(x)], torch.arange(len(x)), None, None)
        given = x if x.dtype in _IS_BF16 else x.float()
        together.add(given.contiguous()[:, None], found[:, None])
        return found

    def add_to(self, dense: torch.Tensor, coefficients: torch.Tensor) -> None:
        factors = coefficients.float().contiguous()
        outputs, inputs = dense.shape
        matrix = _matrix(self.packed, 0, 0)
        native.add_entries(matrix, factors.data_ptr(), len(factors), inputs, outputs, dense.data_ptr())

    def rows(self, neurons: torch.Tensor) -> torch.Tensor:
        owners, columns, values = self.packed.entries(neurons)
        found = torch.zeros(len(neurons), self.packed.inputs)
        found[owners, columns] = values
        return found


@dataclass(frozen=True, slots=True)
class Together:
    """One call for all deltas of a layer. `kept` holds the memory that `call` points to."""

    call: native.Call
    kept: tuple[object, ...]

    @classmethod
    def of(
        cls,
        kernels: Sequence[Packed],
        counts: Sequence[int],
        rows: torch.Tensor,
        coefficients: torch.Tensor | None,
        entries: torch.Tensor | None,
    ) -> Together:
        """`rows`, int [sum of counts]: kernel by kernel the batch's rows that use it; `coefficients` fp32 [., out] or
        [., 1], and `entries` which of them each of `rows` has: None where it is its own.
        """
        rows = rows.to(torch.int32).contiguous()
        own = torch.arange(len(rows)) if entries is None else entries
        numbers = own.to(torch.int32).contiguous()
        factors = None if coefficients is None else coefficients.float().contiguous()
        matrices, first = (native.Matrix * len(kernels))(), 0
        for number, (kernel, count) in enumerate(zip(kernels, counts, strict=True)):
            matrices[number] = _matrix(kernel.packed, first, count)
            first += count
        shape = kernels[0].packed
        call = native.Call(
            matrices=matrices,
            rows=rows.data_ptr(),
            coefficients=None if factors is None else factors.data_ptr(),
            entries=numbers.data_ptr(),
            inputs=shape.inputs,
            outputs=shape.outputs,
            width=1 if factors is None else factors.shape[1],
            num_matrices=len(kernels),
        )
        return cls(call, (matrices, rows, numbers, factors, *kernels))

    def takes(self, inputs: torch.Tensor, outputs: torch.Tensor) -> bool:
        """Whether these are laid out as the C code reads and writes them."""
        return (
            inputs.dtype in _IS_BF16
            and outputs.dtype in _IS_BF16
            and inputs.is_contiguous()
            and outputs.is_contiguous()
            and not inputs.is_cuda
        )

    def add(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Into `outputs` [rows, tokens, out], from `inputs` [rows, tokens, in]: both as `takes` asks."""
        call = self.call
        call.x, call.y, call.tokens = inputs.data_ptr(), outputs.data_ptr(), inputs.shape[1]
        call.x_is_bf16, call.y_is_bf16 = _IS_BF16[inputs.dtype], _IS_BF16[outputs.dtype]
        native.add_rows(call, torch.get_num_threads())


def _matrix(packed: PackedRows, first: int, count: int) -> native.Matrix:
    sizes = None if packed.sizes is None else packed.sizes.data_ptr()
    is_half = packed.sizes is not None and packed.sizes.dtype is torch.bfloat16
    return native.Matrix(
        slots=packed.slots.data_ptr(),
        values=None if is_half else sizes,
        halves=sizes if is_half else None,
        scale=None if packed.scale is None else packed.scale.data_ptr(),
        lengths=packed.lengths.data_ptr(),
        order=packed.order.data_ptr(),
        starts=packed.starts.data_ptr(),
        first=first,
        count=count,
    )
