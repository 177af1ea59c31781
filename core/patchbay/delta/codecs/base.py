"""The contracts of an encoding: where the kept entries are, and what they are.

A new encoding is one file in this folder and one line in `__init__`. Codecs know the tensor's shape and nothing else:
no names, no files. `decode` gets bytes from untrusted files: it checks everything it relies on and raises
MalformedDelta.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Positions = npt.NDArray[np.signedinteger]
Values = npt.NDArray[np.float32]
Shape = tuple[int, ...]
Bytes = bytes | memoryview


def index_dtype(numel: int) -> torch.dtype:
    """The narrower of int32 and int64 that numbers `numel` entries."""
    return torch.int32 if numel < 2**31 else torch.int64


class PositionCodec(Protocol):
    """Bytes -> strictly increasing row-major positions in a tensor of `numel` entries."""

    @property
    def name(self) -> str: ...

    def max_bytes(self, count: int, numel: int) -> int: ...

    def decode(self, data: Bytes, count: int, numel: int) -> Positions:
        """Exactly `count` increasing positions below `numel`, or MalformedDelta."""
        ...


class PositionEncoder(PositionCodec, Protocol):
    """A codec that can also write any positions (or, as `all`, those it stands for)."""

    def encode(self, positions: Positions, numel: int) -> bytes: ...


class ValueCodec(Protocol):
    """The kept values, in the order of their positions <-> bytes. Both directions see the positions and the shape.

    The bytes are scales and then codes, which a file keeps apart: skewed scales compress, random signs do not.
    """

    @property
    def name(self) -> str: ...

    def max_bytes(self, count: int, shape: Shape) -> int: ...

    def scale_bytes(self, count: int, shape: Shape) -> int:
        """How many of the bytes, from the first, are scales; always exact."""
        ...

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes: ...

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        """One value a position, or MalformedDelta."""
        ...
