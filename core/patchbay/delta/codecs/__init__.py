"""The encodings a delta file may name. Adding one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchbay.delta.codecs.base import PositionCodec, Positions, Shape, ValueCodec, Values
from patchbay.delta.codecs.bitmask import Bitmask
from patchbay.delta.codecs.floats import Float
from patchbay.delta.codecs.gap import Gap
from patchbay.delta.codecs.int8 import Int8
from patchbay.delta.codecs.sign import Sign

__all__ = ["POSITIONS", "VALUES", "PositionCodec", "Positions", "Shape", "ValueCodec", "Values", "best_positions"]

POSITIONS: Mapping[str, PositionCodec] = {codec.name: codec for codec in (Gap(), Bitmask())}
VALUES: Mapping[str, ValueCodec] = {
    codec.name: codec
    for codec in (
        Float("fp32", torch.float32),
        Float("bf16", torch.bfloat16),
        Int8(),
        Sign("tensor"),
        Sign("row"),
        Sign("column"),
    )
}

_BITMASK_FROM = 0.20


def best_positions(count: int, numel: int) -> PositionCodec:
    """Gaps below 20 % density, a bitmask from there on: where the two curves of size against density cross."""
    return POSITIONS["gap" if count < _BITMASK_FROM * numel else "bitmask"]
