"""What may be asked for, and how a refusal says what was wrong."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from patchbay.compress.options import MAX_EVALUATIONS, METHODS, ONE_SIZE, VALUES, Options
from patchbay.errors import InvalidRecipe


def test_defaults() -> None:
    options = Options()
    assert (options.method, options.values, options.support, options.scope) == ("nps", "auto", "sampled", "retained")
    assert (options.density, options.target_size, options.target_kl) == (None, None, None)
    assert options.merge_statistics
    with pytest.raises(FrozenInstanceError):
        options.method = "random"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("method", "lottery"),
        ("values", "fp8"),
        ("support", "all"),
        ("scope", "sampled"),
        ("optimizer", "adam"),
        ("score", "bleu"),
        ("density", -0.1),
        ("density", 1.1),
        ("density", math.nan),
        ("target_size", 0),
        ("target_size", -5),
        ("target_kl", 0.0),
        ("target_kl", -1.0),
        ("target_kl", math.nan),
        ("target_kl", math.inf),
        ("seed", -1),
        ("groups", 0),
        ("groups", 257),
        ("evaluations", -1),
        ("evaluations", MAX_EVALUATIONS + 1),
    ],
)
def test_bad_options_are_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRecipe) as caught:
        Options(**{field: value})
    assert caught.value.param == field
    assert str(value) in caught.value.message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scale_is_finite(value: float) -> None:
    with pytest.raises(InvalidRecipe, match=f"scale {value} is not a finite number") as caught:
        Options(method="magnitude", scale=value)
    assert caught.value.param == "scale"


@pytest.mark.parametrize("method", [name for name in METHODS if name != "magnitude"])
def test_only_magnitude_takes_a_scale(method: str) -> None:
    assert Options(method="magnitude", scale=1.5).scale == 1.5
    with pytest.raises(InvalidRecipe, match=f"{method} finds its own scale"):
        Options(method=method, scale=1.5)


@pytest.mark.parametrize(
    "given",
    [
        {"density": 0.1, "target_size": 1000},
        {"density": 0.1, "target_kl": 0.1},
        {"target_size": 1000, "target_kl": 0.1},
        {"density": 0.0, "target_size": 1000, "target_kl": 0.1},
    ],
)
def test_one_number_decides_the_size(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidRecipe, match="both decide the size") as caught:
        Options(**given)
    assert all(name in caught.value.message for name in given)
    assert caught.value.param == list(given)[1]


@pytest.mark.parametrize("method", sorted(ONE_SIZE))
@pytest.mark.parametrize("given", [{"density": 0.5}, {"target_kl": 0.1}])
def test_one_size_is_not_chosen(method: str, given: dict[str, float]) -> None:
    assert Options(method, target_size=10**9).target_size  # a bound, which the one size may meet
    with pytest.raises(InvalidRecipe, match=f"{method} has one size: leave {next(iter(given))} out") as caught:
        Options(method, **given)  # type: ignore[arg-type]
    assert caught.value.param == next(iter(given))


@pytest.mark.parametrize(
    "given",
    [{"density": 0.0}, {"density": 1.0}, {"target_size": 1}, {"evaluations": 0}, {"groups": 1}, {"groups": 256}],
)
def test_limits_are_possible(given: dict[str, Any]) -> None:
    Options(**given)


def test_unknown_choices_list_the_known() -> None:
    with pytest.raises(InvalidRecipe, match=", ".join(METHODS)):
        Options(method="lottery")
    with pytest.raises(InvalidRecipe, match=", ".join(VALUES)):
        Options(values="fp8")
