"""Base + delta -> an ordinary Hugging Face folder, in bounded memory. The inverse of `compress`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from patchbay.architecture import Architecture
from patchbay.checkpoint import INDEX, Checkpoint
from patchbay.compress.folder import check_free, copy_companions, unfinished_folder, write_config
from patchbay.delta import Delta, DeltaFile
from patchbay.delta.delta import apply_difference
from patchbay.delta.manifest import DTYPES

Progress = Callable[[int, int, str], None]
SHARD_BYTES = 2 << 30


def reconstruct(delta_path: Path, base: str | Path, out: Path, on_progress: Progress | None = None) -> None:
    """Writes the fine-tuned model that the delta stands for.

    Each tensor is round(fp32(base) + delta) to the fine-tune's dtype, then the delta's exceptions, bit for bit; behind
    them the rows of a larger vocabulary.
    Raises InputError where `out` exists and is not empty; WrongBase and the like as `DeltaFile.load` does.
    """
    check_free(out)
    checkpoint = Checkpoint.open(base)
    architecture = Architecture.of(checkpoint)
    file = DeltaFile.open(delta_path)
    file.check_payload()
    delta = file.load(architecture.specs, checkpoint.fingerprint, finite=False, read_base=checkpoint.read)
    changed = {**checkpoint.config, **delta.manifest.config}
    with unfinished_folder(out) as folder:
        _write_shards(folder, _tensors(checkpoint, architecture.copies, delta, on_progress))
        write_config({key: changed[key] for key in changed if key not in delta.manifest.config_removed}, folder)
        copy_companions(checkpoint.folder, delta.manifest.tokens, folder)


def apply_delta(delta: Delta, name: str, base: torch.Tensor) -> torch.Tensor:
    """One tensor of the fine-tune, in the fine-tune's dtype; the base itself where the delta has nothing for it."""
    if name in delta.copied:
        return delta.copied[name]
    if name not in delta:
        return base
    tuned = apply_difference(base, delta.difference(name), DTYPES[delta.manifest.tensors[name].dtype])
    if name in delta.exceptions:
        exceptions = delta.exceptions[name]
        tuned.reshape(-1)[exceptions.positions.long()] = exceptions.bits
    return tuned


def _tensors(
    checkpoint: Checkpoint, copies: Mapping[str, str], delta: Delta, on_progress: Progress | None
) -> Iterator[tuple[str, torch.Tensor]]:
    missing, prefix = set(delta.manifest.missing), delta.manifest.prefix
    for done, name in enumerate(checkpoint.tensors):
        if on_progress:
            on_progress(done, len(checkpoint.tensors), name)
        if name not in missing:
            source = copies.get(name, name)
            tuned = apply_delta(delta, source, checkpoint.read(source))
            if source in delta.appended:
                tuned = torch.cat([tuned, delta.appended[source].to(tuned.dtype)])
            yield prefix + name, tuned
    yield from delta.added.items()


def _write_shards(out: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    shards: list[list[str]] = []
    total = 0
    for shard in _grouped(tensors):
        file = out / _shard_name(len(shards) + 1)
        save_file(shard, file, {"format": "pt"})
        file.chmod(0o644)  # readable by who reads the other files: safetensors gives it to its owner alone
        shards.append(list(shard))
        total += sum(tensor.nbytes for tensor in shard.values())
    if len(shards) == 1:
        (out / _shard_name(1)).rename(out / "model.safetensors")
        return
    names = {name: _shard_name(number) for number, shard in enumerate(shards, 1) for name in shard}
    (out / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}, indent=2))


def _grouped(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor.contiguous()
    yield shard


def _shard_name(number: int) -> str:
    return f"model-{number:05d}.safetensors"
