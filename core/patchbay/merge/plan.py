"""`MergePlan`: what a merge that is linear in each row costs to serve: k + 1 numbers a neuron, no weights.

y = a[r] * (x W0^T)[r] + sum_t C[t, r] * (x D_t^T)[r], r = output neuron. A plan uses deltas exactly as they are stored.
Knows nothing of names in a store, of models and of how it is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch

from patchbay.delta import Delta
from patchbay.errors import InvalidRecipe
from patchbay.merge.matrix import Matrix, MatrixPlan
from patchbay.merge.method import Combine, Method, Plan
from patchbay.merge.methods import find_method
from patchbay.merge.recipe import CanonicalRecipe
from patchbay.merge.settings import Settings
from patchbay.merge.stack import Base, Params, Stacks

# Eigenvalues and sums over positions keep one core busy each, and a vocabulary is about half of the work.
WORKERS = 2
__all__ = ["MatrixPlan", "MergePlan", "build_plan", "check_same_base", "merge_copied"]


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


def build_plan(recipe: CanonicalRecipe, deltas: Sequence[Delta], base: Base | None = None) -> MergePlan:
    """The plan of `recipe` for its terms' deltas, in the recipe's order, of a method whose path is a plan.

    `base` is what the deltas were made for; methods with one coefficient for the whole model look at it for the names
    of its layers, where terms have rules.
    Raises UnknownMethod or InvalidRecipe (parameters, number of terms, deltas of different bases).
    """
    method = find_method(recipe.method)
    method.check_terms([weight for _, weight in recipe.terms])
    check_same_base(deltas)
    params = method.filled(dict(recipe.params))
    assert base is not None or not recipe.settings, "rules need the names of the base's layers"
    settings = Settings.of(recipe, params, base.specs if base else ())
    if method.combine is not None:
        return _uniform(recipe, deltas, _combined(method.combine, settings, params, recipe.scale))
    assert method.plan is not None, "a method whose path is a delta has no plan"
    assert base is not None, "methods that look at rows need the base"
    return _by_rows(recipe, deltas, method, method.plan, settings, params, base)


def check_same_base(deltas: Sequence[Delta]) -> None:
    """Raises InvalidRecipe for deltas of different bases."""
    fingerprints = {delta.manifest.base.fingerprint for delta in deltas}
    if len(fingerprints) > 1:
        raise InvalidRecipe("the deltas were made for different bases and cannot be merged", param="terms")


def _combined(combine: Combine, settings: Settings, params: Params, scale: float) -> Callable[[str], MatrixPlan]:
    """Tensor -> its plan, the same one for all tensors in which the terms weigh the same."""
    made: dict[tuple[float, ...], MatrixPlan] = {}

    def find(name: str) -> MatrixPlan:
        weights = settings.weights_in(name)
        key = tuple(weights.tolist())
        try:
            if key not in made:
                made[key] = MatrixPlan(torch.ones(1), scale * combine(weights, params).unsqueeze(1))
        except InvalidRecipe as error:
            where = f"in {name!r}, " if settings.has_rules else ""
            raise InvalidRecipe(where + error.message, param=error.param) from error
        return made[key]

    return find


def _uniform(recipe: CanonicalRecipe, deltas: Sequence[Delta], find: Callable[[str], MatrixPlan]) -> MergePlan:
    # A tensor that one delta prunes and another stores whole is a matrix for both: it is summed, then rounded, once.
    matrices = {name: find(name) for name in _union([*delta.matrices, *delta.factors] for delta in deltas)}
    coefficients = {name: find(name).coefficients[:, 0] for name in _union(delta.vectors for delta in deltas)}
    found = [*coefficients.values(), *(plan.coefficients for plan in matrices.values())] or [find("").coefficients]
    is_alone = len(deltas) == 1 and all(bool((each == 1).all()) for each in found)
    vectors = deltas[0].vectors if is_alone else _summed_vectors(coefficients, deltas, matrices)
    return _plan(recipe, deltas, matrices, vectors, exact=is_alone)


def _plan(
    recipe: CanonicalRecipe,
    deltas: Sequence[Delta],
    matrices: Mapping[str, MatrixPlan],
    vectors: Mapping[str, torch.Tensor],
    *,
    exact: bool = False,
) -> MergePlan:
    terms = tuple(digest for digest, _ in recipe.terms)
    return MergePlan(recipe.hash, terms, matrices, vectors, merge_copied(deltas), exact)


def _by_rows(
    recipe: CanonicalRecipe,
    deltas: Sequence[Delta],
    method: Method,
    plan: Plan,
    settings: Settings,
    params: Params,
    base: Base,
) -> MergePlan:
    stacks = Stacks.of(deltas, settings, base)

    def plan_of(name: str) -> MatrixPlan:
        return plan(Matrix(name, deltas, settings.weights_in(name), base), params).times(recipe.scale)

    names = sorted(
        (name for name in stacks.names if base.specs[name].is_matrix), key=lambda name: -base.specs[name].numel
    )
    with ThreadPoolExecutor(WORKERS) as workers:
        matrices = dict(zip(names, workers.map(plan_of, names), strict=True))
    vectors: dict[str, torch.Tensor] = {}
    for name in stacks.names:
        if name not in matrices and method.vector is not None:
            vectors[name] = recipe.scale * method.vector(stacks.read(name), params)
        elif name not in matrices:
            vectors[name] = _multiplied_out(plan_of(name), stacks.read(name).differences, base.stored(name).float())
    return _plan(recipe, deltas, matrices, vectors)


def _multiplied_out(plan: MatrixPlan, differences: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """The difference that a plan of one neuron stands for."""
    merged = (plan.coefficients.reshape(-1, *[1] * base.dim()) * differences).sum(0)
    return merged + (plan.base_scale - 1).reshape([1] * base.dim()) * base


def _union(parts: Iterable[Iterable[str]]) -> list[str]:
    return sorted({name for part in parts for name in part})


def _summed_vectors(
    coefficients: Mapping[str, torch.Tensor], deltas: Sequence[Delta], matrices: Mapping[str, MatrixPlan]
) -> Mapping[str, torch.Tensor]:
    """sum_t C[t] * v_t in fp32, with the coefficients of each tensor.

    One delta at weight 1 gives its own, which may be whole matrices. `num_bytes` counts them all the same.
    """
    vectors: dict[str, torch.Tensor] = {}
    for term, delta in enumerate(deltas):
        for name in delta.vectors.keys() - matrices.keys():
            vector = float(coefficients[name][term]) * delta.vectors[name]
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
