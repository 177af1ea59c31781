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


PER_BYTE = {2: 8, 3: 5, 4: 4, 5: 3, 6: 3}
KINDS = ("positions", "scales", "values", "multiples", "own_positions", "own_values")
KINDS += ("exception_positions", "exception_bits")
KINDS += ("neuron_energy", "neuron_cosine", "vector_scales", "vectors", "lossless", "added", "copied", "appended")
PHILOX = ((0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B))


class PlainReader:
    """Sections 1, 4 and 5."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        self.marker = header.pop("__metadata__")["patchbay"]
        ranges = {name: entry["data_offsets"] for name, entry in header.items()}
        self.rows = {name: data[start + a : start + b] for name, (a, b) in ranges.items()}
        self.manifest = self.read_manifest()

    def read_manifest(self) -> Any:
        assert self.marker == "2"
        manifest = json.loads(self.unpack("manifest"))
        listed = [(KINDS.index(k), n, p, k, size) for n, e in manifest["tensors"].items() for k, p, size in streams(e)]
        self.streams: dict[tuple[str, str, int], bytes] = {}
        frame, last, data = 0, None, b""
        for (_, name, part, kind, most), unused in zip(sorted(listed), manifest["unused"], strict=True):
            length = most - unused
            if length and (kind != last or not data):  # the golden file's kinds are far below a frame's size
                assert not data
                last, data = kind, self.unpack(f"{frame:04d}")
                frame += 1
            self.streams[kind, name, part], data = data[:length], data[length:]
        assert not data
        assert len(self.rows) == frame + 1
        return manifest

    def unpack(self, row: str) -> bytes:
        return zstandard.ZstdDecompressor().decompress(self.rows[row])

    def stream(self, kind: str, name: str, part: int = 0) -> bytes:
        return self.streams.get((kind, name, part), b"")

    def sparse(self, name: str) -> Iterator[tuple[int, float]]:
        """Position and value of every kept entry, own ones included."""
        entry = self.manifest["tensors"][name]
        listed = positions(self.stream("positions", name), entry, entry["shape"])
        data = self.stream("scales", name) + self.stream("values", name)
        found = list(zip(listed, values(data, entry["values"], listed, entry["shape"]), strict=True))
        if "multiples" in entry:
            times = digits(self.stream("multiples", name), entry["multiples"])
            found = [(p, float(np.float32(v) * np.float32(k + 1))) for (p, v), k in zip(found, times, strict=False)]
        if "own" in entry:
            own = positions(self.stream("own_positions", name), entry["own"], entry["shape"])
            raw = self.stream("own_values", name)
            found += zip(own, floats(unshuffled(raw, 2), "BF16"), strict=True)
        yield from sorted(found)

    def whole(self, name: str) -> list[float]:
        entry = self.manifest["tensors"][name]
        scales, codes = ("vector_scales", "vectors") if len(entry["shape"]) < 2 else ("scales", "values")
        everywhere = list(range(math.prod(entry["shape"])))
        return values(self.stream(scales, name) + self.stream(codes, name), entry["values"], everywhere, entry["shape"])

    def factored(self, name: str) -> list[float]:
        """The whole difference of a `low_rank` tensor, or of a `sparse` one with bands."""
        entry = self.manifest["tensors"][name]
        rows, columns = entry["shape"]
        total, first = np.zeros((rows, columns), np.float32), 1 if entry["kind"] == "sparse" else 0
        for band, at in zip(entry["bands"], range(first, 99, 2), strict=False):
            factors = []
            for part, side in ((at, rows), (at + 1, columns)):
                shape = [side, band["rank"]]
                data = self.stream("scales", name, part) + self.stream("values", name, part)
                listed = list(range(side * band["rank"]))
                factors.append(np.array(values(data, band["values"], listed, shape), np.float32).reshape(shape))
            for k in range(band["rank"]):
                for row in range(rows):
                    for column in range(columns):
                        total[row, column] += factors[0][row, k] * factors[1][column, k]
        for position, value in self.sparse(name) if entry["kind"] == "sparse" else ():
            total[position // columns, position % columns] += np.float32(value)
        return [float(value) for value in total.reshape(-1)]

    def raw(self, kind: str, name: str) -> bytes:
        """A tensor of kind `added` or `copied`, or the `appended` rows of one."""
        return unshuffled(self.stream(kind, name), WIDTH[self.manifest["tensors"][name]["dtype"]])

    def lossless(self, name: str, base: bytes) -> bytes:
        """The fine-tune's tensor from the base's in the same dtype: both as the bytes that a checkpoint holds."""
        width = WIDTH[self.manifest["tensors"][name]["dtype"]]
        codes, found = unshuffled(self.stream("lossless", name), width), b""
        for at in range(0, len(base), width):
            code, pattern = (int.from_bytes(data[at : at + width], "little") for data in (codes, base))
            step = -(code + 1) // 2 if code % 2 else code // 2
            found += ((pattern + step) % 2 ** (8 * width)).to_bytes(width, "little")
        return found

    def neurons(self, name: str) -> tuple[list[float], list[float]]:
        data = self.stream("neuron_energy", name)
        points = grid(data[:4])
        energy = [0.0 if code == 0 else points[2 * (code - 1)] for code in data[4:]]
        return energy, [float(np.float32(code - 15) / np.float32(15)) for code in self.stream("neuron_cosine", name)]

    def exceptions(self, name: str) -> tuple[list[int], bytes]:
        entry = self.manifest["tensors"][name]
        listed = positions(self.stream("exception_positions", name), entry["exceptions"], entry["shape"])
        return listed, unshuffled(self.stream("exception_bits", name), WIDTH[entry["dtype"]])


class PlainReaderVersion1(PlainReader):
    """Section 12."""

    def read_manifest(self) -> Any:
        manifest = json.loads(self.marker)
        data = self.unpack("patchbay.dense")
        self.dense = {}
        for name, entry in sorted(manifest["tensors"].items()):
            if entry["kind"] != "sparse":
                width = {"fp32": 4, "bf16": 2, "raw": WIDTH[entry["dtype"]]}[entry["values"]]
                size = math.prod(entry["shape"]) * width
                self.dense[name], data = data[:size], data[size:]
        assert not data
        return manifest

    def stream(self, kind: str, name: str, part: int = 0) -> bytes:
        if name in self.dense and not kind.startswith("exception"):
            return b"" if kind in ("scales", "vector_scales") else self.dense[name]
        return b"" if kind == "scales" else self.unpack(f"{name}.{kind}")


def streams(entry: dict[str, Any]) -> Iterator[tuple[str, int, int]]:
    """Section 4: kind, part and largest length of every stream of a tensor."""
    shape, width = entry["shape"], WIDTH[entry["dtype"]]
    total = math.prod(shape)
    if entry["kind"] == "sparse":
        yield "positions", 0, most_positions(entry, total)
        yield from value_streams("scales", "values", entry["values"], entry["count"], shape)
        if "multiples" in entry:
            several = -(-entry["count"] // PER_BYTE.get(entry["multiples"], 1))
            yield "multiples", 0, several * (1 if entry["multiples"] <= 256 else 2)
        if "own" in entry:
            yield "own_positions", 0, most_positions(entry["own"], total)
            yield "own_values", 0, 2 * entry["own"]["count"]
    if "bands" in entry:
        sides = shape[0], math.prod(shape[1:])
        for number in range(2 * len(entry["bands"])):
            band, side = entry["bands"][number // 2], sides[number % 2]
            factor, part = [side, band["rank"]], number + (entry["kind"] == "sparse")
            yield from value_streams("scales", "values", band["values"], math.prod(factor), factor, part)
    if entry["kind"] == "delta":
        kinds = ("vector_scales", "vectors") if len(shape) < 2 else ("scales", "values")
        yield from value_streams(*kinds, entry["values"], total, shape)
    elif entry["kind"] in ("lossless", "added", "copied"):
        yield entry["kind"], 0, total * width
    if "exceptions" in entry:
        yield "exception_positions", 0, most_positions(entry["exceptions"], total)
        yield "exception_bits", 0, entry["exceptions"]["count"] * width
    if "neurons" in entry:
        yield "neuron_energy", 0, 4 + entry["neurons"]
        yield "neuron_cosine", 0, entry["neurons"]
    if "appended" in entry:
        yield "appended", 0, entry["appended"] * math.prod(shape[1:]) * width


def most_positions(entry: dict[str, Any], total: int) -> int:
    return {"gap": entry["count"] + total // 255, "bitmask": -(-total // 8), "all": 0, "seeded": 8}[entry["positions"]]


def value_streams(
    scales: str, codes: str, values: str, count: int, shape: list[int], part: int = 0
) -> Iterator[tuple[str, int, int]]:
    """Section 7."""
    groups, signs = -(-count // 128), -(-count // 8)
    columns = max(1, math.prod(shape[1:]))
    of_scales, of_codes = {
        "fp32": (0, 4 * count),
        "bf16": (0, 2 * count),
        "int8": (2 * (4 + 2 * groups), count),
        "int4": (2 * (4 + 2 * groups), -(-count // 2)),
        "levels": (64, count + signs),
        "sign_tensor": (6, signs),
        "sign_row": (4 + 2 * (shape[0] if shape else 1), signs),
        "sign_column": (4 + 2 * columns, signs),
        "sign_column_log": (4 + columns, signs),
    }[values]
    if of_scales:
        yield scales, part, of_scales
    yield codes, part, of_codes


def positions(data: bytes, entry: dict[str, Any], shape: list[int]) -> list[int]:
    """Section 6."""
    if entry["positions"] == "all":
        return list(range(math.prod(shape)))
    if entry["positions"] == "seeded":
        total, count = math.prod(shape), entry["count"]
        edges = [k * total // count for k in range(count + 1)]
        words = philox(int.from_bytes(data, "little"))
        return [low + ((next(words) >> 32) * (high - low) >> 32) for low, high in zip(edges, edges[1:], strict=False)]
    if entry["positions"] == "bitmask":
        return [8 * i + bit for i, byte in enumerate(data) for bit in range(8) if byte >> bit & 1]
    found, here = [], 0
    for byte in data:
        here += byte
        if byte < 255:
            found.append(here)
            here += 1
    return found


def philox(seed: int) -> Iterator[int]:
    """Philox 4x64-10 (Salmon and others, 2011) with the key (seed, 0) and counters from 1 on."""
    ones = 2**64 - 1
    for counter in range(1, 2**64):
        a, b, c, d = counter, 0, 0, 0
        key = [seed, 0]
        for _ in range(10):
            first, second = PHILOX[0][0] * a, PHILOX[0][1] * c
            a, b, c, d = second >> 64 ^ b ^ key[0], second & ones, first >> 64 ^ d ^ key[1], first & ones
            key = [word + weyl & ones for word, weyl in zip(key, PHILOX[1], strict=True)]
        yield from (a, b, c, d)


def values(data: bytes, kind: str, listed: list[int], shape: list[int]) -> list[float]:
    """Section 7."""
    count = len(listed)
    if kind == "fp32":
        return floats(unshuffled(data, 4), "F32")
    if kind == "bf16":
        return floats(unshuffled(data, 2), "BF16")
    if kind in ("int8", "int4"):
        return affine(data, count, 8 if kind == "int8" else 4)
    signs = data[len(data) - -(-count // 8) :]
    negative = [signs[i // 8] >> i % 8 & 1 for i in range(count)]
    if kind == "levels":
        found = levels(data[: len(data) - len(signs)], count)
    else:
        columns = max(1, math.prod(shape[1:]))
        rows = {"sign_tensor": 1, "sign_row": shape[0] if shape else 1}.get(kind, columns)
        owner = {"sign_tensor": lambda p: 0, "sign_row": lambda p: p // columns}.get(kind, lambda p: p % columns)
        scale = [*grid(data[:4]), 0.0] if kind == "sign_column_log" else [float(v) for v in scales(data, rows)]
        found = [scale[data[4 + owner(p)] if kind == "sign_column_log" else owner(p)] for p in listed]
    return [-value if bit else value for value, bit in zip(found, negative, strict=True)]


def affine(data: bytes, count: int, bits: int) -> list[float]:
    groups, top = math.ceil(count / 128), 2 ** (bits - 1)
    low, step = scales(data, groups), scales(data[4 + 2 * groups :], groups)
    codes = list(data[2 * (4 + 2 * groups) :])
    if bits == 4:
        codes = [half for byte in codes for half in (byte & 15, byte >> 4)][:count]
    magnitudes = [low[i // 128] + step[i // 128] * np.float32(code % top) for i, code in enumerate(codes)]
    return [float(-m if code >= top else m) for m, code in zip(magnitudes, codes, strict=True)]


def levels(data: bytes, count: int) -> list[float]:
    table = floats(data[:64], "F32")
    number = 1
    while number < 16 and table[number] > table[number - 1]:
        number += 1
    return [table[i] for i in digits(data[64:], number)[:count]] if number > 1 else [table[0]] * count


def digits(data: bytes, kinds: int) -> list[int]:
    if kinds > 256:
        return [int(pair) for pair in np.frombuffer(unshuffled(data, 2), "<u2")]
    return [byte // kinds**k % kinds for byte in data for k in range(PER_BYTE.get(kinds, 1))]


def grid(maximum: bytes) -> list[float]:
    quarters = np.array([0x3F800000, 0x3F5744FD, 0x3F3504F3, 0x3F1837F0], np.uint32).view(np.float32)
    products = np.frombuffer(maximum, "<f4") * quarters
    return [float(products[k % 4]) * 2.0 ** -(k // 4) for k in range(512)]


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
