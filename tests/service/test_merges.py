"""Saved merges: recipes with names, pinned or following."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.serving import Served, assert_error, ok, serving
from tests.store.backends import new_store

from patchbay.backbone import Backbone
from patchbay.merge import find_method

IMAGE = {"array": torch.randn(3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(1)).tolist()}
RECIPE = {
    "method": "linear",
    "terms": [{"delta": "code@1", "weight": 1.0}, {"delta": "math", "weight": 3.0}],
    "scale": 1.0,
    "params": {},
    "head": None,
}
EXPRESSION = "linear(code@1, 3*math)"


@pytest.fixture(params=["sqlite", "fakeredis"])
def served(
    request: pytest.FixtureRequest,
    backbone: Callable[[str], Backbone],
    delta_file: Callable[..., Path],
    tmp_path: Path,
) -> Iterator[Served]:
    # No cache: what was deleted cannot be served from memory.
    with (
        new_store(request.param, None) as store,
        serving(backbone("vit"), tmp_path / "store", store(), delta_cache_bytes=0) as served,
    ):
        served.upload("math", delta_file("vit", 1))
        served.upload("code", delta_file("vit", 2))
        yield served


def save(served: Served, name: str, recipe: object, **more: object) -> dict[str, object]:
    return ok(served.post("/v1/merges", {"name": name, "recipe": recipe, **more}), 201)


def test_a_record(served: Served) -> None:
    digests = {name: ok(served.get(f"/v1/deltas/{name}"))["digest"] for name in ("math", "code")}
    record = save(served, "both", RECIPE)
    assert record == {
        "name": "both",
        "recipe": RECIPE,
        "expression": EXPRESSION,
        "follow": False,
        "deltas": [
            {"term": "code@1", "name": "code", "version": 1, "digest": digests["code"]},
            {"term": "math", "name": "math", "version": 1, "digest": digests["math"]},
        ],
        "created_at": record["created_at"],
    }
    assert ok(served.get("/v1/merges")) == {"data": [record]}
    assert ok(served.get("/v1/merges/both")) == record
    assert ok(served.delete("/v1/merges/both")) == {"deleted": [record]}
    assert ok(served.get("/v1/merges")) == {"data": []}
    assert_error(served.delete("/v1/merges/both"), 404, "not_found", "name")


def test_an_expression_is_a_recipe(served: Served) -> None:
    assert save(served, "both", EXPRESSION)["recipe"] == RECIPE


@pytest.mark.parametrize("recipe", [RECIPE, EXPRESSION, "math", "0.5*math", "math - code"])
def test_a_saved_merge_answers_as_its_recipe_does(served: Served, recipe: object) -> None:
    expression = save(served, "both", recipe)["expression"]
    answer = ok(served.post("/v1/classify", {"model": "both", "input": IMAGE}))
    same = ok(served.post("/v1/classify", {"model": expression, "input": IMAGE}))
    # What is pinned is written with its versions, so that the recipe asks for the same when others are current.
    recipe = answer["patchbay"].pop("recipe")
    assert recipe == re.sub(r"\b(math|code)(?!@)\b", r"\1@1", same["patchbay"].pop("recipe"))
    assert answer == {**same, "model": "both"}


def test_the_recipe_of_an_answer_asks_for_the_same_again(served: Served, delta_file: Callable[..., Path]) -> None:
    save(served, "both", "0.6*math + 0.4*code")
    before = ok(served.post("/v1/classify", {"model": "both", "input": IMAGE}))
    served.upload("math", delta_file("vit", 3))
    after = ok(served.post("/v1/classify", {"model": "both", "input": IMAGE}))
    assert after == before
    again = ok(served.post("/v1/classify", {"model": after["patchbay"]["recipe"], "input": IMAGE}))
    assert again["data"] == before["data"] != served.classify("0.6*math + 0.4*code", IMAGE)


def test_a_saved_merge_keeps_what_it_was_made_from(served: Served, delta_file: Callable[..., Path]) -> None:
    save(served, "both", EXPRESSION)
    before = ok(served.post("/v1/classify", {"model": "both", "input": IMAGE}))
    served.upload("math", delta_file("vit", 3))
    assert ok(served.post("/v1/classify", {"model": "both", "input": IMAGE})) == before
    assert served.classify(EXPRESSION, IMAGE) != before["data"]
    ok(served.delete("/v1/deltas/math?force=true"))
    ok(served.delete("/v1/deltas/code?force=true"))
    assert ok(served.post("/v1/classify", {"model": "both", "input": IMAGE})) == before


def test_auto_says_what_it_chose(served: Served) -> None:
    pinned = save(served, "a", "auto(math, code)")
    following = save(served, "b", "auto(math, code)", follow=True)
    chosen = find_method("auto").name
    assert (pinned["expression"], following["expression"]) == (f"{chosen}(math, code)", "auto(math, code)")
    for model in ("a", "b", "auto(math, code)"):
        answer = ok(served.post("/v1/classify", {"model": model, "input": IMAGE}))
        assert answer["patchbay"]["recipe"].startswith(f"{chosen}(math")
        assert answer["data"] == served.classify(f"{chosen}(math, code)", IMAGE)


def test_a_merge_that_follows(served: Served, delta_file: Callable[..., Path]) -> None:
    save(served, "both", "linear(code, 3*math)", follow=True)
    first = served.classify("both", IMAGE)
    served.upload("math", delta_file("vit", 3))
    answer = ok(served.post("/v1/classify", {"model": "both", "input": IMAGE}))
    assert answer["data"] == served.classify("linear(code, 3*math)", IMAGE) != first
    assert [(d["name"], d["version"]) for d in answer["patchbay"]["deltas"]] == [("code", 1), ("math", 2)]
    ok(served.put("/v1/deltas/math/current", {"version": 1}))
    assert served.classify("both", IMAGE) == first
    ok(served.delete("/v1/deltas/math?force=true"))
    assert_error(served.post("/v1/classify", {"model": "both", "input": IMAGE}), 404, "not_found", "model")


@pytest.mark.parametrize("follow", [False, True])
def test_what_a_merge_is_made_of_is_not_deleted_by_accident(
    served: Served, delta_file: Callable[..., Path], follow: bool
) -> None:
    save(served, "both", "math + code@1", follow=follow)
    message = assert_error(served.delete("/v1/deltas/math"), 409, "delta_in_use", "delta")
    assert "'both'" in message and "force=true" in message
    served.upload("math", delta_file("vit", 3))
    served.upload("code", delta_file("vit", 3))
    # A merge that follows is at math's version 2 by now, and stays at the version of code that it names.
    if follow:
        ok(served.delete("/v1/deltas/math@1"))
    else:
        assert_error(served.delete("/v1/deltas/math@1"), 409, "delta_in_use", "delta")
    assert_error(served.delete("/v1/deltas/code@1"), 409, "delta_in_use", "delta")
    ok(served.delete("/v1/merges/both"))
    ok(served.delete("/v1/deltas/code"))


def test_versions_that_were_named_stay(served: Served, delta_file: Callable[..., Path]) -> None:
    save(served, "both", "math@1 + code", follow=True)
    first = served.classify("both", IMAGE)
    served.upload("math", delta_file("vit", 3))
    assert served.classify("both", IMAGE) == first


@pytest.mark.parametrize(
    ("name", "recipe", "status", "code", "param"),
    [
        ("Both", "math", 422, "invalid_name", "name"),
        ("base", "math", 422, "invalid_name", "name"),
        ("task_arithmetic", "math", 422, "invalid_name", "name"),
        ("math", "math", 409, "name_taken", "name"),
        ("taken", "math", 409, "name_taken", "name"),
        ("both", "mat", 404, "not_found", "model"),
        ("both", "math@7", 404, "not_found", "model"),
        ("both", "taken", 422, "invalid_recipe", "model"),
        ("both", "math + base", 422, "invalid_recipe", "model"),
        ("both", "math +", 422, "invalid_expression", "model"),
        ("both", "nope(math)", 422, "unknown_method", "method"),
        ("both", "linear(math, -code)", 422, "invalid_recipe", "terms"),
        ("both", "linear(math; x=1)", 422, "invalid_recipe", "params.x"),
        ("both", {"terms": []}, 422, "invalid_request", "recipe.terms"),
        ("both", {"terms": ["math"]}, 422, "invalid_request", "recipe.terms.0"),
        ("both", {"terms": [{"delta": "math", "wieght": 1}]}, 422, "invalid_request", "recipe.terms.0.wieght"),
        ("both", {"terms": [{"delta": "math", "weight": 11}]}, 422, "invalid_request", "recipe.terms.0.weight"),
        ("both", {"terms": [{"delta": "math"}] * 9}, 422, "invalid_request", "recipe.terms"),
        ("both", 5, 422, "invalid_request", "recipe"),
        ("both", None, 422, "invalid_request", "recipe"),
    ],
)
def test_merges_that_cannot_be_saved(
    served: Served, name: str, recipe: object, status: int, code: str, param: str
) -> None:
    save(served, "taken", "math")
    assert_error(served.post("/v1/merges", {"name": name, "recipe": recipe}), status, code, param)
    assert [merge["name"] for merge in ok(served.get("/v1/merges"))["data"]] == ["taken"]


@pytest.mark.parametrize(
    ("recipe", "param", "said"),
    [
        ({"terms": [{"delta": "math"}], "params": {"density": [1]}}, "recipe.params.density", "a parameter is"),
        ({"terms": [{"delta": "math", "params": {"weight": 1}}]}, "recipe.terms.0", "params.weight takes rules"),
    ],
)
def test_our_own_words_have_none_of_pydantics_before_them(
    served: Served, recipe: object, param: str, said: str
) -> None:
    response = served.post("/v1/merges", {"name": "both", "recipe": recipe})
    assert assert_error(response, 422, "invalid_request", param).startswith(f"{param}: {said}")


def test_a_merge_under_its_own_name_is_taken(served: Served) -> None:
    save(served, "both", "math")
    message = assert_error(served.post("/v1/merges", {"name": "both", "recipe": "code"}), 409, "name_taken", "name")
    assert "already" in message


def test_close_names(served: Served) -> None:
    save(served, "both", "math")
    message = assert_error(served.get("/v1/merges/boht"), 404, "not_found", "name")
    assert message == "there is no merge 'boht'; close names: both"


def test_patch_does_not_go_with_a_merge(served: Served) -> None:
    save(served, "both", "math")
    body = {"model": "both", "patch": {"terms": [{"delta": "code"}]}, "input": IMAGE}
    assert_error(served.post("/v1/classify", body), 422, "invalid_recipe", "model")
