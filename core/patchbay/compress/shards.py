"""safetensors files written tensor by tensor: names, dtypes and shapes are known before, so headers are written first.

`safetensors.save_file` takes all tensors of a file at once. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from patchbay.checkpoint import INDEX, raw_bytes
from patchbay.delta.manifest import DTYPES

SHARD_BYTES = 5 * 10**9
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
Tensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor that will come. `dtype` is safetensors' name (`F32`, `BF16`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * DTYPES[self.dtype].itemsize


def write_file(path: Path, planned: Sequence[Planned], tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """One file. Every planned tensor has to come once, in any order."""
    _write({path: planned}, tensors, metadata)


def write_shards(
    folder: Path, planned: Sequence[Planned], tensors: Tensors, metadata: Mapping[str, str], limit: int | None = None
) -> None:
    """model.safetensors, or where that would have more than `limit` bytes numbered files and their index.

    Tensors go into files in the order in which they are planned.
    """
    shards = list(_grouped(planned, limit or SHARD_BYTES))
    if len(shards) == 1:
        return _write({folder / "model.safetensors": shards[0]}, tensors, metadata)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    places = {plan.name: name for name, shard in zip(names, shards, strict=True) for plan in shard}
    index = {"metadata": {"total_size": sum(plan.num_bytes for plan in planned)}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
    return _write({folder / name: shard for name, shard in zip(names, shards, strict=True)}, tensors, metadata)


def _grouped(planned: Sequence[Planned], limit: int) -> Iterator[list[Planned]]:
    shard: list[Planned] = []
    size = 0
    for plan in planned:
        if shard and size + plan.num_bytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(plan)
        size += plan.num_bytes
    yield shard


@dataclass(frozen=True, slots=True)
class _Place:
    file: BinaryIO
    offset: int
    plan: Planned


def _write(files: Mapping[Path, Sequence[Planned]], tensors: Tensors, metadata: Mapping[str, str]) -> None:
    with ExitStack() as stack:
        places: dict[str, _Place] = {}
        for path, planned in files.items():
            places |= _start(stack.enter_context(path.open("xb")), planned, metadata)
        for name, tensor in tensors:
            place = places.pop(name)
            found = DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)
            assert found == (place.plan.dtype, place.plan.shape), f"{name}: {found} is not what was planned"
            place.file.seek(place.offset)
            place.file.write(raw_bytes(tensor))
        assert not places, f"{min(places)} was planned and did not come"


def _start(file: BinaryIO, planned: Sequence[Planned], metadata: Mapping[str, str]) -> dict[str, _Place]:
    """Writes the header. The widest entries come first: readers map them, each on a multiple of its width."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets: dict[str, int] = {}
    end = 0
    for plan in sorted(planned, key=lambda plan: (-DTYPES[plan.dtype].itemsize, plan.name)):
        start, end = end, end + plan.num_bytes
        header[plan.name] = {"dtype": plan.dtype, "shape": list(plan.shape), "data_offsets": [start, end]}
        offsets[plan.name] = start
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    return {plan.name: _Place(file, 8 + len(text) + offsets[plan.name], plan) for plan in planned}
