"""A recipe, its terms and their base as one model that is not resident anywhere: its tensors are made as they are read.

Knows nothing of the formats that it is written in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchbay.architecture import CLASSIFIERS
from patchbay.checkpoint import StoredTensor, all_finite
from patchbay.compress.shards import DTYPE_NAMES, Planned
from patchbay.compress.terms import BaseFolder, Opened, Progress, open_term
from patchbay.delta import Manifest
from patchbay.delta.manifest import DTYPES, Token
from patchbay.errors import AmbiguousHead, InvalidRecipe, NotFound
from patchbay.merge import CanonicalRecipe, Method, Recipe, find_method, named, settled
from patchbay.merge.offline import merge_tensors

CONFIG_DTYPES: Mapping[torch.dtype, str] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


@dataclass(frozen=True)
class MergedModel:
    """`terms` are in the order of `canonical`. `owner` brings the head or the larger vocabulary, if any term does.

    `identity` says config, prefix, missing tensors and labels. Floats are in `dtype`, or in the base's.
    """

    base: BaseFolder
    recipe: Recipe
    canonical: CanonicalRecipe
    terms: tuple[Opened, ...]
    owner: Opened | None
    identity: Manifest | None
    tokens: tuple[Token, ...]
    dtype: torch.dtype | None = None

    @property
    def method(self) -> Method:
        return find_method(self.recipe.method)

    @property
    def written(self) -> str:
        """The recipe as an expression, or as JSON where no expression writes it."""
        return self.recipe.describe() or self.recipe.model_dump_json()

    @property
    def prefix(self) -> str:
        return self.identity.prefix if self.identity else ""

    @property
    def added(self) -> Mapping[str, torch.Tensor]:
        return self.owner.added if self.owner else {}

    @property
    def appended(self) -> Mapping[str, torch.Tensor]:
        return self.owner.appended if self.owner else {}

    @property
    def config(self) -> dict[str, Any]:
        """The base's config.json with the changes of the terms; its dtype is that of the weights."""
        base = self.base.checkpoint.config
        changes = self.identity.config if self.identity else {}
        removed = self.identity.config_removed if self.identity else ()
        config = {key: value for key, value in {**base, **changes}.items() if key not in removed}
        said = {key: base[key] for key in ("dtype", "torch_dtype") if key in base}
        if self.dtype is not None:
            said = {"dtype": CONFIG_DTYPES[self.dtype]}
        return {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")} | said

    def changed(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(the base's name, merged tensor) of the base's tensors that any term changes, in order of names.

        In `dtype`, the model's, or the base's. Raises InvalidRecipe where a number leaves the range of its dtype.
        """
        sources = [term.source for term in self.terms]
        for name, tensor in merge_tensors(self.canonical, sources, self.base, dtype or self.dtype):
            yield name, self._in_range(name, tensor)

    def planned(self) -> list[Planned]:
        """Every tensor of the model, in the order of `tensors`."""
        plans = [
            Planned(out, self._dtype(stored), self._shape(source, stored)) for source, out, stored in self._places()
        ]
        floats = ((name, self._cast(tensor)) for name, tensor in self.added.items())
        return plans + [Planned(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in floats]

    def tensors(self, on_progress: Progress | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """(the model's name, tensor) of every tensor of the model. Each is made once, and let go of."""
        merged, places = _Ahead(self.changed()), self._places()
        last: tuple[str, torch.Tensor] | None = None
        for done, (source, out, _) in enumerate(places):
            if on_progress:
                on_progress(done, len(places), out)
            if last is None or last[0] != source:
                last = None  # before the next takes memory
                last = source, self._whole(source, merged.get(source))
            yield out, last[1]
        for name, tensor in self.added.items():
            yield name, self._cast(tensor)

    def _places(self) -> list[tuple[str, str, StoredTensor]]:
        """(base name, name in the model, the stored tensor); copies of tied tensors behind what they are copies of."""
        checkpoint, copies = self.base.checkpoint, self.base.architecture.copies
        missing = set(self.identity.missing) if self.identity else set()
        in_order = sorted(checkpoint.tensors, key=lambda name: (copies.get(name, name), name))
        return [
            (copies.get(name, name), self.prefix + name, checkpoint.tensors[name])
            for name in in_order
            if name not in missing
        ]

    def _whole(self, name: str, merged: torch.Tensor | None) -> torch.Tensor:
        tensor = self._in_range(name, self._cast(self.base.stored(name))) if merged is None else merged
        return torch.cat([tensor, self.appended[name].to(tensor.dtype)]) if name in self.appended else tensor

    def _in_range(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or all_finite(tensor) or not all_finite(self.base.stored(name)):
            return tensor
        if any(name in term.source.read(name).exceptions for term in self.terms):
            return tensor  # a lossless fine-tune's own NaN or infinity
        raise InvalidRecipe(
            f"{name!r} leaves the range of {DTYPE_NAMES[tensor.dtype]}: choose smaller weights or another dtype",
            param=name,
        )

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.dtype) if self.dtype is not None and tensor.is_floating_point() else tensor

    def _dtype(self, stored: StoredTensor) -> str:
        is_float = stored.dtype in DTYPES and DTYPES[stored.dtype].is_floating_point
        return DTYPE_NAMES[self.dtype] if self.dtype is not None and is_float else stored.dtype

    def _shape(self, name: str, stored: StoredTensor) -> tuple[int, ...]:
        more = len(self.appended[name]) if name in self.appended else 0
        return (stored.shape[0] + more, *stored.shape[1:]) if more else stored.shape


class _Ahead:
    """Tensors that come in order of names, by name: what is not asked for yet waits."""

    def __init__(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        self._tensors = tensors
        self._next: tuple[str, torch.Tensor] | None = None
        self._ended = False

    def get(self, name: str) -> torch.Tensor | None:
        """None for a name that does not come. Names are asked for in order; those before it are let go of."""
        while not self._ended and (self._next is None or self._next[0] < name):
            self._next = None  # before the next takes memory
            self._next = next(self._tensors, None)
            self._ended = self._next is None
        if self._next is None or self._next[0] != name:
            return None
        found, self._next = self._next[1], None
        return found


def open_merge(
    base: str | Path,
    recipe: Recipe,
    paths: Mapping[str, Path],
    *,
    head: str | None = None,
    dtype: torch.dtype | None = None,
    on_progress: Progress | None = None,
) -> MergedModel:
    """The model that `recipe` makes of `base`; `paths` says for each of its terms the delta file or the model folder.

    `head` is whose classification head travels, in place of the recipe's own. Raises NotFound for a term without a
    path, AmbiguousHead where several terms have a head and none is named, InvalidRecipe, UnknownMethod, and what
    `open_term` raises.
    """
    if head is not None and recipe.head not in (None, head):
        raise InvalidRecipe(f"--head asks for {head!r} and the recipe for {recipe.head!r}", param="head")
    recipe = named(recipe).model_copy(update={"head": head or recipe.head})
    for term in recipe.terms:
        if term.delta not in paths:
            given = f"; given are {', '.join(paths)}" if paths else ""
            raise NotFound(
                f"the recipe names {term.delta!r}, which stands for nothing: give --delta {term.delta}=PATH{given}",
                param="delta",
            )
    folder = BaseFolder.open(base)
    opened = [open_term(term.delta, paths[term.delta], folder, on_progress) for term in recipe.terms]
    canonical = settled(recipe, {term.name: term.digest for term in opened})
    by_digest = {term.digest: term for term in opened}
    owner = _owner(opened, recipe.head, folder)
    return MergedModel(
        base=folder,
        recipe=recipe,
        canonical=canonical,
        terms=tuple(by_digest[digest] for digest, _ in canonical.terms),
        owner=owner,
        identity=_identity(opened, owner),
        tokens=_tokens(opened),
        dtype=dtype,
    )


def _owner(terms: Sequence[Opened], head: str | None, base: BaseFolder) -> Opened | None:
    """One folder holds one head and one vocabulary, and they have to be of one term."""
    heads = [term for term in terms if term.added] if head is None else _with_head(terms, head, base)
    if len(heads) > 1:
        names = ", ".join(term.name for term in heads)
        raise AmbiguousHead(
            f"several terms bring a classification head: {names}; say whose travels, as in --head {heads[0].name}",
            param="head",
        )
    larger = [term for term in terms if term.appended]
    owners = [*heads, *(term for term in larger if term not in heads)]
    if len(owners) > 1:
        raise InvalidRecipe(
            f"{owners[0].name!r} and {owners[1].name!r} bring a head or a larger vocabulary each, which cannot be "
            "merged: leave one of them out",
            param="terms",
        )
    return owners[0] if owners else None


def _with_head(terms: Sequence[Opened], head: str, base: BaseFolder) -> list[Opened]:
    """None where the base has that head too, with the same labels: then it is merged like any matrix."""
    found = next((term for term in terms if term.name == head), None)
    if found is None:
        known = ", ".join(term.name for term in terms)
        raise AmbiguousHead(f"head {head!r} is not among the terms: {known}", param="head")
    if not found.added and base.architecture.task not in CLASSIFIERS:
        raise AmbiguousHead(f"{head!r} brings no classification head: name a term that does", param="head")
    return [found] if found.added else []


def _identity(terms: Sequence[Opened], owner: Opened | None) -> Manifest | None:
    """Whose config, prefix and missing tensors hold: the owner's, what all terms agree on, or else the base's."""
    if owner is not None:
        return owner.source.manifest
    first, *others = (term.source.manifest for term in terms)
    keys = ("missing", "prefix", "config", "config_removed")
    agree = all(getattr(first, key) == getattr(other, key) for key in keys for other in others)
    return first if agree else None


def _tokens(terms: Sequence[Opened]) -> tuple[Token, ...]:
    found = {term.source.manifest.tokens for term in terms if term.source.manifest.tokens}
    if len(found) > 1:
        raise InvalidRecipe("the terms add different tokens, which cannot be merged: leave some out", param="terms")
    return next(iter(found), ())
