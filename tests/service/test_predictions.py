"""The answers of /v1/classify are those of the model that a recipe stands for, as transformers alone computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok, probabilities, summed
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

from patchbay.compress.reconstruct import reconstruct
from patchbay.delta import Delta, read_delta

TOLERANCE = {"atol": 1e-6, "rtol": 0}
PIXELS = torch.randn(5, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))
ARRAYS = [{"array": image.tolist()} for image in PIXELS]
TEXTS = ["the cat", "a dog runs and sees my film", "not good"]

# What a request says (model and more) -> the weights of `math` and `code` that it means.
MERGES: Mapping[str, tuple[dict[str, object], tuple[float, float]]] = {
    "half-way": ({"model": "0.5*math"}, (0.5, 0)),
    "beyond": ({"model": "1.5*math"}, (1.5, 0)),
    "negative": ({"model": "-math"}, (-1, 0)),
    "sum": ({"model": "0.6*math + 0.4*code"}, (0.6, 0.4)),
    "unlearning": ({"model": "math - 0.5*code"}, (1, -0.5)),
    "mean": ({"model": "linear(3*math, code)"}, (0.75, 0.25)),
    "scaled": ({"model": "task_arithmetic(math, code; scale=0.5)"}, (0.5, 0.5)),
    "versions": ({"model": "math@1 + code@1"}, (1, 1)),
    "patch": (
        {"model": "vit", "patch": {"terms": [{"delta": "code", "weight": 2}, {"delta": "math"}], "scale": 0.25}},
        (0.25, 0.5),
    ),
    "patch as mean": (
        {"model": "base", "patch": {"method": "linear", "terms": [{"delta": "code"}, {"delta": "math"}]}},
        (0.5, 0.5),
    ),
}


@pytest.fixture
def deltas(vit: Served, delta_file: Callable[..., Path]) -> tuple[Delta, Delta]:
    base = vit.backbone
    first, second = (read_delta(delta_file("vit", seed), base.specs, base.fingerprint) for seed in (1, 2))
    return first, second


def test_the_base_is_the_base(vit: Served) -> None:
    model = AutoModelForImageClassification.from_pretrained(vit.backbone.folder)
    expected = probabilities(model, pixel_values=PIXELS)
    torch.testing.assert_close(vit.probabilities("base", ARRAYS), expected, **TOLERANCE)
    torch.testing.assert_close(vit.probabilities(vit.backbone.name, ARRAYS), expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "seed"), [("math", 1), ("code", 2)])
def test_a_delta_is_its_reconstructed_checkpoint(
    vit: Served, delta_file: Callable[..., Path], tmp_path: Path, name: str, seed: int
) -> None:
    reconstruct(delta_file("vit", seed), vit.backbone.folder, tmp_path / "model")
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    expected = probabilities(model, pixel_values=PIXELS)
    torch.testing.assert_close(vit.probabilities(name, ARRAYS), expected, **TOLERANCE)
    assert (expected - vit.probabilities("base", ARRAYS)).abs().max() > 1e-3


@pytest.mark.parametrize("case", MERGES)
def test_a_recipe_is_the_sum_of_its_terms(vit: Served, deltas: tuple[Delta, Delta], tmp_path: Path, case: str) -> None:
    request, (math, code) = MERGES[case]
    if request["model"] == "vit":
        request = {**request, "model": vit.backbone.name}
    terms = zip(deltas, (math, code), strict=True)
    model = AutoModelForImageClassification.from_pretrained(summed(vit.backbone.folder, tmp_path / "sum", terms))
    expected = probabilities(model, pixel_values=PIXELS)
    rows = ok(vit.post("/v1/classify", {**request, "input": ARRAYS}))["data"]
    answered = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(answered, expected, **TOLERANCE)


def test_text_is_answered_as_its_reconstructed_checkpoint_does(
    serve: Serve, delta_file: Callable[..., Path], tmp_path: Path
) -> None:
    served = serve("bert_classifier")
    served.upload("math", delta_file("bert_classifier"))
    reconstruct(delta_file("bert_classifier"), served.backbone.folder, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS, padding=True, return_tensors="pt")
    torch.testing.assert_close(served.probabilities("math", TEXTS), probabilities(model, **batch), **TOLERANCE)
    alone = torch.cat([served.probabilities("math", text) for text in TEXTS])
    torch.testing.assert_close(alone, probabilities(model, **batch), **TOLERANCE)


def test_shape_of_an_answer(vit: Served) -> None:
    record = ok(vit.get("/v1/deltas/math"))
    answer = ok(vit.post("/v1/classify", {"model": "0.5*math", "input": ARRAYS[:2]}))
    [first, second] = answer["data"]
    assert answer == {
        "object": "list",
        "model": "0.5*math",
        "data": [first, second],
        "patchbay": {
            "path": "decoupled",
            "deltas": [{"name": "math", "version": 1, "digest": record["digest"], "weight": 0.5}],
            "recipe": "0.5*math",
            "warnings": [],
        },
    }
    assert (first["index"], second["index"]) == (0, 1)
    for row in (first, second):
        assert set(row) == {"index", "label", "probabilities"}
        assert list(row["probabilities"]) == list(pico.LABELS)
        assert sum(row["probabilities"].values()) == pytest.approx(1)
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)


def test_what_the_base_says_of_itself(vit: Served) -> None:
    answer = ok(vit.post("/v1/classify", {"model": "base", "input": ARRAYS[0]}))
    assert answer["patchbay"] == {"path": "base", "deltas": [], "recipe": None, "warnings": []}
    assert len(answer["data"]) == 1


def test_patch_is_described_like_the_expression_that_it_is(vit: Served) -> None:
    patch = {"method": "linear", "terms": [{"delta": "code@1", "weight": 0.4}, {"delta": "math", "weight": 0.6}]}
    answer = ok(vit.post("/v1/classify", {"model": "base", "patch": patch, "input": ARRAYS[0]}))
    assert answer["patchbay"]["recipe"] == "linear(0.4*code@1, 0.6*math)"
    assert [(d["name"], d["version"], d["weight"]) for d in answer["patchbay"]["deltas"]] == [
        ("code", 1, 0.4),
        ("math", 1, 0.6),
    ]
    again = vit.classify("linear(0.4*code@1, 0.6*math)", ARRAYS[0])
    assert again == answer["data"]


def test_more_inputs_than_one_forward_pass_takes(vit: Served) -> None:
    many = [ARRAYS[i % 5] for i in range(150)]
    rows = vit.classify("math", many)
    assert [row["index"] for row in rows] == list(range(150))
    few = vit.probabilities("math", ARRAYS)
    for start in (0, 60, 65, 145):
        torch.testing.assert_close(vit.probabilities("math", many)[start : start + 5], few, **TOLERANCE)


@pytest.mark.parametrize("path", ["decoupled", "patched"])
def test_both_paths_answer(vit: Served, path: str) -> None:
    model = "math - 0.5*code"
    answer = ok(vit.post("/v1/classify", {"model": model, "input": ARRAYS, "path": path}))
    assert answer["patchbay"]["path"] == path
    found = vit.probabilities(model, ARRAYS, path=path)
    torch.testing.assert_close(found, vit.probabilities(model, ARRAYS), **TOLERANCE)


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "mat"}, 404, "not_found", "model"),
        ({"model": "math@2"}, 404, "not_found", "model"),
        ({"model": "math + cod"}, 404, "not_found", "model"),
        ({"model": "math +"}, 422, "invalid_expression", "model"),
        ({"model": "Math"}, 422, "invalid_expression", "model"),
        ({"model": "100*math"}, 422, "invalid_expression", "model"),
        ({"model": "nope(math, code)"}, 422, "unknown_method", "method"),
        ({"model": "linear(math; density=0.5)"}, 422, "invalid_recipe", "params.density"),
        ({"model": "linear(math, -code)"}, 422, "invalid_recipe", "terms"),
        ({"model": "math + math@1"}, 422, "invalid_recipe", "terms"),
        ({"model": "math", "patch": {"terms": [{"delta": "math"}]}}, 422, "invalid_recipe", "model"),
        ({"head": "nope"}, 422, "ambiguous_head", "head"),
        ({"path": "sideways"}, 422, "invalid_request", "path"),
        ({"model": ""}, 422, "invalid_request", "model"),
        ({"model": 5}, 422, "invalid_request", "model"),
        ({"model": "m" * 2001}, 422, "invalid_request", "model"),
        ({"input": []}, 422, "invalid_request", "input"),
        ({"input": ["a"] * 2049}, 422, "invalid_request", "input"),
        ({"input": {"image": 5}}, 422, "invalid_request", "input.image"),
        ({"input": [{"image": "", "x": 1}]}, 422, "invalid_request", "input.0.x"),
        ({"temperature": 0}, 422, "invalid_request", "temperature"),
        ({"model": "base", "patch": {"terms": []}}, 422, "invalid_request", "patch.terms"),
        ({"model": "base", "patch": {"terms": [{"delta": "M"}]}}, 422, "invalid_request", "patch.terms.0.delta"),
        ({"model": "base", "patch": {"terms": [{"delta": "math", "weight": "1"}]}}, 422, "invalid_request", None),
        ({"model": "base", "patch": {"method": "nope", "terms": [{"delta": "math"}]}}, 422, "unknown_method", "method"),
        ({"input": "a text"}, 422, "invalid_input", "input"),
        ({"input": ["a text", ARRAYS[0]]}, 422, "invalid_input", "input"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_refusals(vit: Served, change: dict[str, object], status: int, code: str, param: str | None) -> None:
    response = vit.post("/v1/classify", {"model": "math", "input": ARRAYS[0], **change})
    if param is None:
        param = response.json()["error"]["param"]
    assert_error(response, status, code, param)


def test_unknown_deltas_are_answered_with_close_names(vit: Served) -> None:
    message = assert_error(vit.post("/v1/classify", {"model": "maht", "input": ARRAYS[0]}), 404, "not_found", "model")
    assert message == "there is no delta 'maht'; close names: math"


def test_a_bad_expression_shows_its_place(vit: Served) -> None:
    response = vit.post("/v1/classify", {"model": "math + + code", "input": ARRAYS[0]})
    message = assert_error(response, 422, "invalid_expression", "model")
    assert message.splitlines()[1:] == ["  math + + code", "         ^"]


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_backbone_that_cannot_classify_says_so(serve: Serve, kind: str) -> None:
    response = serve(kind).post("/v1/classify", {"model": "base", "input": "the cat"})
    assert "cannot classify" in assert_error(response, 400, "unsupported_task", "model")


def test_weights_out_of_range_are_refused_and_not_served_as_nan(
    serve: Serve, finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    served = serve("vit")
    huge = pico.delta_file(
        served.backbone.folder, finetune_folder("vit", 3, scale=1e37), tmp_path / "huge.safetensors", values="fp32"
    )
    served.upload("huge", huge)
    response = served.post("/v1/classify", {"model": "10*huge", "input": ARRAYS[0]})
    assert_error(response, 422, "non_finite_value", "model")
    assert ok(served.post("/v1/base/verify"))["ok"]
