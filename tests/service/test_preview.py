"""What a merge would be, asked for over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests import pico
from tests.service.serving import Served, assert_error, ok

URL = "/v1/merges:preview"


def test_a_recipe_in_full_an_expression_and_a_saved_merge_are_the_same(vit: Served) -> None:
    terms = [{"delta": "math", "weight": 1.0}, {"delta": "code", "weight": 2.0}]
    ok(vit.post("/v1/merges", {"name": "both", "recipe": "linear(math, 2*code)"}), 201)
    given = ({"method": "linear", "terms": terms}, "linear(math, 2*code)")
    first, *others = ({**ok(vit.post(URL, {"recipe": recipe})), "milliseconds": 0} for recipe in given)
    assert others == [first]
    # A saved merge is pinned, and its terms are shown so.
    saved, versions = (
        {**ok(vit.post(URL, {"recipe": r})), "milliseconds": 0} for r in ("both", "linear(math@1, 2*code@1)")
    )
    assert saved == versions
    assert saved["hash"] == first["hash"] and saved["norms"] == first["norms"]
    assert (first["method"], first["merged_to"]) == ("linear", "plan")
    assert sorted(first["terms"]) == ["code", "math"]
    assert first["patchbay"]["recipe"] == "linear(math, 2*code)"


def test_it_says_what_it_costs_and_what_its_terms_are_like(vit: Served) -> None:
    found = ok(vit.post(URL, {"recipe": "neuromerging(math, code)"}))
    assert found["bytes"] > 0 and found["milliseconds"] > 0
    assert [len(found[key]) for key in ("norms", "along_base", "cosines")] == [2, 2, 2]
    assert all(0 <= share <= 1 for share in [*found["along_base"], found["sign_conflicts"]])
    again = ok(vit.post(URL, {"recipe": "neuromerging(math, code)"}))
    assert again["milliseconds"] < found["milliseconds"], "the second is found, not made"


def test_a_method_that_chooses_entries_becomes_a_delta(vit: Served) -> None:
    found = ok(vit.post(URL, {"recipe": "ties(math, code; density=0.2)"}))
    assert found["merged_to"] == "delta"


def test_one_term_far_longer_than_the_others_is_warned_of(
    vit: Served, model_folder: Callable[..., Path], finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    far = finetune_folder("vit", 3, scale=0.5)
    vit.upload("large", pico.delta_file(model_folder("vit"), far, tmp_path / "large", density=0.1))
    found = ok(vit.post(URL, {"recipe": "math + large"}))
    (warning,) = found["patchbay"]["warnings"]
    assert "times as long" in warning
    image = {"array": [[[0.1] * 16] * 16] * 3}
    assert ok(vit.post("/v1/classify", {"model": "math + large", "input": image}))["patchbay"]["warnings"] == [warning]


@pytest.mark.parametrize(
    ("recipe", "status", "code", "param"),
    [
        ("base", 422, "invalid_recipe", "recipe"),
        ("nowhere", 404, "not_found", "model"),
        ("linear(math; density=0.5)", 422, "invalid_recipe", "params.density"),
        ("neuromerging(math; preset=mergekit)", 422, "invalid_recipe", "params.preset"),
        ("slerp(math)", 422, "invalid_recipe", "terms"),
        ("averaging(math)", 422, "unknown_method", "method"),
        ("math +", 422, "invalid_expression", "model"),
        (3, 422, "invalid_request", "recipe"),
    ],
)
def test_bad_recipes(vit: Served, recipe: object, status: int, code: str, param: str) -> None:
    assert_error(vit.post(URL, {"recipe": recipe}), status, code, param)
