"""What a density costs in bits an entry, and back. Knows nothing of files."""

from __future__ import annotations

import math

MOST_VALUE_BITS = 64.0


def density_of(bits: float, value_bits: float = 1.0) -> float:
    """The d with H(d) + b d = bits, H the binary entropy, b = `value_bits`: positions and values. Above the largest
    such sum, log2(1 + 2^b), it is 1.
    """
    value_bits = min(value_bits, MOST_VALUE_BITS)
    most = math.log2(1 + 2**value_bits)
    if bits >= most:
        return 1.0
    low, high = 0.0, 1 / (1 + 2**-value_bits)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(middle) + value_bits * middle < bits else (low, middle)
    return low


def entropy(density: float) -> float:
    """H(d), bits a position."""
    if density in (0.0, 1.0):
        return 0.0
    return -density * math.log2(density) - (1 - density) * math.log2(1 - density)
