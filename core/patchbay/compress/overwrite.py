"""A merged model as a sparse patch of the base's weights: positions and new values of every entry that changes.

The form in which trainers send weights to inference servers. Applied twice it does nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from patchbay.checkpoint import as_bits, raw_bytes
from patchbay.compress.card import model_card
from patchbay.compress.folder import unfinished_folder
from patchbay.compress.merged_model import MergedModel
from patchbay.compress.shards import DTYPE_NAMES, Planned, write_file
from patchbay.compress.terms import Progress
from patchbay.delta.codecs import index_dtype
from patchbay.delta.manifest import DTYPES
from patchbay.errors import InvalidRecipe

FILE = "overwrite.safetensors"
INDICES, VALUES = ".indices", ".values"


@dataclass(frozen=True, slots=True)
class OverwriteReport:
    """`changed` of `entries` entries of the base have other bits."""

    path: str
    tensors: int
    changed: int
    entries: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_overwrite(model: MergedModel, out: Path, on_progress: Progress | None = None) -> OverwriteReport:
    """Writes overwrite.safetensors and a card into the folder `out`.

    For every tensor of the base that changes, `<tensor>.indices` (int32, or int64 from 2^31 entries on) are positions
    in the flattened tensor, increasing, and `<tensor>.values` the new values in its dtype. Raises InputError where
    `out` exists and is not empty, InvalidRecipe where the model has tensors or tokens that the base has not, and what
    reading the terms raises.
    """
    _check(model)
    with unfinished_folder(out) as folder:
        spools = folder / "indices", folder / "values"
        with spools[0].open("w+b") as indices, spools[1].open("w+b") as values:
            planned = _spool(model, indices, values, on_progress)
            indices.seek(0)
            values.seek(0)
            metadata = _metadata(model, planned)
            write_file(folder / FILE, planned, _read_back(planned, indices, values), metadata)
        for spool in spools:
            spool.unlink()
        (folder / "README.md").write_text(model_card(model, out.name, library="safetensors"), "utf-8")
    return OverwriteReport(
        path=str(out),
        tensors=len(planned) // 2,
        changed=_changed(planned),
        entries=_entries(model),
        bytes=sum(plan.num_bytes for plan in planned),
    )


def _check(model: MergedModel) -> None:
    reason = "a patch of the base's weights has no place for {}: export the format hf"
    if model.added:
        raise InvalidRecipe(reason.format("another classification head"), param="format")
    if model.appended:
        raise InvalidRecipe(reason.format("added tokens"), param="format")


def _spool(model: MergedModel, indices: BinaryIO, values: BinaryIO, on_progress: Progress | None) -> list[Planned]:
    """How many entries change is known once a tensor is made, and the header comes first: both wait on disk."""
    planned: list[Planned] = []
    for name, before, after in _pairs(model, on_progress):
        where = torch.nonzero(as_bits(before.contiguous()) != as_bits(after.contiguous())).flatten()
        if len(where):
            index = index_dtype(before.numel())
            new = after.reshape(-1)[where]
            indices.write(raw_bytes(where.to(index)))
            values.write(raw_bytes(new))
            planned.append(Planned(name + INDICES, DTYPE_NAMES[index], (len(where),)))
            planned.append(Planned(name + VALUES, DTYPE_NAMES[new.dtype], (len(where),)))
    return planned


def _pairs(model: MergedModel, on_progress: Progress | None) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, before, after) of the base's tensors, stored copies of tied ones among them."""
    checkpoint, copies = model.base.checkpoint, model.base.architecture.copies
    for done, (name, after) in enumerate(model.changed()):
        if on_progress:
            on_progress(done, len(model.base.specs), name)
        for place in (name, *(copy for copy, source in copies.items() if source == name)):
            yield place, checkpoint.read(place), after


def _read_back(planned: list[Planned], indices: BinaryIO, values: BinaryIO) -> Iterator[tuple[str, torch.Tensor]]:
    for plan in planned:
        data = bytearray((indices if plan.name.endswith(INDICES) else values).read(plan.num_bytes))
        yield plan.name, torch.frombuffer(data, dtype=DTYPES[plan.dtype])


def _metadata(model: MergedModel, planned: list[Planned]) -> dict[str, str]:
    return {
        "format": "overwrite",
        "sparse": "true",
        "sparsity": f"{1 - _changed(planned) / max(1, _entries(model)):.6f}",
        "recipe": model.written,
        "base": model.base.name,
        "base_fingerprint": model.base.checkpoint.fingerprint,
    }


def _changed(planned: list[Planned]) -> int:
    return sum(plan.shape[0] for plan in planned if plan.name.endswith(INDICES))


def _entries(model: MergedModel) -> int:
    return sum(stored.numel for stored in model.base.checkpoint.tensors.values())
