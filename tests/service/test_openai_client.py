"""The official client, unchanged, against the app."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.service.serving import Serve, Served

KEY = "a-key-of-twenty-signs"


def client_of(served: Served, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url="http://testserver/v1", http_client=served.client, max_retries=0)


@pytest.fixture
def writer(llama: Served) -> openai.OpenAI:
    return client_of(llama)


@pytest.fixture
def embedder(encoder: Served) -> openai.OpenAI:
    return client_of(encoder)


def test_completions(writer: openai.OpenAI) -> None:
    completion = writer.completions.create(model="math", prompt="the cat", max_tokens=5, temperature=0)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None and completion.usage.completion_tokens == 5
    again = writer.completions.create(model="math@1", prompt=["the cat"], max_tokens=5, temperature=0)
    assert again.choices[0].text == completion.choices[0].text


def test_patch_goes_through_extra_body(writer: openai.OpenAI) -> None:
    patch = {"method": "linear", "terms": [{"delta": "math", "weight": 3}, {"delta": "code"}]}
    answer = writer.completions.create(
        model="base", prompt="the cat", max_tokens=8, temperature=0, extra_body={"patch": patch}
    )
    extra: dict[str, Any] = answer.model_extra or {}
    assert extra["patchbay"]["recipe"] == "linear(3*math, code)"
    assert [(delta["name"], delta["weight"]) for delta in extra["patchbay"]["deltas"]] == [("math", 3.0), ("code", 1.0)]
    written = writer.completions.create(model="linear(3*math, code)", prompt="the cat", max_tokens=8, temperature=0)
    assert written.choices[0].text == answer.choices[0].text


def test_embeddings(embedder: openai.OpenAI) -> None:
    """The client asks for base64 by itself and decodes it."""
    decoded = embedder.embeddings.create(model="math", input=["the cat", "not good"])
    floats = embedder.embeddings.create(model="math", input=["the cat", "not good"], encoding_format="float")
    assert [row.embedding for row in decoded.data] == [row.embedding for row in floats.data]
    norms = torch.tensor([row.embedding for row in decoded.data]).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(2))
    assert decoded.usage.total_tokens == 4


def test_models(writer: openai.OpenAI, llama: Served) -> None:
    names = [model.id for model in writer.models.list()]
    assert names == [llama.backbone.name, "code", "math"]
    assert writer.models.retrieve("math").owned_by == "patchbay"


def test_errors(writer: openai.OpenAI, llama: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        writer.completions.create(model="maht", prompt="the cat")
    assert (missing.value.code, missing.value.param, missing.value.type) == ("not_found", "model", "not_found_error")
    assert "close names: math" in str(missing.value)
    with pytest.raises(openai.NotFoundError) as unknown:
        writer.models.retrieve("maht")
    assert unknown.value.code == "not_found"
    with pytest.raises(openai.UnprocessableEntityError) as unsupported:
        writer.completions.create(model="math", prompt="the cat", n=2)
    assert unsupported.value.code == "unsupported_parameter"
    with pytest.raises(openai.BadRequestError) as task:
        writer.embeddings.create(model="math", input="the cat")
    assert task.value.code == "unsupported_task"


@pytest.fixture
def guarded(serve: Serve, tmp_path: Path) -> Iterator[Served]:
    yield serve("llama", api_key=KEY)


def test_keys(guarded: Served) -> None:
    assert len(client_of(guarded).models.list().data) == 1
    with pytest.raises(openai.AuthenticationError) as wrong:
        client_of(guarded, "another").models.list()
    assert wrong.value.code == "unauthorized"
