"""A recipe's terms from disk: delta files and whole fine-tuned models, opened so that tensors are read one by one.

Knows nothing of merging methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from patchbay.adapters import AdaptedCheckpoint, open_finetuned
from patchbay.architecture import Architecture, TensorSpec
from patchbay.checkpoint import Checkpoint
from patchbay.compress.options import Options
from patchbay.compress.write import Writer, finite_difference
from patchbay.delta import Delta, DeltaFile, Manifest
from patchbay.delta.delta import LOSSLESS
from patchbay.delta.fits import check_fits
from patchbay.delta.lossless import ReadBase
from patchbay.delta.manifest import Sparse, numel
from patchbay.errors import DeltaError, InputError
from patchbay.merge.offline import Source
from patchbay.task_vector import TaskVector

Progress = Callable[[int, int, str], None]
AT_ONCE = 1 << 28  # bytes in memory up to which a delta is decoded whole


@dataclass(frozen=True)
class BaseFolder:
    """The base on disk, as merging methods ask for it. `name`: a hub id as it was given, or the folder's name."""

    name: str
    checkpoint: Checkpoint
    architecture: Architecture

    @classmethod
    def open(cls, source: str | Path) -> BaseFolder:
        """Raises UnsupportedBackbone as `Checkpoint.open` and `Architecture.of` do."""
        checkpoint = Checkpoint.open(source)
        name = checkpoint.folder.name if Path(source).expanduser().is_dir() else str(source)
        return cls(name, checkpoint, Architecture.of(checkpoint))

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return self.architecture.specs

    def stored(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(name)


@dataclass(frozen=True)
class Opened:
    """One term. `added` is the head that it brings, `appended` the rows of a larger vocabulary."""

    name: str
    path: Path
    digest: str
    source: Source
    added: Mapping[str, torch.Tensor]
    appended: Mapping[str, torch.Tensor]

    @property
    def is_model(self) -> bool:
        return self.path.is_dir()


def open_term(name: str, path: Path, base: BaseFolder, on_progress: Progress | None = None) -> Opened:
    """A delta file, or the whole task vector of a fine-tuned model's folder.

    Raises InputError where there is neither, DeltaError for a file that is not of this base, FinetuneMismatch for a
    folder that does not fit it.
    """
    if path.is_dir():
        return _open_model(name, path, base, on_progress)
    if not path.is_file():
        raise InputError(f"{name!r}: there is no delta file and no model folder {str(path)!r}", param="delta")
    try:
        return open_file(name, path, base.specs, base.checkpoint.fingerprint, base.stored)
    except DeltaError as error:
        raise type(error)(f"{name!r}, {path}: {error.message}", param=error.param) from error


def open_file(name: str, path: Path, specs: Mapping[str, TensorSpec], fingerprint: str, read_base: ReadBase) -> Opened:
    """A delta file, decoded tensor by tensor unless it is small. Raises as `DeltaFile.load` does."""
    file = DeltaFile.open(path)
    file.check_payload()
    entries = file.manifest.tensors

    def decode(part: DeltaFile) -> Delta:
        # NaN may be among the bits of exceptions, which only an exact delta on its own keeps.
        return part.load(specs, fingerprint, finite=False, read_base=read_base)

    check_fits(file.manifest, specs, fingerprint)
    # Tensors that share a frame would be unpacked again for each; version 1 has all of one kind in one.
    at_once = file.manifest.format_version == 1 or _decoded_bytes(file.manifest) <= AT_ONCE
    whole = decode(file) if at_once else None

    def load(names: Iterable[str]) -> Delta:
        if whole is not None:
            return _part(whole, frozenset(names))
        kept = {name: entries[name] for name in names if name in entries}
        return decode(replace(file, manifest=file.manifest.model_copy(update={"tensors": kept})))

    changed = frozenset(name for name, entry in entries.items() if entry.kind not in ("added", "copied"))
    beside = load(name for name, entry in entries.items() if name not in changed or entry.appended)
    source = Source(file.manifest, changed, lambda name: load([name]), beside.copied)
    with path.open("rb") as opened:
        digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
    return Opened(name, path, digest, source, beside.added, beside.appended)


def _decoded_bytes(manifest: Manifest) -> int:
    """At most, in memory: eight for a kept entry, four for each of a tensor that is stored whole."""
    whole = (numel(entry.shape) for entry in manifest.tensors.values() if not isinstance(entry, Sparse))
    return 8 * manifest.num_kept + 4 * sum(whole)


def _part(delta: Delta, names: frozenset[str]) -> Delta:
    """Of a decoded delta, the tensors with these names."""
    parts: dict[str, Any] = {
        field.name: {name: value for name, value in getattr(delta, field.name).items() if name in names}
        for field in fields(delta)
        if field.name != "manifest"
    }
    return replace(delta, **parts)


def _open_model(name: str, path: Path, base: BaseFolder, on_progress: Progress | None) -> Opened:
    tuned = open_finetuned(path, base.checkpoint)
    vector = TaskVector.from_models(base.checkpoint, tuned, on_progress)
    manifest = Writer(vector, tuned, Options(LOSSLESS)).manifest()

    def read(name: str) -> Delta:
        whole = {name: finite_difference(vector, name, exact=False)} if name in changed else {}
        return Delta(manifest, {}, whole, {}, {}, {})

    changed = frozenset(vector.changed)
    source = Source(manifest, changed, read, vector.copied)
    weights = tuned.weights if isinstance(tuned, AdaptedCheckpoint) else tuned
    return Opened(name, path, weights.fingerprint, source, vector.added, vector.appended)
