"""/v1/embeddings: OpenAI's shape, and vectors that are those of the model a recipe stands for."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok
from transformers import AutoModel, AutoTokenizer

from patchbay.compress.reconstruct import reconstruct

TEXTS = ["the cat", "a dog runs and sees my film", "not good"]
PIXELS = torch.randn(3, 3, pico.IMAGE, pico.IMAGE, generator=torch.Generator().manual_seed(0))
ARRAYS = [{"array": image.tolist()} for image in PIXELS]


def embed(served: Served, model: str, inputs: object, **more: object) -> torch.Tensor:
    data = ok(served.post("/v1/embeddings", {"model": model, "input": inputs, **more}))["data"]
    return torch.tensor([row["embedding"] for row in data])


@torch.inference_mode()
def test_text_is_the_mean_over_its_tokens(encoder: Served, delta_file: Callable[..., Path], tmp_path: Path) -> None:
    reconstruct(delta_file("bert_encoder", 1), encoder.backbone.folder, tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in TEXTS]
    expected = torch.nn.functional.normalize(torch.stack(states), dim=-1)
    torch.testing.assert_close(embed(encoder, "math", TEXTS), expected, atol=1e-6, rtol=0)
    assert (embed(encoder, "base", TEXTS) - expected).abs().max() > 1e-3


@torch.inference_mode()
def test_an_image_is_the_pooled_output(serve: Serve, delta_file: Callable[..., Path], tmp_path: Path) -> None:
    served = serve("clip_vision")
    served.upload("math", delta_file("clip_vision"))
    reconstruct(delta_file("clip_vision"), served.backbone.folder, tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    expected = torch.nn.functional.normalize(model(pixel_values=PIXELS).pooler_output, dim=-1)
    torch.testing.assert_close(embed(served, "math", ARRAYS), expected, atol=1e-6, rtol=0)
    answer = ok(served.post("/v1/embeddings", {"model": "math", "input": ARRAYS}))
    assert answer["usage"] == {"prompt_tokens": 0, "total_tokens": 0}


def test_shape_of_an_answer(encoder: Served) -> None:
    record = ok(encoder.get("/v1/deltas/math"))
    answer = ok(encoder.post("/v1/embeddings", {"model": "0.5*math", "input": TEXTS, "user": "somebody"}))
    assert answer == {
        "object": "list",
        "model": "0.5*math",
        "data": [
            {"object": "embedding", "index": index, "embedding": row["embedding"]}
            for index, row in enumerate(answer["data"])
        ],
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
        "patchbay": {
            "path": "decoupled",
            "deltas": [{"name": "math", "version": 1, "digest": record["digest"], "weight": 0.5}],
            "recipe": "0.5*math",
            "warnings": [],
        },
    }
    vectors = torch.tensor([row["embedding"] for row in answer["data"]])
    assert vectors.shape == (3, pico.HIDDEN)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_base64_is_the_same_bits(encoder: Served) -> None:
    floats = embed(encoder, "math", TEXTS)
    data = ok(encoder.post("/v1/embeddings", {"model": "math", "input": TEXTS, "encoding_format": "base64"}))["data"]
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in data]
    assert (np.stack(decoded) == floats.numpy()).all()


def test_one_input_is_not_changed_by_its_neighbours(encoder: Served) -> None:
    together = embed(encoder, "math", TEXTS)
    alone = torch.cat([embed(encoder, "math", text) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_the_width_that_vectors_have_may_be_asked_for(encoder: Served) -> None:
    width = embed(encoder, "math", TEXTS).shape[1]
    assert embed(encoder, "math", TEXTS, dimensions=width).shape[1] == width


@pytest.mark.parametrize("path", ["decoupled", "patched"])
def test_both_paths_answer(encoder: Served, path: str) -> None:
    body = {"model": "0.5*math", "input": TEXTS, "path": path}
    assert ok(encoder.post("/v1/embeddings", body))["patchbay"]["path"] == path
    found = embed(encoder, "0.5*math", TEXTS, path=path)
    torch.testing.assert_close(found, embed(encoder, "0.5*math", TEXTS), atol=1e-6, rtol=0)


def test_more_inputs_than_one_forward_pass_takes(encoder: Served) -> None:
    many = embed(encoder, "math", [TEXTS[i % 3] for i in range(150)])
    torch.testing.assert_close(many, embed(encoder, "math", TEXTS).repeat(50, 1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"dimensions": 7}, 422, "unsupported_parameter", "dimensions"),
        ({"encoding_format": "hex"}, 422, "invalid_request", "encoding_format"),
        ({"input": []}, 422, "invalid_request", "input"),
        ({"input": ""}, 422, "invalid_input", "input"),
        ({"input": ["the cat", ""]}, 422, "invalid_input", "input"),
        ({"input": [1, 2]}, 422, "invalid_request", "input.0"),
        ({"input": ARRAYS}, 422, "invalid_input", "input"),
        ({"input": ["the cat", ARRAYS[0]]}, 422, "invalid_input", "input"),
        ({"input": {"image": "aGk="}}, 422, "invalid_input", "input"),
        ({"model": "mat"}, 404, "not_found", "model"),
        ({"model": "math - "}, 422, "invalid_expression", "model"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_refusals(encoder: Served, change: dict[str, object], status: int, code: str, param: str) -> None:
    body = {"model": "math", "input": "the cat", **change}
    assert_error(encoder.post("/v1/embeddings", body), status, code, param)


def test_text_that_is_no_text(encoder: Served) -> None:
    """Half of a surrogate pair is valid JSON and no character."""
    response = encoder.client.post(
        "/v1/embeddings", content=b'{"model": "math", "input": "\\ud800"}', headers={"content-type": "application/json"}
    )
    assert_error(response, 422, "invalid_request", "input")


@pytest.mark.parametrize("kind", ["vit", "bert_classifier", "llama", "t5"])
def test_a_backbone_that_cannot_embed_says_so(serve: Serve, kind: str) -> None:
    response = serve(kind).post("/v1/embeddings", {"model": "base", "input": "the cat"})
    assert "cannot embed" in assert_error(response, 400, "unsupported_task", "model")


def test_weights_out_of_range_are_refused_and_not_served_as_nan(
    encoder: Served, finetune_folder: Callable[..., Path], tmp_path: Path
) -> None:
    tuned = finetune_folder("bert_encoder", 3, scale=1e37)
    encoder.upload(
        "huge", pico.delta_file(encoder.backbone.folder, tuned, tmp_path / "huge.safetensors", values="fp32")
    )
    response = encoder.post("/v1/embeddings", {"model": "10*huge", "input": "the cat"})
    assert_error(response, 422, "non_finite_value", "model")
