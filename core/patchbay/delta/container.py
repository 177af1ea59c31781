"""The safetensors file around a delta: header, named rows of bytes and the text under `patchbay`. Knows no manifest.

Only the header is read here, and it is refused, in this order: no safetensors, too large, not strict JSON, no delta,
oddly named or typed rows, and whatever safetensors itself refuses.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from patchbay.delta.manifest import MAX_TENSORS
from patchbay.errors import DeltaError, DeltaTooLarge, MalformedDelta, UnsupportedFile

MAX_HEADER = 4 << 20
# Keys of one JSON object: in version 1 a tensor has up to 6 streams. Bounds what refusing unknown fields costs.
MAX_KEYS = 6 * MAX_TENSORS + 1
METADATA_KEY = "patchbay"
_ROW_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,300}")
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (torch.save, .pt, .bin)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "a gzip archive",
}


@dataclass(frozen=True, slots=True)
class Container:
    """An opened file: the text in its metadata, and how many bytes each row has, in the order they lie in."""

    path: Path
    text: str
    header_bytes: int
    rows: Mapping[str, int]

    @classmethod
    def open(cls, path: Path, max_bytes: int | None = None) -> Container:
        """Header only. Raises UnsupportedFile, DeltaTooLarge or MalformedDelta."""
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise DeltaTooLarge(f"the file has {size} bytes; at most {max_bytes} are accepted", param="file")
        header, header_bytes = _read_header(path, size)
        text = _metadata_text(header)
        _check_structure(path, header)
        in_order = sorted(header, key=lambda name: (header[name]["data_offsets"][0], header[name]["data_offsets"][1]))
        return cls(path, text, header_bytes, {name: header[name]["shape"][0] for name in in_order})

    def read(self, name: str) -> bytes:
        with safe_open(self.path, framework="np") as handle:
            return bytes(handle.get_tensor(name).tobytes())


def write_container(path: Path, text: str, rows: Mapping[str, bytes]) -> None:
    """Writes a temporary file beside `path`, then renames it. Raises OSError where that cannot be done."""
    tensors = {name: np.frombuffer(data, np.uint8) for name, data in sorted(rows.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        save_file(tensors, temporary, {METADATA_KEY: text})
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def strict_json(text: str) -> dict[str, Any]:
    """One JSON object. Raises ValueError or RecursionError for what two readers could understand differently."""
    parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    if not isinstance(parsed, dict):
        raise ValueError("it is no object")
    return parsed


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if start[8:] != b"{" or not 0 < length <= size - 8:
            raise _no_safetensors(start)
        if length > MAX_HEADER:
            raise DeltaTooLarge(f"the header has {length} bytes; at most {MAX_HEADER} are accepted", param="file")
        text = b"{" + file.read(length - 1)
    try:
        header = strict_json(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MalformedDelta(f"the header is not strict JSON: {error}", param="file") from error
    return header, 8 + length


def _no_safetensors(start: bytes) -> DeltaError:
    # Asked only after the safetensors header did not hold: two magic bytes can also be a header's length.
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            return UnsupportedFile(
                f"this is {what}; only safetensors files are read, since pickle can carry code", param="file"
            )
    return MalformedDelta(
        "this is no safetensors file: it does not start with a JSON header that fits into it", param="file"
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object with {len(pairs)} keys; at most {MAX_KEYS} are accepted")
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"duplicate key {twice[:80]!r}")
    return result


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"{number[:80]} is no finite number")
    return float(number)


def _metadata_text(header: dict[str, Any]) -> str:
    """Takes the metadata out of the header: what stays are the rows."""
    metadata = header.pop("__metadata__", None)
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise MalformedDelta(
            "a safetensors file, but no delta: it has no manifest. Make one with `patchbay compress`", param="file"
        )
    return text


def _check_structure(path: Path, header: dict[str, Any]) -> None:
    """First what safetensors itself would accept and we do not, then its own rules (offsets, holes)."""
    for name, entry in header.items():
        if not _ROW_NAME.fullmatch(name) or ".." in name:
            raise MalformedDelta(f"stream name {name[:80]!r} has characters outside A-Z a-z 0-9 _ . - /", param="file")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        one_row = isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int)
        if not one_row or entry.get("dtype") != "U8":
            raise MalformedDelta(f"stream {name!r} is not a row of bytes (U8)", param=name)
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise MalformedDelta(f"the file breaks a rule of safetensors: {str(error)[:500]}", param="file") from error
