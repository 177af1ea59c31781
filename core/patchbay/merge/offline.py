"""A merge tensor by tensor, without a resident model: what a recipe makes of each tensor of the base.

No more is in memory than one tensor in every term. The arithmetic is that of a patch of the resident model: fp32, one
rounding. Knows nothing of files and of names of deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from patchbay.delta import Delta, Manifest
from patchbay.delta.delta import apply_difference
from patchbay.merge.merged import build
from patchbay.merge.method import Merge
from patchbay.merge.methods import find_method
from patchbay.merge.parts import planned_matrix
from patchbay.merge.plan import MergePlan, check_same_base, merge_copied
from patchbay.merge.recipe import CanonicalRecipe
from patchbay.merge.settings import Settings
from patchbay.merge.stack import Base, Stack, Stacks, is_sampled

Tensors = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Source:
    """One term whose tensors are read when they are asked for.

    `names`: the float tensors that it changes. `read(name)` is the `Delta` of that tensor alone, and has nothing where
    the term does not change it. `copied`: integer tensors.
    """

    manifest: Manifest
    names: frozenset[str]
    read: Callable[[str], Delta]
    copied: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def empty(self) -> Delta:
        return Delta(self.manifest, {}, {}, {}, {}, {})


def merge_tensors(
    recipe: CanonicalRecipe, sources: Sequence[Source], base: Base, dtype: torch.dtype | None = None
) -> Tensors:
    """(name, merged tensor) of every tensor that any term changes, in order of names.

    `sources` are in the recipe's order. The result is in `dtype`, or in the base's. Raises UnknownMethod or
    InvalidRecipe (parameters, number of terms, sources of different bases).
    """
    method = find_method(recipe.method)
    method.check_terms([weight for _, weight in recipe.terms])
    method.filled(dict(recipe.params))
    check_same_base([source.empty for source in sources])
    copied = merge_copied([replace(source.empty, copied=source.copied) for source in sources])
    floats = (
        _by_plan(recipe, sources, base, dtype)
        if method.merge is None
        else _by_difference(recipe, method.merge, sources, base, dtype)
    )
    return _in_order(iter(sorted(copied.items())), floats)


def _in_order(first: Tensors, second: Tensors) -> Tensors:
    """Both are in order of names, and no name is in both."""
    left, right = next(first, None), next(second, None)
    while left or right:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield left
            left = next(first, None)
        else:
            yield right
            right = next(second, None)


def _names(sources: Sequence[Source]) -> list[str]:
    return sorted({name for source in sources for name in source.names})


def _by_plan(recipe: CanonicalRecipe, sources: Sequence[Source], base: Base, dtype: torch.dtype | None) -> Tensors:
    """The plan of a model with one tensor is that tensor's part of the whole plan."""
    for name in _names(sources):
        deltas = [source.read(name) for source in sources]
        plan = build(recipe, deltas, base).plan
        exact = plan.exact and not recipe.settings  # a term's rules say another weight for some other tensor
        yield name, _planned(name, replace(plan, exact=exact), deltas, base, dtype)


def _planned(
    name: str, plan: MergePlan, deltas: Sequence[Delta], base: Base, dtype: torch.dtype | None
) -> torch.Tensor:
    before = base.stored(name)
    wanted = dtype or before.dtype
    if name in plan.matrices:
        merged = planned_matrix(name, plan.matrices[name], deltas, before, base.specs[name].neuron_axis or 0, wanted)
    else:
        merged = apply_difference(before, plan.vectors[name], wanted)
    exceptions = deltas[0].exceptions.get(name) if plan.exact else None
    # In a dtype that cannot hold the fine-tune's values round(base + delta) stands.
    if exceptions and torch.promote_types(wanted, exceptions.bits.dtype) == wanted:
        merged.view(-1)[exceptions.positions.long()] = exceptions.bits.to(wanted)
    return merged


def _by_difference(
    recipe: CanonicalRecipe, merge: Merge, sources: Sequence[Source], base: Base, dtype: torch.dtype | None
) -> Tensors:
    """Methods that give a difference of every tensor. Where it is 0, the base's bits stay."""
    params = dict(recipe.params)
    settings = Settings.of(recipe, params, base.specs)

    def read(name: str) -> Stack:
        return Stacks.of([source.read(name) for source in sources], settings, base).read(name)

    sampled = any(is_sampled(source.empty) for source in sources)
    for name, difference in merge(Stacks(tuple(_names(sources)), read, sampled), params):
        before = base.stored(name)
        merged = before.to(dtype or before.dtype).clone()
        scaled = (recipe.scale * difference).reshape(before.shape)
        yield name, torch.where(scaled != 0, apply_difference(before, scaled, merged.dtype), merged)
