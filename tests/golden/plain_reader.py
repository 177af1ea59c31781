"""A decoder written from FORMAT.md alone: shares no line with the library, checks little and takes its time.

It shows that the page is enough, and that the library and the page mean the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

Array = np.ndarray[Any, Any]
WIDTH = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class PlainReader:
    """Section 1: the container."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        self.manifest = json.loads(header.pop("__metadata__")["patchbay"])
        ranges = {name: entry["data_offsets"] for name, entry in header.items()}
        self.streams = {name: data[start + a : start + b] for name, (a, b) in ranges.items()}

    def stream(self, name: str) -> bytes:
        """Section 5."""
        return zstandard.ZstdDecompressor().decompress(self.streams[name])

    def sparse(self, name: str) -> Iterator[tuple[int, float]]:
        """Position and value of every kept entry, own ones included."""
        entry = self.manifest["tensors"][name]
        listed = positions(self.stream(f"{name}.positions"), entry)
        found = list(zip(listed, values(self.stream(f"{name}.values"), entry, listed), strict=True))
        if "own" in entry:
            own = positions(self.stream(f"{name}.own_positions"), entry["own"])
            raw = self.stream(f"{name}.own_values")
            found += zip(own, floats(unshuffled(raw, 2), "BF16"), strict=True)
        yield from sorted(found)

    def dense(self) -> Iterator[tuple[str, bytes]]:
        """Section 4: name and unshuffled bytes of every tensor in the shared stream."""
        data = self.stream("patchbay.dense")
        for name, entry in sorted(self.manifest["tensors"].items()):
            if entry["kind"] != "sparse":
                width = {"fp32": 4, "bf16": 2, "raw": WIDTH[entry["dtype"]]}[entry["values"]]
                size = math.prod(entry["shape"]) * width
                yield name, unshuffled(data[:size], width)
                data = data[size:]
        assert not data

    def exceptions(self, name: str) -> tuple[list[int], bytes]:
        entry = self.manifest["tensors"][name]
        listed = positions(self.stream(f"{name}.exception_positions"), entry["exceptions"])
        return listed, unshuffled(self.stream(f"{name}.exception_bits"), WIDTH[entry["dtype"]])


def positions(data: bytes, entry: dict[str, Any]) -> list[int]:
    """Section 6."""
    if entry["positions"] == "bitmask":
        return [8 * i + bit for i, byte in enumerate(data) for bit in range(8) if byte >> bit & 1]
    found, here = [], 0
    for byte in data:
        here += byte
        if byte < 255:
            found.append(here)
            here += 1
    return found


def values(data: bytes, entry: dict[str, Any], listed: list[int]) -> list[float]:
    """Section 7."""
    kind, count = entry["values"], len(listed)
    if kind == "fp32":
        return floats(unshuffled(data, 4), "F32")
    if kind == "bf16":
        return floats(unshuffled(data, 2), "BF16")
    if kind == "int8":
        groups = math.ceil(count / 128)
        low, step = scales(data, groups), scales(data[4 + 2 * groups :], groups)
        codes = data[2 * (4 + 2 * groups) :]
        magnitudes = [low[i // 128] + step[i // 128] * np.float32(code & 127) for i, code in enumerate(codes)]
        return [float(-m if code >> 7 else m) for m, code in zip(magnitudes, codes, strict=True)]
    shape = entry["shape"]
    columns = max(1, math.prod(shape[1:]))
    number = {"sign_tensor": 1, "sign_row": shape[0] if shape else 1, "sign_column": columns}[kind]
    of = {"sign_tensor": lambda p: 0, "sign_row": lambda p: p // columns, "sign_column": lambda p: p % columns}[kind]
    scale, signs = scales(data, number), data[4 + 2 * number :]
    return [float(-scale[of(p)] if signs[i // 8] >> i % 8 & 1 else scale[of(p)]) for i, p in enumerate(listed)]


def scales(data: bytes, number: int) -> Array:
    top = np.frombuffer(data[:4], "<f4")[0]
    return top * np.frombuffer(data[4 : 4 + 2 * number], "<f2").astype("<f4")


def floats(data: bytes, dtype: str) -> list[float]:
    if dtype == "BF16":
        return [float(v) for v in (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")]
    return [float(v) for v in np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype])]


def unshuffled(data: bytes, width: int) -> bytes:
    number = len(data) // width
    return bytes(data[byte * number + i] for i in range(number) for byte in range(width))
