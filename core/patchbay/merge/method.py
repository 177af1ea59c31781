"""A merging method: data and pure functions of tensors, with its paper. Knows nothing of names, files and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from patchbay.errors import InvalidRecipe
from patchbay.merge.matrix import Matrix, MatrixPlan
from patchbay.merge.recipe import MAX_TERMS, Scalar
from patchbay.merge.stack import Params, Stack, Stacks

PRESET = "preset"
_TYPES = {float: "a number", int: "a whole number", bool: "true or false", str: "a word"}
Combine = Callable[[torch.Tensor, Params], torch.Tensor]
Plan = Callable[[Matrix, Params], MatrixPlan]
Vector = Callable[[Stack, Params], torch.Tensor]
Merge = Callable[[Stacks, Params], Iterator[tuple[str, torch.Tensor]]]


@dataclass(frozen=True, slots=True)
class Method:
    """Exactly one of three says how terms are merged, before the recipe's `scale`:

    `combine(weights [T], params)`: one coefficient a term for the whole model.
    `plan(matrix, params)`: coefficients for the neurons of one matrix, and `vector(stack, params)` the merged fp32
    difference of a tensor without neurons (where there is none, `plan` of the tensor as one neuron).
    `merge(stacks, params)`: the merged fp32 difference of every tensor, (name, difference) in order of names.

    `symmetric`: the order of terms does not matter. `is_weighted`: their weights do. `needs_magnitudes`: ranks or
    compares entries by size, which sampled deltas do not carry. `least_density`: of terms that are pruned further, the
    merge is known to lose much of what it keeps of whole task vectors. `num_terms`: least and most. `defaults` names
    every parameter with its default, whose type is the parameter's type; `presets` are defaults under which another
    tool's or the paper's results come out.
    """

    name: str
    title: str
    paper: str
    combine: Combine | None = None
    plan: Plan | None = None
    vector: Vector | None = None
    merge: Merge | None = None
    symmetric: bool = True
    is_weighted: bool = True
    needs_magnitudes: bool = False
    least_density: float = 0.0
    num_terms: tuple[int, int] = (1, MAX_TERMS)
    defaults: Mapping[str, Scalar] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)

    @property
    def path(self) -> Literal["plan", "delta"]:
        """What a merge becomes: coefficients for deltas as they are stored, or a delta of its own."""
        return "plan" if self.merge is None else "delta"

    def filled(self, params: Params) -> dict[str, Scalar]:
        """All parameters: the given ones, then those of the `preset` that is named among them, then the defaults.

        Raises InvalidRecipe for a parameter that the method does not have, or of another type, and unknown presets.
        """
        given = {name: value for name, value in params.items() if name != PRESET}
        self._check(given)
        return {**self.defaults, **self._preset(params.get(PRESET)), **given}

    def _preset(self, name: Scalar | None) -> Mapping[str, Scalar]:
        if name is None:
            return {}
        if name not in self.presets:
            known = ", ".join(self.presets) or "none"
            raise InvalidRecipe(f"{self.name} has no preset {name!r}; its presets: {known}", param="params.preset")
        return self.presets[str(name)]

    def _check(self, params: Params) -> None:
        for name, value in params.items():
            if name not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise InvalidRecipe(
                    f"{self.name} has no parameter {name!r}; its parameters: {known}", param=f"params.{name}"
                )
            if not _same_type(value, self.defaults[name]):
                wanted = _TYPES[type(self.defaults[name])]
                raise InvalidRecipe(f"parameter {name!r} of {self.name} is {wanted}", param=f"params.{name}")

    def check_terms(self, weights: Sequence[float]) -> None:
        """Raises InvalidRecipe for more or fewer terms than the method takes, and for weights where it has none."""
        count, (least, most) = len(weights), self.num_terms
        if not self.is_weighted and any(weight != 1 for weight in weights):
            raise InvalidRecipe(f"the terms of {self.name} have no weights: leave them out", param="terms")
        if not least <= count <= most:
            wanted = f"exactly {least}" if least == most else f"{least} to {most}"
            raise InvalidRecipe(f"{self.name} merges {wanted} deltas, and the recipe has {count}", param="terms")


def _same_type(value: Scalar, default: Scalar) -> bool:
    """JSON writes 1 for 1.0 and 7.0 for 7; true is never a number."""
    if isinstance(default, bool | str) or isinstance(value, bool | str):
        return type(value) is type(default)
    return isinstance(default, float) or float(value).is_integer()
