from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from patchbay.errors import InvalidRecipe, UnknownMethod
from patchbay.merge.method import Method
from patchbay.merge.methods import AUTO, METHODS, find_method
from patchbay.merge.recipe import Recipe, Scalar
from patchbay.merge.settle import named


def first_density(weights: torch.Tensor, params: Mapping[str, Scalar]) -> torch.Tensor:
    return weights * float(params["density"])


WITH_PARAMETERS = Method(
    "sample",
    "for tests",
    "",
    combine=first_density,
    num_terms=(2, 3),
    defaults={"density": 0.5, "seed": 1, "rescale": True, "rule": "sum"},
    presets={"paper": {"density": 0.2, "rule": "mean"}},
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


@pytest.mark.parametrize("name", [name for name in METHODS if name != AUTO])
def test_find_method(name: str) -> None:
    assert find_method(name) is METHODS[name]


def test_auto_is_another_method_by_its_name() -> None:
    found, row = find_method(AUTO), METHODS[AUTO]
    assert found.name != AUTO
    assert (found.path, found.paper, found.defaults) == (row.path, row.paper, row.defaults)
    assert found.name in row.title
    recipe = Recipe.model_validate({"method": AUTO, "terms": [{"delta": "math"}], "scale": 0.5})
    assert named(recipe) == recipe.model_copy(update={"method": found.name})


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_of_three(name: str) -> None:
    method = METHODS[name]
    assert sum(part is not None for part in (method.combine, method.plan, method.merge)) == 1
    assert method.vector is None or method.plan is not None
    assert method.path == ("plan" if method.merge is None else "delta")
    for preset in method.presets:
        assert method.filled({"preset": preset}).keys() == method.defaults.keys()


def test_unknown_parameter_lists_the_known() -> None:
    with pytest.raises(InvalidRecipe, match="none") as caught:
        METHODS["linear"].filled({"density": 0.5})
    assert caught.value.param == "params.density"
    with pytest.raises(InvalidRecipe, match="density, seed, rescale, rule"):
        WITH_PARAMETERS.filled({"densty": 0.5})


def test_parameters_override_presets_which_override_defaults() -> None:
    assert WITH_PARAMETERS.filled({}) == WITH_PARAMETERS.defaults
    paper = {"density": 0.2, "seed": 1, "rescale": True, "rule": "mean"}
    assert WITH_PARAMETERS.filled({"preset": "paper"}) == paper
    assert WITH_PARAMETERS.filled({"preset": "paper", "density": 0.3}) == {**paper, "density": 0.3}


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(InvalidRecipe, match="'mergekit'; its presets: paper") as caught:
        WITH_PARAMETERS.filled({"preset": "mergekit"})
    assert caught.value.param == "params.preset"


@pytest.mark.parametrize("count", [1, 4])
def test_the_number_of_terms(count: int) -> None:
    with pytest.raises(InvalidRecipe, match=f"sample merges 2 to 3 deltas, and the recipe has {count}"):
        WITH_PARAMETERS.check_terms([1.0] * count)


def test_weights_of_a_method_that_has_none() -> None:
    METHODS["slerp"].check_terms([1.0, 1.0])
    with pytest.raises(InvalidRecipe, match="slerp have no weights") as caught:
        METHODS["slerp"].check_terms([1.0, 2.0])
    assert caught.value.param == "terms"


@pytest.mark.parametrize("params", [{"density": 1}, {"seed": 7.0}, {"rescale": False}, {"rule": "mean"}])
def test_parameters_of_the_right_type(params: dict[str, Scalar]) -> None:
    WITH_PARAMETERS.filled(params)


@pytest.mark.parametrize(
    "params",
    [{"density": True}, {"density": "half"}, {"seed": 1.5}, {"seed": False}, {"rescale": 1}, {"rule": 0.5}],
)
def test_parameters_of_another_type_are_named(params: dict[str, Scalar]) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        WITH_PARAMETERS.filled(params)
    assert caught.value.param == f"params.{next(iter(params))}"
