"""`int8`: a sign and a 7-bit affine magnitude, with minimum and step of the magnitude for every 128 kept values.

Kept magnitudes start at the pruning threshold, so an affine code spends no level below it. |error| <= step / 2, plus
the fp16 rounding of minimum and step.
"""

from __future__ import annotations

import numpy as np

from patchbay.delta.codecs.base import Positions, Shape, Values
from patchbay.delta.frames import from_scaled_half, scaled_half
from patchbay.errors import MalformedDelta

GROUP = 128
LEVELS = 127


class Int8:
    name = "int8"

    def max_bytes(self, count: int, shape: Shape) -> int:
        return count + 2 * (4 + 2 * _num_groups(count))

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        magnitude = np.abs(values)
        starts = np.arange(0, len(values), GROUP)
        lowest = np.minimum.reduceat(magnitude, starts) if len(values) else magnitude
        highest = np.maximum.reduceat(magnitude, starts) if len(values) else magnitude
        steps = ((highest - lowest) / LEVELS).astype(np.float32)
        stored = scaled_half(lowest), scaled_half(steps)
        # Codes are taken against the stored scales, so that their rounding is not paid twice.
        low, step = (_spread(from_scaled_half(data), len(values)) for data in stored)
        code = np.zeros(len(values), np.uint8)
        np.divide(magnitude - low, step, out=magnitude, where=step > 0)
        code[:] = np.where(step > 0, np.clip(np.rint(magnitude), 0, LEVELS), 0)
        return stored[0] + stored[1] + (code | (np.signbit(values).astype(np.uint8) << 7)).tobytes()

    def decode(self, data: bytes, positions: Positions, shape: Shape) -> Values:
        count = len(positions)
        if len(data) != self.max_bytes(count, shape):
            raise MalformedDelta(f"{len(data)} bytes of int8 for {count} values")
        scale_bytes = 4 + 2 * _num_groups(count)
        low = _spread(from_scaled_half(data[:scale_bytes]), count)
        step = _spread(from_scaled_half(data[scale_bytes : 2 * scale_bytes]), count)
        code = np.frombuffer(data[2 * scale_bytes :], np.uint8)
        with np.errstate(over="ignore"):  # infinity is refused with the tensor's name
            magnitude = low + step * (code & 0x7F).astype(np.float32)
        return np.asarray(np.where(code >> 7, -magnitude, magnitude), dtype=np.float32)


def _num_groups(count: int) -> int:
    return -(-count // GROUP)


def _spread(per_group: Values, count: int) -> Values:
    return np.repeat(per_group, GROUP)[:count]
