"""A Hugging Face folder on disk: its configuration and its safetensors, read tensor by tensor.

Knows nothing of architectures: names are the ones in the files. Pickled weights are never opened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from patchbay.errors import BackboneError, UnsupportedBackbone

PIECE = 1 << 20  # bytes: hashed in two milliseconds or so
INDEX = "model.safetensors.index.json"
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


Stamp = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies and what it is, from the header alone. `dtype` is safetensors' name (`F32`, `BF16`)."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Checkpoint:
    """One model's folder: `config.json` and one or several safetensors files."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    stamps: Mapping[Path, Stamp] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, source: str | Path) -> Checkpoint:
        """Opens a folder or a hub id (`org/name`, taken from the local cache when `HF_HUB_OFFLINE` is set).

        Raises UnsupportedBackbone where there is no config, no safetensors, or a damaged header.
        """
        folder = resolve_folder(source)
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise UnsupportedBackbone(f"{folder} has no config.json: give a Hugging Face model folder", param="base")
        config = read_json_object(config_file)
        files = _weight_files(folder)
        stamps = {file: _stamp(file) for file in files}
        tensors = {t.name: t for file in files for t in scan_tensors(file)}
        return cls(folder, config, dict(sorted(tensors.items())), stamps)

    def read(self, name: str) -> torch.Tensor:
        """The tensor as stored, on the CPU; only this tensor's bytes are read, and mapped while it lives.

        One mapping for all would keep the pages of every tensor that was ever read. Raises BackboneError for a file
        that is not the one that was opened.
        """
        return self._read(name, lambda opened: opened.get_tensor(name))  # type: ignore[no-untyped-call]

    def read_rows(self, name: str, rows: slice) -> torch.Tensor:
        """Some of a tensor's first dimension, as `read` reads all of it: no more is mapped."""
        return self._read(name, lambda opened: opened.get_slice(name)[rows])  # type: ignore[no-untyped-call]

    def _read(self, name: str, get: Callable[[safe_open], torch.Tensor]) -> torch.Tensor:
        file = self.tensors[name].file
        try:
            if file in self.stamps and _stamp(file) != self.stamps[file]:
                raise BackboneError(f"{file} has changed since it was opened: start again", param="base")
            with safe_open(file, framework="pt") as opened:
                return get(opened)
        except (OSError, SafetensorError) as error:
            raise BackboneError(f"{file} can no longer be read: {error}", param="base") from error

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the sorted lines `name shape dtype sha256(raw bytes)`: the same for re-sharded copies."""
        digest = hashlib.sha256()
        for name, stored in self.tensors.items():
            shape = "x".join(map(str, stored.shape))
            digest.update(f"{name} {shape} {stored.dtype} {tensor_sha256(self.read(name))}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the weight files on disk: what honest ratios are taken against."""
        return sum(file.stat().st_size for file in {t.file for t in self.tensors.values()})


def _stamp(file: Path) -> Stamp:
    """What differs between a file and one that was put in its place."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The tensor's memory, row-major, without a copy when it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a single entry counts as contiguous whatever its stride is
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def byte_pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The same, cut into pieces of at most `PIECE` bytes; each is read when it is asked for."""
    flat = tensor.detach().reshape(-1)
    entries = PIECE // flat.element_size()
    for start in range(0, len(flat), entries):
        yield raw_bytes(flat[start : start + entries])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal dtype, shape and bits: -0.0 differs from 0.0, and a NaN is equal to itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    views = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(*views)


def as_bits(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory as flat integers of its own width: equal bits are equal, NaN payloads are kept."""
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.view(-1).view(width)


def all_finite(tensor: torch.Tensor) -> bool:
    """Both ends in one pass: NaN is passed on to them."""
    return not tensor.numel() or all(bool(torch.isfinite(end)) for end in tensor.aminmax())


def tensor_sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(raw_bytes(tensor)).hexdigest()


def resolve_folder(source: str | Path) -> Path:
    """A folder, or the local copy of a hub id. Raises UnsupportedBackbone where there is neither."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    text = str(source)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise UnsupportedBackbone(f"there is no model folder {text!r}", param="base")
    try:
        return Path(snapshot_download(text, allow_patterns=_HUB_FILES))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnsupportedBackbone(
            f"{text!r} is neither a folder nor a model that the hub or its local cache gives: {reason}", param="base"
        ) from error


def read_json_object(file: Path) -> dict[str, Any]:
    """Raises UnsupportedBackbone for anything else."""
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise UnsupportedBackbone(f"{file} is not JSON: {error}", param="base") from error
    if not isinstance(content, dict):
        raise UnsupportedBackbone(f"{file} is not a JSON object", param="base")
    return content


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UnsupportedBackbone(f"{index} has no weight_map", param="base")
        files = [folder / Path(name).name for name in sorted(set(map(str, weight_map.values())))]
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise UnsupportedBackbone(f"{folder} lacks {absent[0]}, which {INDEX} names", param="base")
        return files
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    refuse_pickles(folder)
    raise UnsupportedBackbone(f"{folder} has neither model.safetensors nor {INDEX}", param="base")


def refuse_pickles(folder: Path) -> None:
    """Says why weights that are there cannot be used. Raises UnsupportedBackbone where any are pickled."""
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        raise UnsupportedBackbone(
            f"{folder} holds its weights as {pickles[0]}, which can carry code and is never opened: "
            "load it once where you trust it and save_pretrained it as safetensors",
            param="base",
        )


def scan_tensors(file: Path) -> Iterator[StoredTensor]:
    """Every tensor of one safetensors file, from its header. Raises UnsupportedBackbone for a damaged one."""
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                part = handle.get_slice(name)
                yield StoredTensor(name, tuple(part.get_shape()), part.get_dtype(), file)
    except SafetensorError as error:
        raise UnsupportedBackbone(f"{file} is damaged: {error}", param="base") from error
