"""`all`: every entry of the tensor, in no bytes."""

from __future__ import annotations

import torch

from patchbay.delta.codecs.base import Bytes, Positions, index_dtype
from patchbay.errors import MalformedDelta


class Everywhere:
    name = "all"

    def max_bytes(self, count: int, numel: int) -> int:
        return 0

    def encode(self, positions: Positions, numel: int) -> bytes:
        assert len(positions) == numel, "`all` stands for every entry"
        return b""

    def decode(self, data: Bytes, count: int, numel: int) -> Positions:
        if len(data) or count != numel:
            raise MalformedDelta(f"{count} entries where all {numel} are meant")
        return torch.arange(numel, dtype=index_dtype(numel)).numpy()
