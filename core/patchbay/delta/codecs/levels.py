"""`levels`: at most 16 distinct magnitudes in a table, an index into it and a sign a value. Exact.

Indices and signs lie in separate runs: skewed indices compress, signs do not.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchbay.delta.codecs import digits, signs
from patchbay.delta.codecs.base import Bytes, Positions, Shape, Values
from patchbay.errors import InvalidRecipe, MalformedDelta

MAX_LEVELS = 16


class Levels:
    name = "levels"

    def max_bytes(self, count: int, shape: Shape) -> int:
        return self.scale_bytes(count, shape) + count + signs.num_bytes(count)

    def scale_bytes(self, count: int, shape: Shape) -> int:
        return 4 * MAX_LEVELS

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        """Raises InvalidRecipe for more than 16 magnitudes: another encoding has to round them first."""
        table, index = np.unique(np.abs(values), return_inverse=True)
        if len(table) > MAX_LEVELS:
            raise InvalidRecipe(
                f"{len(table)} distinct magnitudes in one tensor; `levels` holds at most {MAX_LEVELS}: "
                "quantise first, or choose another encoding",
                param="values",
            )
        padded = np.pad(table.astype("<f4"), (0, MAX_LEVELS - len(table)))
        return padded.tobytes() + digits.pack(index, len(table)) + signs.pack(values)

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        count = len(positions)
        table = np.frombuffer(data[: 4 * MAX_LEVELS], "<f4") if len(data) >= 4 * MAX_LEVELS else np.empty(0, "<f4")
        num_levels = _num_levels(table, count)
        index_bytes = digits.num_bytes(count, num_levels)
        if len(data) != 4 * MAX_LEVELS + index_bytes + signs.num_bytes(count):
            raise MalformedDelta(f"{len(data)} bytes of levels for {count} values of {num_levels} magnitudes")
        codes = data[4 * MAX_LEVELS :]
        index = digits.unpack(codes[:index_bytes], count, num_levels)
        magnitude = table.astype(np.float32)[index] if count else np.empty(0, np.float32)
        return signs.apply(codes[index_bytes:], magnitude, count)


def _num_levels(table: npt.NDArray[np.float32], count: int) -> int:
    """Levels rise; zeros fill the table behind them. A first level of 0 is one."""
    if not len(table) or not (np.isfinite(table).all() and not np.signbit(table).any()):
        raise MalformedDelta("bytes of levels without a table of 16 finite magnitudes")
    rising = np.diff(table) > 0
    num_levels = 1 + int(rising.argmin() if not rising.all() else len(rising))
    if table[num_levels:].any():
        raise MalformedDelta("a table of levels does not rise")
    return num_levels if count else 0
