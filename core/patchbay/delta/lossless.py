"""A fine-tuned tensor as the difference of its bits from the base's: exact, NaN payloads included.

Bit patterns count as integers, sign bit and all: an order in which -0.0 neighbours 0.0 compresses worse. Knows nothing
of files.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from patchbay.checkpoint import as_bits
from patchbay.delta.delta import Exceptions, find_exceptions

# The base's tensor of that name, as its checkpoint stores it.
ReadBase = Callable[[str], torch.Tensor]
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the width of a float


def encode_bits(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """A code for every entry of `after`, flat, in integers of its width: 0 where the bits are those of `before`, then
    1, 2, 3, 4, ... for a pattern that is less by 1, more by 1, less by 2, more by 2, ..., modulo 2^width.
    """
    steps = as_bits(after.contiguous()) - as_bits(_as_dtype(before, after.dtype))
    return (steps << 1).bitwise_xor_(steps >> torch.iinfo(steps.dtype).bits - 1)


def decode_bits(before: torch.Tensor, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor that `encode_bits` was given. Every code decodes to something, NaN and infinity among it."""
    steps = (codes >> 1).bitwise_and_(torch.iinfo(codes.dtype).max)  # shifted in a zero, not the sign
    steps.bitwise_xor_((codes & 1).neg_())
    return steps.add_(as_bits(_as_dtype(before, dtype))).view(dtype).reshape(before.shape)


def as_difference(before: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, Exceptions]:
    """`after` as what a delta is in memory: the fp32 difference, 0 where that is not finite, and the bits of all
    entries that it does not round to.
    """
    difference = after.to(torch.float32) - before.to(torch.float32)
    difference = torch.where(torch.isfinite(difference), difference, 0.0)
    return difference, find_exceptions(before, difference, after)


def _as_dtype(before: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the base counts as where the fine-tune has another dtype: rounded by way of fp32, and 0 where it is NaN,
    since what becomes of a NaN's payload differs from machine to machine.
    """
    if before.dtype == dtype:
        return before.contiguous()
    rounded = before.to(torch.float32).to(dtype)
    return torch.where(torch.isnan(rounded), torch.zeros((), dtype=dtype), rounded).contiguous()
