"""A merged model on disk: an ordinary Hugging Face folder, or its weights alone in one file. In bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patchbay.compress.card import model_card
from patchbay.compress.folder import copy_companions, unfinished_file, unfinished_folder, write_config
from patchbay.compress.merged_model import MergedModel
from patchbay.compress.shards import Planned, write_file, write_shards
from patchbay.compress.terms import Progress

SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was written. `architecture` is the class to load it with."""

    path: str
    recipe: str
    hash: str
    terms: Mapping[str, str]
    head: str | None
    architecture: str
    tensors: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def write_merge(model: MergedModel, out: Path, on_progress: Progress | None = None) -> MergeReport:
    """`out` is a folder, or with the suffix .safetensors a file of the weights alone.

    It has that name once everything is written. Raises InputError where `out` exists (an empty folder may), and what
    reading the terms raises.
    """
    return (write_weights if out.suffix == SUFFIX else write_folder)(model, out, on_progress)


def write_folder(model: MergedModel, out: Path, on_progress: Progress | None = None) -> MergeReport:
    """config.json, tokenizer files, weights in shards and a model card. Raises as `write_merge` does."""
    planned = model.planned()
    with unfinished_folder(out) as folder:
        write_shards(folder, planned, model.tensors(on_progress), {"format": "pt"})
        write_config(model.config, folder)
        copy_companions(model.base.checkpoint.folder, model.tokens, folder)
        (folder / "README.md").write_text(model_card(model, out.name), "utf-8")
    return _report(model, out, planned)


def write_weights(model: MergedModel, out: Path, on_progress: Progress | None = None) -> MergeReport:
    """One file, whose metadata says what it is: it has no card beside it. Raises as `write_merge` does."""
    planned = model.planned()
    with unfinished_file(out) as file:
        write_file(file, planned, model.tensors(on_progress), _metadata(model))
    return _report(model, out, planned)


def _report(model: MergedModel, out: Path, planned: Sequence[Planned]) -> MergeReport:
    names = model.config.get("architectures") or ["AutoModel"]
    return MergeReport(
        path=str(out),
        recipe=model.written,
        hash=model.canonical.hash,
        terms={term.name: term.digest for term in sorted(model.terms, key=lambda term: term.name)},
        head=model.owner.name if model.owner and model.added else None,
        architecture=str(names[0]),
        tensors=len(planned),
        bytes=sum(plan.num_bytes for plan in planned),
    )


def _metadata(model: MergedModel) -> dict[str, str]:
    return {
        "format": "pt",
        "recipe": model.written,
        "base": model.base.name,
        "base_fingerprint": model.base.checkpoint.fingerprint,
    }
