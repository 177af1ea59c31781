"""Base + delta -> an ordinary Hugging Face folder, in bounded memory. The inverse of `compress`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from patchbay.architecture import Architecture
from patchbay.checkpoint import INDEX, Checkpoint
from patchbay.delta import Delta, DeltaFile
from patchbay.delta.delta import apply_difference
from patchbay.delta.manifest import DTYPES
from patchbay.errors import InputError

Progress = Callable[[int, int, str], None]
SHARD_BYTES = 2 << 30
# What a fine-tune shares with its base. The base's model card and pooling modules would be false for it.
_COMPANIONS = (
    "tokenizer",
    "vocab",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece",
    "spiece",
    "generation_config.json",
    "chat_template",
    "preprocessor_config.json",
    "processor_config.json",
)


def reconstruct(delta_path: Path, base: str | Path, out: Path, on_progress: Progress | None = None) -> None:
    """Writes the fine-tuned model that the delta stands for.

    Each tensor is round(fp32(base) + delta) to the fine-tune's dtype, then the delta's exceptions, bit for bit; behind
    them the rows of a larger vocabulary.
    Raises InputError where `out` exists and is not empty; WrongBase and the like as `DeltaFile.load` does.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder", param="out")
    checkpoint = Checkpoint.open(base)
    architecture = Architecture.of(checkpoint)
    file = DeltaFile.open(delta_path)
    file.check_payload()
    delta = file.load(architecture.specs, checkpoint.fingerprint, finite=False, read_base=checkpoint.read)
    out.parent.mkdir(parents=True, exist_ok=True)
    # A folder under the name that was asked for is a whole model: it is written beside and renamed.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        unfinished = Path(beside) / "model"
        unfinished.mkdir()
        _write_shards(unfinished, _tensors(checkpoint, architecture.copies, delta, on_progress))
        _write_companions(checkpoint, delta, unfinished)
        unfinished.replace(out)


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


def _write_companions(checkpoint: Checkpoint, delta: Delta, out: Path) -> None:
    """config.json with the fine-tune's changes; tokenizer and preprocessor files with its added tokens."""
    for file in checkpoint.folder.iterdir():
        if file.is_file() and file.name.startswith(_COMPANIONS):
            shutil.copyfile(file, out / file.name)
    changed = {**checkpoint.config, **delta.manifest.config}
    config = {key: value for key, value in changed.items() if key not in delta.manifest.config_removed}
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")
    if delta.manifest.tokens:
        tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False, local_files_only=True)
        for token in delta.manifest.tokens:
            tokenizer.add_tokens([token.content], special_tokens=token.special)
        tokenizer.save_pretrained(out)
