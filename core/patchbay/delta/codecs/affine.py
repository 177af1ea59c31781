"""`int8` and `int4`: a sign and an affine magnitude code of 7 or 3 bits, with minimum and step of the magnitude for
every 128 kept values.

Kept magnitudes start at the pruning threshold, so an affine code spends no level below it. |error| <= step / 2, plus
the fp16 rounding of minimum and step.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchbay.delta.codecs.base import Bytes, Positions, Shape, Values
from patchbay.delta.frames import from_scaled_half, scaled_half
from patchbay.errors import MalformedDelta

GROUP = 128
Codes = npt.NDArray[np.uint8]


class Affine:
    """`bits` a value, sign included: 8, or 4 with two values a byte, the first in the low half."""

    def __init__(self, bits: int) -> None:
        self.name = f"int{bits}"
        self.bits = bits
        self.levels = 2 ** (bits - 1) - 1

    def max_bytes(self, count: int, shape: Shape) -> int:
        return self.scale_bytes(count, shape) + (count * self.bits + 7) // 8

    def scale_bytes(self, count: int, shape: Shape) -> int:
        return 2 * (4 + 2 * _num_groups(count))

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        magnitude = np.abs(values)
        starts = np.arange(0, len(values), GROUP)
        lowest = np.minimum.reduceat(magnitude, starts) if len(values) else magnitude
        highest = np.maximum.reduceat(magnitude, starts) if len(values) else magnitude
        steps = ((highest - lowest) / self.levels).astype(np.float32)
        stored = scaled_half(lowest), scaled_half(steps)
        # Codes are taken against the stored scales, so that their rounding is not paid twice.
        low, step = (_spread(from_scaled_half(data), len(values)) for data in stored)
        code = np.zeros(len(values), np.uint8)
        np.divide(magnitude - low, step, out=magnitude, where=step > 0)
        code[:] = np.where(step > 0, np.clip(np.rint(magnitude), 0, self.levels), 0)
        code |= np.where(np.signbit(values), self.levels + 1, 0).astype(np.uint8)
        return stored[0] + stored[1] + self._join(code).tobytes()

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        count = len(positions)
        if len(data) != self.max_bytes(count, shape):
            raise MalformedDelta(f"{len(data)} bytes of {self.name} for {count} values")
        cut = self.scale_bytes(count, shape)
        low = _spread(from_scaled_half(data[: cut // 2]), count)
        step = _spread(from_scaled_half(data[cut // 2 : cut]), count)
        signed = self._split(np.frombuffer(data[cut:], np.uint8), count)
        with np.errstate(over="ignore"):  # infinity is refused with the tensor's name
            magnitude = low + step * (signed & self.levels).astype(np.float32)
        sign = (signed & (self.levels + 1)).astype(np.uint32) << np.uint32(32 - self.bits)
        return np.asarray((magnitude.view(np.uint32) ^ sign).view(np.float32), dtype=np.float32)

    def _join(self, signed: Codes) -> Codes:
        if self.bits == 8:
            return signed
        pairs = np.pad(signed, (0, len(signed) % 2)).reshape(-1, 2)
        return np.asarray(pairs[:, 0] | pairs[:, 1] << 4, dtype=np.uint8)

    def _split(self, packed: Codes, count: int) -> Codes:
        if self.bits == 8:
            return packed
        signed = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
        if signed[count:].any():
            raise MalformedDelta(f"the half byte behind the last {self.name} value is not 0")
        return signed[:count]


def _num_groups(count: int) -> int:
    return -(-count // GROUP)


def _spread(per_group: Values, count: int) -> Values:
    return np.repeat(per_group, GROUP)[:count]
