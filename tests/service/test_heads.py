"""Whose classification head answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok, probabilities
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from patchbay.compress.reconstruct import reconstruct

TEXTS = ["the cat", "a dog runs and sees my film", "not good"]
HEADS = {"math": ("even", "odd"), "code": ("ham", "spam", "eggs", "beans")}


@pytest.fixture(scope="session")
def heads(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two classifiers and an encoder without a head, all made from the same plain encoder."""
    base, folder = model_folder("bert_encoder"), tmp_path_factory.mktemp("heads")
    files = {}
    for seed, (name, labels) in enumerate(HEADS.items(), 10):
        untrained = model_folder("bert_classifier", labels=labels)
        tuned = pico.perturb(untrained, folder / name, seed, 0.05)
        files[name] = pico.delta_file(base, tuned, folder / f"{name}.safetensors", density=0.3)
    tuned = pico.perturb(base, folder / "bare", 12, 0.05)
    files["bare"] = pico.delta_file(base, tuned, folder / "bare.safetensors", density=0.3)
    return files


@pytest.fixture
def served(serve: Serve, heads: dict[str, Path]) -> Served:
    served = serve("bert_encoder")
    for name, file in heads.items():
        served.upload(name, file)
    return served


@pytest.mark.parametrize("name", HEADS)
def test_a_deltas_own_head_answers_as_its_checkpoint_does(
    served: Served, heads: dict[str, Path], tmp_path: Path, name: str
) -> None:
    reconstruct(heads[name], served.backbone.folder, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    batch = AutoTokenizer.from_pretrained(tmp_path / "model")(TEXTS, padding=True, return_tensors="pt")
    expected = probabilities(model, **batch)
    torch.testing.assert_close(served.probabilities(name, TEXTS), expected, atol=1e-6, rtol=0)
    assert tuple(served.classify(name, TEXTS)[0]["probabilities"]) == HEADS[name]


def test_what_the_record_says_of_heads(served: Served) -> None:
    summaries = {r["name"]: r["summary"] for r in ok(served.get("/v1/deltas"))["data"]}
    assert {name: (s["own_head"], s["labels"]) for name, s in summaries.items()} == {
        "math": (True, list(HEADS["math"])),
        "code": (True, list(HEADS["code"])),
        "bare": (False, None),
    }


@pytest.mark.parametrize(
    ("model", "head", "owner"),
    [
        ("math", None, "math"),
        ("math", "math", "math"),
        ("math@1", "math", "math"),
        ("math@1", "math@1", "math"),
        ("0.5*code", None, "code"),
        ("math + bare", None, "math"),
        ("math + code", "math", "math"),
        ("math + code", "code", "code"),
        ("task_arithmetic(math, code; head=code)", None, "code"),
        ("task_arithmetic(math, code; head=code)", "code", "code"),
        ("linear(math@1, code@1; head=math@1)", "math@1", "math"),
    ],
)
def test_the_only_head_or_the_one_asked_for(served: Served, model: str, head: str | None, owner: str) -> None:
    more = {"head": head} if head else {}
    for row in served.classify(model, TEXTS, **more):
        assert tuple(row["probabilities"]) == HEADS[owner]


def test_the_head_does_not_change_the_encoder(served: Served) -> None:
    """The same merge under both heads is the same encoder: embeddings know no head."""
    both = ok(served.post("/v1/embeddings", {"model": "math + code", "input": TEXTS}))["data"]
    with_head = {"model": "task_arithmetic(math, code; head=code)", "input": TEXTS}
    assert ok(served.post("/v1/embeddings", with_head))["data"] == both


@pytest.mark.parametrize(
    ("model", "head", "says"),
    [
        ("math + code", None, "say which with 'head': code, math"),
        ("code + bare + math", None, "say which with 'head': code, math"),
        ("base", None, "neither the base nor any of the deltas"),
        ("bare", None, "neither the base nor any of the deltas"),
        ("base", "math", "is not among the terms: none"),
        ("math", "code", "'code' is not among the terms: math"),
        ("math + code", "mat", "is not among the terms"),
        ("math + bare", "bare", "'bare' has no head"),
    ],
)
def test_ambiguous_heads(served: Served, model: str, head: str | None, says: str) -> None:
    response = served.post("/v1/classify", {"model": model, "head": head, "input": "the cat"})
    assert says in assert_error(response, 422, "ambiguous_head", "head")


def test_a_request_cannot_overrule_its_recipe(served: Served) -> None:
    model = "task_arithmetic(math, code; head=code)"
    response = served.post("/v1/classify", {"model": model, "head": "math", "input": "the cat"})
    assert_error(response, 422, "invalid_recipe", "head")


def test_patch_carries_a_head(served: Served) -> None:
    patch = {"terms": [{"delta": "math"}, {"delta": "code"}], "head": "code"}
    rows = served.classify("base", TEXTS, patch=patch)
    assert rows == served.classify("math + code", TEXTS, head="code")


def test_a_saved_merge_carries_a_head(served: Served) -> None:
    ok(served.post("/v1/merges", {"name": "both", "recipe": "linear(math, code; head=code)"}), 201)
    assert served.classify("both", TEXTS) == served.classify("linear(math, code)", TEXTS, head="code")


def test_a_head_that_the_base_has_is_an_ordinary_matrix(serve: Serve, delta_file: Callable[..., Path]) -> None:
    served = serve("bert_classifier")
    for name, seed in (("math", 1), ("code", 2)):
        served.upload(name, delta_file("bert_classifier", seed))
    [record, _] = ok(served.get("/v1/deltas"))["data"]
    assert record["summary"]["own_head"] is False
    [row] = served.classify("math + code", "the cat")  # not ambiguous: it is merged
    assert tuple(row["probabilities"]) == pico.LABELS
    assert row != served.classify("math", "the cat")[0]


def test_other_labels_are_another_head(
    serve: Serve, model_folder: Callable[..., Path], delta_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The base has a head, the fine-tune replaced it: its own answers, the base's does for everybody else."""
    served = serve("bert_classifier")
    tuned = pico.perturb(model_folder("bert_classifier", labels=("x", "y")), tmp_path / "tuned")
    served.upload("other", pico.delta_file(served.backbone.folder, tuned, tmp_path / "other.safetensors"))
    served.upload("math", delta_file("bert_classifier"))
    assert tuple(served.classify("other", "the cat")[0]["probabilities"]) == ("x", "y")
    assert tuple(served.classify("math", "the cat")[0]["probabilities"]) == pico.LABELS
    assert tuple(served.classify("math + other", "the cat")[0]["probabilities"]) == ("x", "y")
