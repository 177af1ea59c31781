"""The two contracts of an encoding: where the kept entries are, and what they are.

A new encoding is one file in this folder and one line in `__init__`. Codecs know the tensor's shape and nothing else:
no names, no files. `decode` gets bytes from untrusted files: it checks everything it relies on and raises
MalformedDelta.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
Shape = tuple[int, ...]


class PositionCodec(Protocol):
    """Strictly increasing row-major positions in a tensor of `numel` entries <-> bytes."""

    name: str

    def max_bytes(self, count: int, numel: int) -> int: ...

    def encode(self, positions: Positions, numel: int) -> bytes: ...

    def decode(self, data: bytes, count: int, numel: int) -> Positions:
        """Exactly `count` increasing positions below `numel`, or MalformedDelta."""
        ...


class ValueCodec(Protocol):
    """The kept values, in the order of their positions <-> bytes. Both directions see the positions and the shape."""

    name: str

    def max_bytes(self, count: int, shape: Shape) -> int: ...

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes: ...

    def decode(self, data: bytes, positions: Positions, shape: Shape) -> Values:
        """One value a position, or MalformedDelta."""
        ...
