"""A logarithmic grid below a maximum: maximum * 2^(-k / steps), the same bits on every machine.

2^(-k / steps) is one of `steps` fp32 constants, shifted by a whole exponent: no power or logarithm is computed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchbay.delta.codecs.base import Values
from patchbay.errors import MalformedDelta

NUM_POINTS = 255
ZERO = 255  # the code of a 0
# fp32(2^(-j / 4)) for j = 0, 1, 2, 3
QUARTERS = np.array([0x3F800000, 0x3F5744FD, 0x3F3504F3, 0x3F1837F0], np.uint32).view(np.float32)
Codes = npt.NDArray[np.uint8]


def grid(maximum: np.float32, steps: int) -> Values:
    """The 255 points for `steps` (1, 2 or 4) an octave, falling; each of the two products rounded to fp32."""
    k = np.arange(NUM_POINTS)
    fractions = QUARTERS[:: 4 // steps][k % steps]
    return np.asarray(np.ldexp(np.float32(maximum) * fractions, -(k // steps)), dtype=np.float32)


def to_grid(values: Values, steps: int) -> tuple[np.float32, Codes]:
    """The maximum of non-negative values and each one's nearest point, the larger of two; ZERO for a 0."""
    maximum = np.float32(values.max(initial=0.0))
    points = grid(maximum, steps).astype(np.float64)
    middles = (points[:-1] + points[1:]) / 2
    codes = np.searchsorted(-middles, -values.astype(np.float64), side="left")
    return maximum, np.where(values > 0, codes, ZERO).astype(np.uint8)


def from_grid(maximum: np.float32, codes: Codes, steps: int) -> Values:
    if not (np.isfinite(maximum) and maximum >= 0):
        raise MalformedDelta("the maximum of a grid is negative or not finite")
    return np.append(grid(maximum, steps), np.float32(0))[codes]
