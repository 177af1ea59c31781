"""`sign_tensor`, `sign_row`, `sign_column`: one bit a value and one scale per tensor, row or column.

The scale is the mean magnitude of the values it stands for: the constant with the least squared error. A row is the
tensor's first axis, a column everything behind it, as for a matrix [rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from patchbay.delta.codecs.base import Positions, Shape, Values
from patchbay.delta.frames import from_scaled_half, scaled_half
from patchbay.errors import MalformedDelta

Axis = Callable[[Positions, int], Positions]
AXES: dict[str, Axis] = {
    "tensor": lambda positions, columns: np.zeros_like(positions),
    "row": lambda positions, columns: positions // columns,
    "column": lambda positions, columns: positions % columns,
}


class Sign:
    def __init__(self, axis: str) -> None:
        self.name = f"sign_{axis}"
        self.axis = axis

    def max_bytes(self, count: int, shape: Shape) -> int:
        return (count + 7) // 8 + 4 + 2 * self._num_scales(shape)

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        group = AXES[self.axis](positions, _columns(shape))
        num_scales = self._num_scales(shape)
        count = np.bincount(group, minlength=num_scales)
        total = np.bincount(group, weights=np.abs(values), minlength=num_scales)
        mean = (total / np.maximum(count, 1)).astype(np.float32)
        return scaled_half(mean) + np.packbits(np.signbit(values), bitorder="little").tobytes()

    def decode(self, data: bytes, positions: Positions, shape: Shape) -> Values:
        if len(data) != self.max_bytes(len(positions), shape):
            raise MalformedDelta(f"{len(data)} bytes of {self.name} for {len(positions)} values")
        cut = 4 + 2 * self._num_scales(shape)
        scale = from_scaled_half(data[:cut])[AXES[self.axis](positions, _columns(shape))]
        bits = np.unpackbits(np.frombuffer(data[cut:], np.uint8), bitorder="little")
        if bits[len(positions) :].any():
            raise MalformedDelta("a padding bit of the signs is set")
        return np.asarray(np.where(bits[: len(positions)], -scale, scale), dtype=np.float32)

    def _num_scales(self, shape: Shape) -> int:
        return {"tensor": 1, "row": shape[0] if shape else 1, "column": _columns(shape)}[self.axis]


def _columns(shape: Shape) -> int:
    return max(1, int(np.prod(shape[1:], dtype=np.int64))) if shape else 1
