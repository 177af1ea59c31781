"""The encodings a delta file may name. Adding one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from patchbay.delta.codecs.affine import Affine
from patchbay.delta.codecs.base import (
    Bytes,
    PositionCodec,
    PositionEncoder,
    Positions,
    Shape,
    ValueCodec,
    Values,
    index_dtype,
)
from patchbay.delta.codecs.bitmask import Bitmask
from patchbay.delta.codecs.everywhere import Everywhere
from patchbay.delta.codecs.floats import Float
from patchbay.delta.codecs.gap import Gap
from patchbay.delta.codecs.levels import Levels
from patchbay.delta.codecs.seeded import Seeded, seeded_positions
from patchbay.delta.codecs.sign import Sign, SignLog

__all__ = [
    "POSITIONS",
    "VALUES",
    "Bytes",
    "PositionCodec",
    "PositionEncoder",
    "Positions",
    "Shape",
    "ValueCodec",
    "Values",
    "best_positions",
    "index_dtype",
    "seeded_positions",
]

_ENCODERS: Mapping[str, PositionEncoder] = {codec.name: codec for codec in (Gap(), Bitmask(), Everywhere())}
POSITIONS: Mapping[str, PositionCodec] = {**_ENCODERS, Seeded.name: Seeded()}
VALUES: Mapping[str, ValueCodec] = {
    codec.name: codec
    for codec in (
        Float("fp32", torch.float32),
        Float("bf16", torch.bfloat16),
        Affine(8),
        Affine(4),
        Levels(),
        Sign("tensor"),
        Sign("row"),
        Sign("column"),
        SignLog("column"),
    )
}

_BITMASK_FROM = 0.21


def best_positions(count: int, numel: int) -> PositionEncoder:
    """No bytes for all entries; else gaps below 21 % density, a bitmask from there on: where the two curves of size
    against density cross.
    """
    if count == numel:
        return _ENCODERS["all"]
    return _ENCODERS["gap" if count < _BITMASK_FROM * numel else "bitmask"]
