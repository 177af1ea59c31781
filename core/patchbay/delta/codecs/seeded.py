"""`seeded`: random positions, one in each of `count` equal stretches of the tensor, told by eight bytes of seed.

The generator is numpy's Philox 4x64-10, whose stream is part of numpy's promise for bit generators (NEP 19) and of
FORMAT.md; a golden file holds it.
"""

from __future__ import annotations

import numpy as np

from patchbay.delta.codecs.base import Bytes, Positions
from patchbay.errors import InvalidRecipe, MalformedDelta

SEED_BYTES = 8
MAX_COUNT = 2**31  # count^2 and a stretch times 2^32 have to fit into 64 bits
MAX_STRETCH = 2**32


class Seeded:
    name = "seeded"

    def max_bytes(self, count: int, numel: int) -> int:
        return SEED_BYTES

    def decode(self, data: Bytes, count: int, numel: int) -> Positions:
        if len(data) != SEED_BYTES:
            raise MalformedDelta(f"{len(data)} bytes of seed; it has {SEED_BYTES}")
        if not _drawable(count, numel):
            raise MalformedDelta(f"{count} positions of {numel} cannot be drawn from a seed")
        return _draw(int.from_bytes(data, "little"), count, numel)


def seeded_positions(seed: int, count: int, numel: int) -> Positions:
    """`count` increasing positions below `numel`, one in each of `count` stretches: what `seeded` decodes to.

    The one of stretch k is lo + (((raw_k >> 32) * (hi - lo)) >> 32) with lo = floor(k numel / count) and
    hi = floor((k + 1) numel / count); raw_k is the k-th 64-bit number of Philox(key=seed).
    Raises InvalidRecipe for a seed beyond 64 bits or more positions than entries.
    """
    if not 0 <= seed < 2**64:
        raise InvalidRecipe(f"seed {seed} is not a number of 64 bits", param="seed")
    if not _drawable(count, numel):
        raise InvalidRecipe(f"{count} positions of {numel} cannot be drawn from a seed", param="density")
    return _draw(seed, count, numel)


def _draw(seed: int, count: int, numel: int) -> Positions:
    if not count:
        return np.empty(0, np.int64)
    # floor(k numel / count) without a product of more than 64 bits
    k = np.arange(count + 1, dtype=np.uint64)
    stretch, rest = divmod(numel, count)
    edges = k * np.uint64(stretch) + k * np.uint64(rest) // np.uint64(count)
    raw = np.random.Philox(key=seed).random_raw(count) >> np.uint64(32)
    return np.asarray(edges[:-1] + (raw * np.diff(edges) >> np.uint64(32)), dtype=np.int64)


def _drawable(count: int, numel: int) -> bool:
    return count == 0 or (count <= min(numel, MAX_COUNT) and numel // count < MAX_STRETCH - 1)
