"""`MergePlan`: what a merge that is linear in each row costs to serve: k + 1 numbers a neuron, no weights.

y = a[r] * (x W0^T)[r] + sum_t C[t, r] * (x D_t^T)[r], r = output neuron. A plan uses deltas exactly as they are stored.
Knows nothing of names in a store, of models and of how it is executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe
from patchbay.merge.methods import MatrixPlan, find_method
from patchbay.merge.recipe import CanonicalRecipe

__all__ = ["MatrixPlan", "MergePlan", "build_plan"]


@dataclass(frozen=True)
class MergePlan:
    """A recipe made ready for one set of deltas.

    `terms[t]` is the digest behind `coefficients[t]`; `vectors` holds merged fp32 differences of tensors without
    neurons; `copied` integer tensors; `exact` is set for one term with coefficient 1, whose exceptions then hold.
    """

    hash: str
    terms: tuple[str, ...]
    matrices: Mapping[str, MatrixPlan]
    vectors: Mapping[str, torch.Tensor]
    copied: Mapping[str, torch.Tensor]
    exact: bool

    @cached_property
    def num_bytes(self) -> int:
        unique = {id(t): t.nbytes for plan in self.matrices.values() for t in (plan.base_scale, plan.coefficients)}
        return sum(unique.values()) + sum(t.nbytes for t in [*self.vectors.values(), *self.copied.values()])


def build_plan(recipe: CanonicalRecipe, deltas: Sequence[Delta]) -> MergePlan:
    """The plan of `recipe` for its terms' deltas, in the recipe's order.

    Raises UnknownMethod or InvalidRecipe (parameters, deltas of different bases).
    """
    method = find_method(recipe.method)
    _check_same_base(deltas)
    weights = torch.tensor([weight for _, weight in recipe.terms], dtype=torch.float32)
    merged = method.coefficients(weights, recipe.scale, dict(recipe.params))
    # A tensor that one delta prunes and another stores whole is a matrix for both: it is summed, then rounded, once.
    matrices = dict.fromkeys(_union([*delta.matrices, *delta.factors] for delta in deltas), merged)
    return MergePlan(
        hash=recipe.hash,
        terms=tuple(digest for digest, _ in recipe.terms),
        matrices=matrices,
        vectors=_merge_vectors(merged, deltas, matrices),
        copied=merge_copied(deltas),
        exact=len(deltas) == 1 and bool((merged.coefficients == 1).all()) and bool((merged.base_scale == 1).all()),
    )


def _check_same_base(deltas: Sequence[Delta]) -> None:
    fingerprints = {delta.manifest.base.fingerprint for delta in deltas}
    if len(fingerprints) > 1:
        raise InvalidRecipe("the deltas were made for different bases and cannot be merged", param="terms")


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for part in parts for name in part})


def _merge_vectors(
    merged: MatrixPlan, deltas: Sequence[Delta], matrices: Mapping[str, MatrixPlan]
) -> Mapping[str, torch.Tensor]:
    """sum_t C[t] * v_t in fp32; tensors without neurons take the coefficients' plain form.

    One delta at weight 1 gives its own, which may be whole matrices. `num_bytes` counts them all the same.
    """
    if len(deltas) == 1 and bool((merged.coefficients == 1).all()):
        return deltas[0].vectors
    vectors: dict[str, torch.Tensor] = {}
    for weight, delta in zip(merged.coefficients[:, 0].tolist(), deltas, strict=True):
        for name in delta.vectors.keys() - matrices.keys():
            vector = weight * delta.vectors[name]
            vectors[name] = vectors[name] + vector if name in vectors else vector
    return vectors


def merge_copied(deltas: Sequence[Delta]) -> dict[str, torch.Tensor]:
    """Integer tensors cannot be averaged: the value that all who bring the tensor agree on, else the base's."""
    copied: dict[str, torch.Tensor] = {}
    for name in _union(delta.copied for delta in deltas):
        values = [delta.copied[name] for delta in deltas if name in delta.copied]
        if all(torch.equal(values[0], value) for value in values):
            copied[name] = values[0]
    return copied
