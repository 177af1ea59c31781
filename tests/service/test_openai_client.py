"""The official client, unchanged, against the app."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tests.service.serving import Serve, Served
from tests.service.streaming import held, talking, under_way, wait_until

KEY = "a-key-of-twenty-signs"


def client_of(served: Served, key: str = KEY) -> openai.OpenAI:
    return openai.OpenAI(api_key=key, base_url="http://testserver/v1", http_client=served.client, max_retries=0)


@pytest.fixture
def writer(llama: Served) -> openai.OpenAI:
    return client_of(llama)


@pytest.fixture
def talker(
    serve: Serve, model_folder: Callable[..., Path], delta_file: Callable[..., Path], tmp_path: Path
) -> openai.OpenAI:
    served = talking(serve, model_folder, tmp_path)
    served.upload("math", delta_file("llama"))
    return client_of(served)


@pytest.fixture
def embedder(encoder: Served) -> openai.OpenAI:
    return client_of(encoder)


def test_completions(writer: openai.OpenAI) -> None:
    completion = writer.completions.create(model="math", prompt="the cat", max_tokens=5, temperature=0)
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None and completion.usage.completion_tokens == 5
    again = writer.completions.create(model="math@1", prompt=["the cat"], max_tokens=5, temperature=0)
    assert again.choices[0].text == completion.choices[0].text


def test_streams(writer: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "math", "prompt": ["the cat", "my"], "n": 2, "max_tokens": 9, "seed": 5}
    whole = writer.completions.create(**asked, logprobs=2)
    chunks = list(writer.completions.create(**asked, logprobs=2, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert (chunks[0].model_extra or {})["patchbay"]["recipe"] == "math"
    for wanted in whole.choices:
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == wanted.index]
        assert "".join(part.text for part in parts) == wanted.text
        assert parts[-1].finish_reason == wanted.finish_reason
        assert wanted.logprobs is not None and wanted.logprobs.tokens is not None
        told = [token for part in parts if part.logprobs for token in part.logprobs.tokens or ()]
        assert told == wanted.logprobs.tokens


def test_a_stream_that_is_closed_frees_the_engine(writer: openai.OpenAI, llama: Served) -> None:
    bias = {"12": 100}  # a word, which is text at once
    stream = writer.completions.create(model="math", prompt="the cat", max_tokens=200, logit_bias=bias, stream=True)
    assert next(iter(stream)).choices
    with held(llama):
        assert under_way(llama) == 1
        stream.close()
    wait_until(lambda: not under_way(llama), "an empty engine")


def test_an_error_in_a_stream(writer: openai.OpenAI, llama: Served) -> None:
    bias = {"12": 100}
    stream = writer.completions.create(model="math", prompt="the cat", max_tokens=200, logit_bias=bias, stream=True)
    chunks = iter(stream)
    next(chunks)
    with held(llama):
        llama.engine.stop()
    with pytest.raises(openai.APIError) as stopped:
        list(chunks)
    assert stopped.value.code == "shutting_down" and "shutting down" in stopped.value.message


def test_chat(talker: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "math", "messages": [{"role": "user", "content": "the cat"}], "seed": 5}
    asked |= {"safety_identifier": "a user", "prompt_cache_key": "a key"}
    whole = talker.chat.completions.create(**asked, max_completion_tokens=9, logprobs=True, top_logprobs=2)
    [choice] = whole.choices
    assert choice.message.role == "assistant" and choice.finish_reason in ("stop", "length")
    assert choice.logprobs is not None and choice.logprobs.content is not None and whole.usage is not None
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    chunks = talker.chat.completions.create(**asked, max_completion_tokens=9, stream=True)
    parts = [part for chunk in chunks for part in chunk.choices]
    assert parts[0].delta.role == "assistant"
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    assert parts[-1].finish_reason == choice.finish_reason
    answered = [*asked["messages"], choice.message.model_dump(), {"role": "user", "content": "a dog"}]
    assert talker.chat.completions.create(**asked | {"messages": answered}, max_tokens=3).choices
    with pytest.raises(openai.UnprocessableEntityError) as unsupported:
        talker.chat.completions.create(**asked, response_format={"type": "json_object"})
    assert (unsupported.value.code, unsupported.value.param) == ("unsupported_parameter", "response_format")


def test_the_client_that_gathers_a_stream(talker: openai.OpenAI) -> None:
    """OpenAI's own helper is strict about what chunks have in common."""
    messages: list[Any] = [{"role": "user", "content": "the cat"}]
    ends: dict[str, Any] = {"logit_bias": {"12": 100}, "extra_body": {"stop_token_ids": [12]}}  # else it raises
    asked: dict[str, Any] = {"model": "math", "messages": messages, "max_tokens": 9, **ends}
    with talker.chat.completions.stream(**asked) as stream:
        found = stream.get_final_completion()
    assert found.choices[0].message.content == talker.chat.completions.create(**asked).choices[0].message.content


def test_a_full_queue(writer: openai.OpenAI, llama: Served) -> None:
    scheduler = llama.engine.language.generator.scheduler
    scheduler.limits = replace(scheduler.limits, max_waiting=0)
    with pytest.raises(openai.RateLimitError) as full:
        writer.completions.create(model="math", prompt="the cat")
    assert full.value.code == "queue_full" and full.value.response.headers["retry-after"] == "1"


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
        writer.completions.create(model="math", prompt="the cat", suffix="runs")
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
