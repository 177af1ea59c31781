"""`levels`: at most 16 distinct magnitudes in a table, an index into it and a sign a value. Exact.

Indices and signs lie in separate runs: skewed indices compress, signs do not. Up to six levels, several indices share
a byte as digits of a number; from seven on a byte each compresses better.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from patchbay.delta.codecs.base import Bytes, Positions, Shape, Values
from patchbay.errors import InvalidRecipe, MalformedDelta

MAX_LEVELS = 16
# Digits of base n that fit into a byte; one level needs no index.
PER_BYTE = {2: 8, 3: 5, 4: 4, 5: 3, 6: 3}
Codes = npt.NDArray[np.uint8]


class Levels:
    name = "levels"

    def max_bytes(self, count: int, shape: Shape) -> int:
        return self.scale_bytes(count, shape) + count + (count + 7) // 8

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
        signs = np.packbits(np.signbit(values), bitorder="little")
        return padded.tobytes() + _join(index.astype(np.uint8), len(table)).tobytes() + signs.tobytes()

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        count = len(positions)
        table = np.frombuffer(data[: 4 * MAX_LEVELS], "<f4") if len(data) >= 4 * MAX_LEVELS else np.empty(0, "<f4")
        num_levels = _num_levels(table, count)
        index_bytes = _index_bytes(count, num_levels)
        if len(data) != 4 * MAX_LEVELS + index_bytes + (count + 7) // 8:
            raise MalformedDelta(f"{len(data)} bytes of levels for {count} values of {num_levels} magnitudes")
        codes = np.frombuffer(data[4 * MAX_LEVELS :], np.uint8)
        index = _split(codes[:index_bytes], count, num_levels)
        bits = np.unpackbits(codes[index_bytes:], bitorder="little")
        if bits[count:].any():
            raise MalformedDelta("a padding bit of the signs is set")
        magnitude = table[index].astype(np.float32) if count else np.empty(0, np.float32)
        return np.asarray(np.where(bits[:count], -magnitude, magnitude), dtype=np.float32)


def _num_levels(table: npt.NDArray[np.float32], count: int) -> int:
    """Levels rise; zeros fill the table behind them. A first level of 0 is one."""
    if not len(table) or not (np.isfinite(table).all() and not np.signbit(table).any()):
        raise MalformedDelta("bytes of levels without a table of 16 finite magnitudes")
    rising = np.diff(table) > 0
    num_levels = 1 + int(rising.argmin() if not rising.all() else len(rising))
    if table[num_levels:].any():
        raise MalformedDelta("a table of levels does not rise")
    return num_levels if count else 0


def _index_bytes(count: int, num_levels: int) -> int:
    return 0 if num_levels < 2 else -(-count // PER_BYTE.get(num_levels, 1))


def _join(index: Codes, num_levels: int) -> Codes:
    if num_levels < 2:
        return np.empty(0, np.uint8)
    digits = PER_BYTE.get(num_levels, 1)
    padded = np.pad(index, (0, -len(index) % digits)).reshape(-1, digits)
    return np.asarray((padded * _powers(num_levels)).sum(axis=1), dtype=np.uint8)


def _split(codes: Codes, count: int, num_levels: int) -> Codes:
    if num_levels < 2:
        return np.zeros(count, np.uint8)
    digits = PER_BYTE.get(num_levels, 1)
    if len(codes) and int(codes.max()) >= num_levels**digits:
        raise MalformedDelta(f"an index beyond the {num_levels} levels")
    index = (codes[:, None] // _powers(num_levels) % num_levels).reshape(-1)
    if index[count:].any():
        raise MalformedDelta("an index behind the last value is not 0")
    return np.asarray(index[:count], dtype=np.uint8)


def _powers(num_levels: int) -> npt.NDArray[np.int64]:
    return num_levels ** np.arange(PER_BYTE.get(num_levels, 1))
