"""The container: one safetensors file whose metadata carries the manifest. FORMAT.md is its specification.

`DeltaFile.open` reads the header only and refuses, in this order: too large, no safetensors, header too large, not
strict JSON, no manifest, oddly named tensors, other dtypes than bytes, a manifest that does not hold, streams that it
does not name. Knows nothing of stores and networks.
"""

from __future__ import annotations

import hashlib
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

from patchbay.architecture import TensorSpec
from patchbay.delta.decode import check_fits, decode, stream_names
from patchbay.delta.delta import Delta
from patchbay.delta.manifest import FORMAT_VERSION, MAX_TENSORS, Manifest
from patchbay.errors import DeltaError, DeltaTooLarge, MalformedDelta, UnsupportedFile

MAX_HEADER = 4 << 20
# Keys of one JSON object: a tensor has at most 6 streams. Bounds what refusing a header of unknown fields costs.
MAX_KEYS = 6 * MAX_TENSORS + 1
METADATA_KEY = "patchbay"
_STREAM_NAME = re.compile(r"[A-Za-z0-9_.\-/]{1,300}")
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
class DeltaFile:
    """An opened delta file: the manifest, and where the payload starts."""

    path: Path
    manifest: Manifest
    header_bytes: int
    stream_bytes: Mapping[str, int]

    @classmethod
    def open(cls, path: Path, max_bytes: int | None = None) -> DeltaFile:
        """Header only. Raises UnsupportedFile, DeltaTooLarge or MalformedDelta."""
        size = path.stat().st_size
        if max_bytes is not None and size > max_bytes:
            raise DeltaTooLarge(f"the file has {size} bytes; at most {max_bytes} are accepted", param="file")
        header, header_bytes = _read_header(path, size)
        text = _manifest_text(header)
        _check_structure(path, header)
        manifest = _parse_manifest(text)
        streams = {name: entry["shape"][0] for name, entry in header.items()}
        _check_streams(set(streams), stream_names(manifest))
        return cls(path, manifest, header_bytes, streams)

    @property
    def num_bytes(self) -> int:
        return self.header_bytes + sum(self.stream_bytes.values())

    def load(self, specs: Mapping[str, TensorSpec], fingerprint: str, *, finite: bool = True) -> Delta:
        """Decodes everything once names and shapes are known to be the base's. Errors as in `check_fits`, `decode`."""
        check_fits(self.manifest, specs, fingerprint)
        with safe_open(self.path, framework="np") as handle:
            return decode(self.manifest, lambda name: handle.get_tensor(name).tobytes(), finite=finite)

    def check_payload(self) -> None:
        """Compares the payload's sha256 with the manifest's. Raises MalformedDelta."""
        if self.payload_sha256() != self.manifest.payload_sha256:
            raise MalformedDelta(
                "the payload's sha256 is not the one in the manifest: the file is damaged", param="file"
            )

    def payload_sha256(self) -> str:
        with self.path.open("rb") as file:
            file.seek(self.header_bytes)
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def write_delta(path: Path, manifest: Mapping[str, Any], streams: Mapping[str, bytes]) -> DeltaFile:
    """Writes a temporary file beside `path`, then renames it. `manifest` lacks only the payload's hash.

    Raises OSError where the disk is full or the folder cannot be written.
    """
    payload = hashlib.sha256()
    for name in sorted(streams):
        payload.update(streams[name])
    own = {"format_version": FORMAT_VERSION, "payload_sha256": f"sha256:{payload.hexdigest()}"}
    full = Manifest.model_validate({**manifest, **own})
    tensors = {name: np.frombuffer(data, np.uint8) for name, data in sorted(streams.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        save_file(tensors, temporary, {METADATA_KEY: full.to_json()})
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return DeltaFile.open(path)


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
        header = _strict_json(text.decode("utf-8"))
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


def _strict_json(text: str) -> dict[str, Any]:
    """One JSON object. Raises ValueError or RecursionError for what two readers could understand differently."""
    parsed = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    if not isinstance(parsed, dict):
        raise ValueError("it is no object")
    return parsed


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


def _manifest_text(header: dict[str, Any]) -> str:
    """Takes the metadata out of the header: what stays are the streams."""
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
        if not _STREAM_NAME.fullmatch(name) or ".." in name:
            raise MalformedDelta(f"stream name {name[:80]!r} has characters outside A-Z a-z 0-9 _ . - /", param="file")
        shape = entry.get("shape") if isinstance(entry, dict) else None
        one_row = isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int)
        if not one_row or entry.get("dtype") != "U8":
            raise MalformedDelta(f"stream {name!r} is not a row of bytes (U8)", param=name)
    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise MalformedDelta(f"the file breaks a rule of safetensors: {error}", param="file") from error


def _parse_manifest(text: str) -> Manifest:
    try:
        version = _strict_json(text).get("format_version")
    except (ValueError, RecursionError) as error:
        raise MalformedDelta(f"the manifest is not strict JSON: {error}", param="manifest") from error
    if type(version) is not int:
        raise MalformedDelta("the manifest lacks format_version, an integer", param="format_version")
    if version != FORMAT_VERSION:
        raise MalformedDelta(
            f"format version {str(version)[:80]} is not known here; known: {FORMAT_VERSION}", param="format_version"
        )
    return Manifest.parse(text)


def _check_streams(present: set[str], expected: set[str]) -> None:
    for name in sorted(present ^ expected):
        how = "is not in the manifest" if name in present else "is missing"
        raise MalformedDelta(f"stream {name!r} {how}", param=name)


def read_delta(path: Path, specs: Mapping[str, TensorSpec], fingerprint: str, max_bytes: int | None = None) -> Delta:
    """Every check there is, then the decoded delta: what an upload has to pass."""
    file = DeltaFile.open(path, max_bytes)
    try:
        delta = file.load(specs, fingerprint)
        file.check_payload()
    except MemoryError as error:
        raise DeltaError("not enough memory to decode the delta", param="file") from error
    return delta
