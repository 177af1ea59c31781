"""The table of merging methods. A method is a row: data and one pure function of tensors, with its paper.

Knows nothing of names, files and models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from patchbay.errors import InvalidRecipe, UnknownMethod
from patchbay.merge.linear import arithmetic_weights, mean_weights
from patchbay.merge.recipe import Scalar


@dataclass(frozen=True, slots=True)
class MatrixPlan:
    """y = base_scale * (x W0^T) + sum_t coefficients[t] * (x D_t^T).

    `base_scale` [R] or [1] and `coefficients` [T, R] or [T, 1] are fp32; R = output neurons.
    """

    base_scale: torch.Tensor
    coefficients: torch.Tensor


@dataclass(frozen=True, slots=True)
class Method:
    """`combine(weights [T], params)` gives one coefficient a term for the whole model, before `scale`.

    `symmetric`: the order of terms does not matter. `needs_magnitudes`: ranks or compares entries by size, which
    sampled deltas do not carry. `defaults` names every parameter with its default, whose type is the parameter's type.
    """

    name: str
    title: str
    paper: str
    combine: Callable[[torch.Tensor, Mapping[str, Scalar]], torch.Tensor]
    symmetric: bool = True
    needs_magnitudes: bool = False
    defaults: Mapping[str, Scalar] = field(default_factory=dict)

    def coefficients(self, weights: torch.Tensor, scale: float, params: Mapping[str, Scalar]) -> MatrixPlan:
        """The plan of every matrix. Raises InvalidRecipe for a parameter that the method does not have."""
        self.check_params(params)
        combined = scale * self.combine(weights, {**self.defaults, **params})
        return MatrixPlan(base_scale=torch.ones(1), coefficients=combined.unsqueeze(1))

    def check_params(self, params: Mapping[str, Scalar]) -> None:
        for name, value in params.items():
            if name not in self.defaults:
                known = ", ".join(self.defaults) or "none"
                raise InvalidRecipe(
                    f"{self.name} has no parameter {name!r}; its parameters: {known}", param=f"params.{name}"
                )
            if not _same_type(value, self.defaults[name]):
                wanted = type(self.defaults[name]).__name__
                raise InvalidRecipe(f"parameter {name!r} of {self.name} is a {wanted}", param=f"params.{name}")


def _same_type(value: Scalar, default: Scalar) -> bool:
    """JSON writes 1 for 1.0 and 7.0 for 7; true is never a number."""
    if isinstance(default, bool | str) or isinstance(value, bool | str):
        return type(value) is type(default)
    return isinstance(default, float) or float(value).is_integer()


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="task_arithmetic",
            title="weighted sum of task vectors",
            paper="https://arxiv.org/abs/2212.04089",
            combine=arithmetic_weights,
        ),
        Method(
            name="linear",
            title="weighted mean of the fine-tuned models",
            paper="https://arxiv.org/abs/2203.05482",
            combine=mean_weights,
        ),
    )
}


def find_method(name: str) -> Method:
    """Raises UnknownMethod, which lists the methods there are."""
    if name not in METHODS:
        raise UnknownMethod(f"there is no method {name!r}; the methods are {', '.join(METHODS)}", param="method")
    return METHODS[name]
