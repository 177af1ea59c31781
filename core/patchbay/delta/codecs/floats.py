"""`fp32` and `bf16`: the values themselves, byte-shuffled so that zstd finds the exponents."""

from __future__ import annotations

import numpy as np
import torch

from patchbay.delta.codecs.base import Bytes, Positions, Shape, Values
from patchbay.delta.frames import shuffle, unshuffle
from patchbay.errors import MalformedDelta


class Float:
    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype

    def max_bytes(self, count: int, shape: Shape) -> int:
        return count * self.dtype.itemsize

    def scale_bytes(self, count: int, shape: Shape) -> int:
        return 0

    def encode(self, values: Values, positions: Positions, shape: Shape) -> bytes:
        if not len(values):
            return b""
        stored = torch.from_numpy(values).to(self.dtype)
        return shuffle(stored.view(torch.uint8).numpy().tobytes(), self.dtype.itemsize)

    def decode(self, data: Bytes, positions: Positions, shape: Shape) -> Values:
        if len(data) != self.max_bytes(len(positions), shape):
            raise MalformedDelta(f"{len(data)} bytes of {self.name} for {len(positions)} values")
        if not data:
            return np.empty(0, np.float32)
        return torch.from_numpy(unshuffle(data, self.dtype.itemsize)).view(self.dtype).to(torch.float32).numpy()
