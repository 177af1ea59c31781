"""`bitmask`: one bit an entry, lowest bit first. Smaller than gaps from about 21 % density on."""

from __future__ import annotations

import numpy as np

from patchbay.delta.codecs.base import Bytes, Positions
from patchbay.errors import MalformedDelta


class Bitmask:
    name = "bitmask"

    def max_bytes(self, count: int, numel: int) -> int:
        return (numel + 7) // 8

    def encode(self, positions: Positions, numel: int) -> bytes:
        bits = np.zeros(numel, np.bool_)
        bits[positions] = True
        return np.packbits(bits, bitorder="little").tobytes()

    def decode(self, data: Bytes, count: int, numel: int) -> Positions:
        if len(data) != self.max_bytes(count, numel):
            raise MalformedDelta(f"a bitmask of {len(data)} bytes for {numel} entries")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        positions = np.flatnonzero(bits.view(np.bool_))  # five times faster than of bytes
        if len(positions) != count or (count and positions[-1] >= numel):
            raise MalformedDelta(f"a bitmask with {len(positions)} entries where {count} are declared")
        return positions
