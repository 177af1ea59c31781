"""Small whole numbers in few bytes: several share a byte as digits of a number, where there are few kinds of them.

Skewed digits compress further. From seven kinds on a byte each compresses better than digits do, from 257 on two.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from patchbay.delta.codecs.base import Bytes
from patchbay.errors import MalformedDelta

# Digits of base n that fit into a byte; where there is one kind, nothing needs to be said.
PER_BYTE = {2: 8, 3: 5, 4: 4, 5: 3, 6: 3}
MAX_KINDS = 1 << 16
Digits = npt.NDArray[np.uint16]


def num_bytes(count: int, kinds: int) -> int:
    """Of `count` digits 0 .. kinds - 1."""
    if kinds < 2:
        return 0
    return -(-count // PER_BYTE.get(kinds, 1)) * (2 if kinds > 256 else 1)


def pack(digits: npt.NDArray[np.integer], kinds: int) -> bytes:
    """Of digits 0 .. kinds - 1; zeros fill the last byte. Two bytes a digit are shuffled: all low bytes first."""
    if kinds < 2:
        return b""
    if kinds > 256:
        return np.concatenate([digits & 255, digits >> 8]).astype(np.uint8).tobytes()
    per_byte = PER_BYTE.get(kinds, 1)
    padded = np.pad(digits.astype(np.uint8), (0, -len(digits) % per_byte)).reshape(-1, per_byte)
    return bytes((padded * _powers(kinds)).sum(axis=1).astype(np.uint8).tobytes())


def unpack(data: Bytes, count: int, kinds: int) -> Digits:
    """Raises MalformedDelta for a wrong length, a digit of `kinds` or more, or anything behind the last one."""
    if len(data) != num_bytes(count, kinds):
        raise MalformedDelta(f"{len(data)} bytes for {count} digits of {kinds} kinds")
    if kinds < 2:
        return np.zeros(count, np.uint16)
    codes = np.frombuffer(data, np.uint8)
    if kinds > 256:
        digits = np.asarray(codes[:count] | codes[count:].astype(np.uint16) << 8, dtype=np.uint16)
        most = int(digits.max(initial=0))
    else:
        per_byte = PER_BYTE.get(kinds, 1)
        most = int(codes.max(initial=0)) if per_byte == 1 else int(codes.max(initial=0) >= kinds**per_byte) * kinds
        digits = np.take(_digits_of_byte(kinds), codes, axis=0).reshape(-1)
    if most >= kinds:
        raise MalformedDelta(f"a digit beyond the {kinds} kinds")
    if digits[count:].any():
        raise MalformedDelta("a digit behind the last value is not 0")
    return np.asarray(digits[:count], dtype=np.uint16)


@cache
def _digits_of_byte(kinds: int) -> Digits:
    """[256, digits a byte]: to divide each byte takes ten times as long."""
    return (np.arange(256)[:, None] // _powers(kinds) % kinds).astype(np.uint16)


def _powers(kinds: int) -> npt.NDArray[np.int64]:
    return kinds ** np.arange(PER_BYTE.get(kinds, 1))
