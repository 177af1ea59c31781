"""mergekit documents as bodies, and recipes whose terms have settings of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from httpx2 import Response
from tests import pico
from tests.service.serving import Served, assert_error, ok

IMAGE = {"array": torch.randn(3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(1)).tolist()}
DOCUMENT = """\
merge_method: task_arithmetic
base_model: org/vit
models:
  - model: org/vit
  - model: math
    parameters: {weight: [0.25, 1]}
  - model: code@1
    parameters:
      weight: [{filter: attention, value: 0.5}, {value: 2}]
parameters: {lambda: 0.5, int8_mask: true}
dtype: float32
"""
TERMS = [
    {"delta": "math", "weight": 1.0, "params": {"weight": [{"value": [0.25, 1.0]}]}},
    {"delta": "code@1", "weight": 1.0, "params": {"weight": [{"filter": "attention", "value": 0.5}, {"value": 2.0}]}},
]
RECIPE = {"method": "task_arithmetic", "terms": TERMS, "scale": 0.5, "params": {}, "head": None}


def send(served: Served, text: str | bytes, kind: str = "application/yaml", **query: Any) -> Response:
    content = text.encode() if isinstance(text, str) else text
    return served.client.post("/v1/merges", params=query, content=content, headers={"content-type": kind})


def test_a_document_is_saved_as_its_recipe(vit: Served) -> None:
    record = ok(send(vit, DOCUMENT, name="both"), 201)
    assert (record["name"], record["recipe"], record["expression"], record["follow"]) == ("both", RECIPE, None, False)
    assert [pin["term"] for pin in record["deltas"]] == ["math", "code@1"]
    assert ok(vit.get("/v1/merges/both")) == record
    assert ok(send(vit, DOCUMENT, name="others", follow="true"), 201)["follow"] is True


@pytest.mark.parametrize(
    "kind",
    ["application/yaml; charset=utf-8", "Application/YAML", "text/yaml", "application/x-yaml", "text/x-yaml"],
)
def test_content_types(vit: Served, kind: str) -> None:
    assert ok(send(vit, DOCUMENT, kind, name="both"), 201)["recipe"] == RECIPE


def test_it_answers_as_the_recipe_in_full(vit: Served) -> None:
    ok(send(vit, DOCUMENT, name="both"), 201)
    answer = ok(vit.post("/v1/classify", {"model": "both", "input": IMAGE}))
    terms = [{**term, "delta": f"{str(term['delta']).partition('@')[0]}@1"} for term in RECIPE["terms"]]
    pinned = {**RECIPE, "terms": terms}
    patched = ok(vit.post("/v1/classify", {"model": "base", "patch": pinned, "input": IMAGE}))
    assert answer == {**patched, "model": "both"}
    assert answer["patchbay"]["recipe"] == pinned
    assert answer["data"] == ok(vit.post("/v1/classify", {"model": "base", "patch": RECIPE, "input": IMAGE}))["data"]
    assert [delta["weight"] for delta in answer["patchbay"]["deltas"]] == [None, None]
    again = ok(vit.post("/v1/classify", {"model": "base", "patch": answer["patchbay"]["recipe"], "input": IMAGE}))
    assert again == patched


def test_settings_change_the_answer_and_plain_ones_do_not(vit: Served) -> None:
    def ask(*terms: dict[str, Any], method: str = "task_arithmetic") -> Any:
        patch = {"method": method, "terms": terms}
        return ok(vit.post("/v1/classify", {"model": "base", "patch": patch, "input": IMAGE}))["data"]

    everywhere = {"delta": "math", "params": {"weight": [{"value": 0.5}]}}
    nowhere = {"delta": "math", "weight": 0.5, "params": {"weight": [{"filter": "no.such.tensor", "value": 9}]}}
    somewhere = {"delta": "math", "weight": 0.5, "params": {"weight": [{"filter": "attention", "value": 0}]}}
    plain = vit.classify("0.5*math", IMAGE)
    assert ask(everywhere) == ask(nowhere) == plain != ask(somewhere)
    dense, sparse = (
        {"delta": "math", "params": {"density": density}} for density in (1, [{"filter": "attention", "value": 0}])
    )
    assert ask(dense, method="ties") == vit.classify("ties(math)", IMAGE) != ask(sparse, method="ties")


def test_a_plain_weight_is_shown_beside_other_settings(vit: Served) -> None:
    patch = {"method": "ties", "terms": [{"delta": "math", "weight": 0.5, "params": {"density": 0.5}}]}
    answer = ok(vit.post("/v1/classify", {"model": "base", "patch": patch, "input": IMAGE}))["patchbay"]
    assert answer["deltas"][0]["weight"] == 0.5
    assert answer["recipe"]["terms"] == patch["terms"]


def test_a_document_that_an_expression_can_write(vit: Served) -> None:
    models = "[{model: math, parameters: {weight: 3}}, {model: code, parameters: {weight: 1}}]"
    text = f"merge_method: linear\nmodels: {models}\n"
    assert ok(send(vit, text, name="both"), 201)["expression"] == "linear(3*math, code)"


@pytest.mark.parametrize(
    ("text", "query", "status", "code", "param"),
    [
        (DOCUMENT, {}, 422, "invalid_request", "name"),
        (DOCUMENT, {"name": "math"}, 409, "name_taken", "name"),
        (DOCUMENT, {"name": "both", "follow": "perhaps"}, 422, "invalid_request", "follow"),
        (DOCUMENT, {"name": "both", "weight": "1"}, 422, "invalid_request", "weight"),
        (DOCUMENT, {"name": "both", "recipe": "math"}, 422, "invalid_request", "recipe"),
        (DOCUMENT.replace("math", "mat"), {"name": "both"}, 404, "not_found", "model"),
        (DOCUMENT.replace("math", "base"), {"name": "both"}, 422, "invalid_recipe", "model"),
        (DOCUMENT.replace("math", "org/math"), {"name": "both"}, 422, "invalid_recipe", "models.1.model"),
        (DOCUMENT.replace("task_arithmetic", "karcher"), {"name": "both"}, 422, "unknown_method", "method"),
        (DOCUMENT + "slices: [a]", {"name": "both"}, 422, "invalid_recipe", "slices"),
        (DOCUMENT + "models: [a]", {"name": "both"}, 422, "invalid_recipe", "models"),
        ("a: [", {"name": "both"}, 422, "invalid_recipe", None),
        ("", {"name": "both"}, 422, "invalid_recipe", None),
        (b"a: \xff", {"name": "both"}, 422, "invalid_recipe", None),
        (b"#" * 65_537, {"name": "both"}, 422, "invalid_recipe", None),
        ("a: &a [b]\nc: [*a, *a]", {"name": "both"}, 422, "invalid_recipe", None),
        ("a: !!python/object/apply:os.getcwd []", {"name": "both"}, 422, "invalid_recipe", "a"),
        ("[" * 60_000, {"name": "both"}, 422, "invalid_recipe", None),
        ('"\\ud800": 1', {"name": "both"}, 422, "invalid_recipe", None),
        ('merge_method: "\\ud800"\nmodels: []', {"name": "both"}, 422, "unknown_method", "method"),
    ],
)
def test_documents_that_cannot_be_saved(
    vit: Served, text: str | bytes, query: dict[str, str], status: int, code: str, param: str | None
) -> None:
    assert_error(send(vit, text, **query), status, code, param)
    assert ok(vit.get("/v1/merges"))["data"] == []


def test_a_refusal_says_where(vit: Served) -> None:
    message = assert_error(
        send(vit, DOCUMENT.replace("0.25, 1", "0.25, x"), name="both"),
        422,
        "invalid_recipe",
        "models.1.parameters.weight.1",
    )
    assert message == "line 6, column 33: models.1.parameters.weight.1 is a finite number"


def test_yaml_is_a_body_of_its_own(vit: Served) -> None:
    """Not a text inside JSON, where it is an expression that does not parse; nor a body of another route."""
    assert_error(vit.post("/v1/merges", {"name": "both", "recipe": DOCUMENT}), 422, "invalid_expression", "model")
    assert_error(send(vit, DOCUMENT, "text/plain", name="both"), 422, "invalid_request", "body")
    headers = {"content-type": "application/yaml"}
    response = vit.client.post("/v1/classify", content=DOCUMENT.encode(), headers=headers)
    assert_error(response, 422, "invalid_request", "body")


@pytest.mark.parametrize(("parameter", "value"), [("name", "both"), ("follow", "true")])
@pytest.mark.parametrize("body", [{"name": "other", "recipe": "math"}, {"recipe": "math"}, {"name": "both"}])
def test_json_has_all_of_it_in_the_body(vit: Served, parameter: str, value: str, body: dict[str, str]) -> None:
    response = vit.client.post("/v1/merges", params={parameter: value}, json=body)
    message = assert_error(response, 422, "invalid_request", parameter)
    assert message == (
        f"{parameter}: the query parameter {parameter!r} goes with a mergekit document (application/yaml); in JSON it "
        f"is the field {parameter!r} of the body, beside 'recipe'"
    )
    assert ok(vit.get("/v1/merges"))["data"] == []


def test_other_routes_of_merges_have_no_body(vit: Served) -> None:
    ok(send(vit, DOCUMENT, name="both"), 201)
    for headers in ({"content-type": "application/yaml"}, {"content-type": "application/json"}):
        assert ok(vit.get("/v1/merges/both", params={"name": "x"}, headers=headers))["name"] == "both"


def test_a_mean_that_counts_the_base(vit: Served) -> None:
    models = "[{model: base, parameters: {weight: 1}}, {model: math, parameters: {weight: 3}}]"
    record = ok(send(vit, f"merge_method: linear\nmodels: {models}\n", name="near"), 201)
    assert record["expression"] == "0.75*math"
    assert vit.classify("near", IMAGE) == vit.classify("0.75*math", IMAGE)


@pytest.mark.parametrize(
    ("params", "status", "code", "param"),
    [
        ({"seed": 1}, 422, "invalid_recipe", "terms"),
        ({"density": "half"}, 422, "invalid_request", "patch.terms.0.params.density"),
        ({"density": [{"value": 0.5, "t": 1}]}, 422, "invalid_request", "patch.terms.0.params.density.0.t"),
        ({"weight": 0.5}, 422, "invalid_request", "patch.terms.0"),
        ({"density": 2}, 422, "invalid_recipe", "params.density"),
    ],
)
def test_settings_that_are_refused(vit: Served, params: object, status: int, code: str, param: str) -> None:
    patch = {"method": "ties", "terms": [{"delta": "math", "params": params}]}
    assert_error(vit.post("/v1/classify", {"model": "base", "patch": patch, "input": IMAGE}), status, code, param)


def test_a_key_is_asked_for_before_a_document_is_read(serve: Any) -> None:
    served = serve("vit", api_key="a-key-of-sixteen-or-more")
    assert_error(send(served, "a: [", name="both"), 401, "unauthorized", "authorization")
