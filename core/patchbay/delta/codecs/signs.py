"""One sign bit a value, lowest bit first. Shared by the encodings that keep signs apart from magnitudes."""

from __future__ import annotations

import numpy as np

from patchbay.delta.codecs.base import Bytes, Values
from patchbay.errors import MalformedDelta

_BITS_OF_BYTE = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_SIGNS_OF_BYTE = _BITS_OF_BYTE.astype(np.uint32) << np.uint32(31)


def num_bytes(count: int) -> int:
    return (count + 7) // 8


def pack(values: Values) -> bytes:
    return np.packbits(np.signbit(values), bitorder="little").tobytes()


def apply(data: Bytes, magnitudes: Values, count: int) -> Values:
    """`count` magnitudes, or one for all of them, with the signs of `data`, which has `num_bytes(count)` bytes.

    Raises MalformedDelta for a bit behind the last one.
    """
    # By table and into the sign bit itself: to unpack bits and to choose between two numbers takes five times as long.
    signs = np.take(_SIGNS_OF_BYTE, np.frombuffer(data, np.uint8), axis=0).reshape(-1)
    if signs[count:].any():
        raise MalformedDelta("a padding bit of the signs is set")
    signed = signs[:count]
    signed ^= magnitudes.view(np.uint32)
    return signed.view(np.float32)
