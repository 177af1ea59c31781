"""`sign_tensor`, `sign_row`, `sign_column`, `sign_column_log`: one bit a value and one scale per tensor, row or column.

The scale is the mean magnitude of the values it stands for: the constant with the least squared error. A row is the
tensor's first axis, a column everything behind it, as for a matrix [rows, columns].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from patchbay.delta.codecs import signs
from patchbay.delta.codecs.base import Bytes, Positions, Shape, Values
from patchbay.delta.codecs.grid import from_grid, to_grid
from patchbay.delta.frames import from_scaled_half, scaled_half
from patchbay.errors import MalformedDelta

LOG_STEPS = 4
Axis = Callable[[Positions, int], Positions]
AXES: dict[str, Axis] = {
    "tensor": lambda positions, columns: np.zeros_like(positions),
    "row": lambda positions, columns: positions // columns,
    "column": lambda positions, columns: positions - positions // columns * columns,  # numpy's % is slower
}


class Sign:
    """Scales as fp16 fractions of the largest."""

    def __init__(self, axis: str) -> None:
        self.name = f"sign_{axis}"
        self.axis = axis

    def max_bytes(self, count: int, shape: Shape) -> int:
        return self.scale_bytes(count, shape) + signs.num_bytes(count)

    def scale_bytes(self, count: int, shape: Shape) -> int:
        return 4 + 2 * self._num_scales(shape)

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        group = AXES[self.axis](positions, _columns(shape))
        num_scales = self._num_scales(shape)
        count = np.bincount(group, minlength=num_scales)
        total = np.bincount(group, weights=np.abs(values), minlength=num_scales)
        mean = (total / np.maximum(count, 1)).astype(np.float32)
        return self._pack_scales(mean) + signs.pack(values)

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        if len(data) != self.max_bytes(len(positions), shape):
            raise MalformedDelta(f"{len(data)} bytes of {self.name} for {len(positions)} values")
        cut = self.scale_bytes(len(positions), shape)
        scale = self._unpack_scales(data[:cut])
        if len(scale) > 1:
            scale = scale[AXES[self.axis](positions, _columns(shape))]
        return signs.apply(data[cut:], scale, len(positions))

    def _pack_scales(self, scales: Values) -> bytes:
        return scaled_half(scales)

    def _unpack_scales(self, data: Bytes) -> Values:
        return from_scaled_half(data)

    def _num_scales(self, shape: Shape) -> int:
        return {"tensor": 1, "row": shape[0] if shape else 1, "column": _columns(shape)}[self.axis]


class SignLog(Sign):
    """Scales as one byte each, on a grid of four steps an octave below the largest; 255 stands for 0."""

    def __init__(self, axis: str) -> None:
        super().__init__(axis)
        self.name = f"sign_{axis}_log"

    def scale_bytes(self, count: int, shape: Shape) -> int:
        return 4 + self._num_scales(shape)

    def _pack_scales(self, scales: Values) -> bytes:
        maximum, codes = to_grid(scales, LOG_STEPS)
        return bytes(maximum.astype("<f4").tobytes() + codes.tobytes())

    def _unpack_scales(self, data: Bytes) -> Values:
        return from_grid(np.frombuffer(data[:4], "<f4")[0], np.frombuffer(data[4:], np.uint8), LOG_STEPS)


def _columns(shape: Shape) -> int:
    return max(1, int(np.prod(shape[1:], dtype=np.int64))) if shape else 1
