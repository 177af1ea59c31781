"""What a recipe becomes: a plan for the deltas as they are stored, or a new delta with a plan that takes it as it is.

Methods that choose entries or singular vectors (`Method.path` is "delta") cannot be written as coefficients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from patchbay.delta import Delta, SparseRows
from patchbay.delta.codecs import index_dtype
from patchbay.merge.method import Merge
from patchbay.merge.methods import find_method
from patchbay.merge.plan import MatrixPlan, MergePlan, build_plan, check_same_base, merge_copied
from patchbay.merge.preview import warnings_of
from patchbay.merge.recipe import CanonicalRecipe
from patchbay.merge.settings import Settings
from patchbay.merge.stack import Base, Params, Stacks

SPARSE_BELOW = 0.4  # of entries that are not 0: an entry of a sparse matrix takes eight bytes, of a dense one four


@dataclass(frozen=True)
class Merged:
    """`plan` is for `delta` alone, or where there is none for the recipe's terms."""

    plan: MergePlan
    delta: Delta | None = None
    warnings: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        return self.delta.num_bytes if self.delta else self.plan.num_bytes

    def deltas(self, terms: Sequence[Delta]) -> list[Delta]:
        """What the plan's coefficients are for."""
        return [self.delta] if self.delta else list(terms)


def build(recipe: CanonicalRecipe, deltas: Sequence[Delta], base: Base) -> Merged:
    """Merges the terms' deltas, in the recipe's order.

    Raises UnknownMethod or InvalidRecipe (parameters, number of terms, deltas of different bases).
    """
    method = find_method(recipe.method)
    if method.merge is None:
        return Merged(build_plan(recipe, deltas, base), warnings=warnings_of(method, deltas))
    method.check_terms([weight for _, weight in recipe.terms])
    check_same_base(deltas)
    params = method.filled(dict(recipe.params))
    settings = Settings.of(recipe, params, base.specs)
    delta = _merge(method.merge, Stacks.of(deltas, settings, base), params, recipe.scale, deltas)
    return Merged(_as_it_is(recipe, delta), delta, warnings_of(method, deltas))


def _merge(merge: Merge, stacks: Stacks, params: Params, scale: float, deltas: Sequence[Delta]) -> Delta:
    """Everything but what is merged (appended rows, heads, tokens) is still the terms'."""
    matrices: dict[str, SparseRows] = {}
    vectors: dict[str, torch.Tensor] = {}
    for name, difference in merge(stacks, params):
        scaled = scale * difference
        if scaled.dim() > 1 and int(torch.count_nonzero(scaled)) < SPARSE_BELOW * scaled.numel():
            matrices[name] = _sparse(scaled)
        else:
            vectors[name] = scaled
    return replace(
        deltas[0],
        matrices=matrices,
        vectors=vectors,
        added={},
        copied=merge_copied(deltas),
        exceptions={},
        neurons={},
        appended=_appended(deltas),
        factors={},
    )


def _appended(deltas: Sequence[Delta]) -> Mapping[str, torch.Tensor]:
    return next((delta.appended for delta in deltas if delta.appended), {})


def _sparse(difference: torch.Tensor) -> SparseRows:
    flat = difference.reshape(-1)
    positions = torch.nonzero(flat).flatten()
    return SparseRows(tuple(difference.shape), positions.to(index_dtype(flat.numel())), flat[positions])


def _as_it_is(recipe: CanonicalRecipe, delta: Delta) -> MergePlan:
    plan = MatrixPlan(torch.ones(1), torch.ones(1, 1))
    return MergePlan(
        recipe.hash, (recipe.hash,), dict.fromkeys(delta.matrices, plan), delta.vectors, delta.copied, exact=False
    )
