"""Random numbers of a merge: of the seed, the tensor's name and the term's position, and of nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

ALL_TERMS = -1  # the position of what is drawn once for all terms


def uniform(seed: int, name: str, term: int, shape: Sequence[int]) -> torch.Tensor:
    """fp32 of `shape`, multiples of 2**-24 in (0, 1]: `uniform(...) <= p` is true with probability p.

    Number i is ((half_i >> 8) + 1) / 2**24; half_0, half_1 ... are the lower and the upper 32 bits of the 64-bit
    numbers of Philox(key), and key the first 16 bytes, little-endian, of the SHA-256 of "<seed> <term> <name>".
    """
    digest = hashlib.sha256(f"{seed} {term} {name}".encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    numel = int(torch.Size(shape).numel())
    halves = generator.random_raw((numel + 1) // 2).astype("<u8", copy=False).view("<u4")[:numel]
    halves >>= np.uint32(8)
    return torch.from_numpy(halves.astype(np.float32)).add_(1).div_(2**24).reshape(tuple(shape))
