from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from patchbay.errors import InvalidRecipe, UnknownMethod
from patchbay.merge.methods import METHODS, Method, find_method
from patchbay.merge.recipe import Scalar


def first_density(weights: torch.Tensor, params: Mapping[str, Scalar]) -> torch.Tensor:
    return weights * float(params["density"])


WITH_PARAMETERS = Method(
    "sample",
    "for tests",
    "",
    first_density,
    defaults={"density": 0.5, "seed": 1, "rescale": True, "rule": "sum"},
)


def test_table_is_keyed_by_name_and_cites_papers() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method.title
        assert method.paper.startswith("https://")


def test_unknown_method_lists_all() -> None:
    with pytest.raises(UnknownMethod) as caught:
        find_method("averaging")
    assert caught.value.param == "method"
    assert "'averaging'" in caught.value.message
    assert all(name in caught.value.message for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_find_method(name: str) -> None:
    assert find_method(name) is METHODS[name]


@pytest.mark.parametrize("name", ["linear", "task_arithmetic"])
def test_linear_methods_have_one_coefficient_a_term(name: str) -> None:
    plan = METHODS[name].coefficients(torch.tensor([1.0, 3.0]), 0.5, {})
    assert plan.base_scale.tolist() == [1.0]
    assert plan.coefficients.shape == (2, 1)
    assert plan.coefficients.dtype == plan.base_scale.dtype == torch.float32


def test_scale_comes_last() -> None:
    weights = torch.tensor([1.0, 3.0])
    assert METHODS["linear"].coefficients(weights, 2.0, {}).coefficients.flatten().tolist() == [0.5, 1.5]
    assert METHODS["task_arithmetic"].coefficients(weights, 2.0, {}).coefficients.flatten().tolist() == [2.0, 6.0]


def test_unknown_parameter_lists_the_known() -> None:
    with pytest.raises(InvalidRecipe, match="none") as caught:
        METHODS["linear"].coefficients(torch.ones(1), 1.0, {"density": 0.5})
    assert caught.value.param == "params.density"
    with pytest.raises(InvalidRecipe, match="density, seed, rescale, rule"):
        WITH_PARAMETERS.check_params({"densty": 0.5})


def test_parameters_override_defaults() -> None:
    weights = torch.tensor([2.0])
    assert WITH_PARAMETERS.coefficients(weights, 1.0, {}).coefficients.item() == 1.0
    assert WITH_PARAMETERS.coefficients(weights, 1.0, {"density": 0.25}).coefficients.item() == 0.5


@pytest.mark.parametrize("params", [{"density": 1}, {"seed": 7.0}, {"rescale": False}, {"rule": "mean"}])
def test_parameters_of_the_right_type(params: dict[str, Scalar]) -> None:
    WITH_PARAMETERS.check_params(params)


@pytest.mark.parametrize(
    "params",
    [{"density": True}, {"density": "half"}, {"seed": 1.5}, {"seed": False}, {"rescale": 1}, {"rule": 0.5}],
)
def test_parameters_of_another_type_are_named(params: dict[str, Scalar]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        WITH_PARAMETERS.check_params(params)
    assert caught.value.param == f"params.{next(iter(params))}"
