"""/v1/chat/completions: what the model says after its own chat template, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import pico
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.streaming import stream, talking
from transformers import AutoTokenizer

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "the cat runs"}
MESSAGES = [{"role": "system", "content": "good"}, USER, {"role": "assistant", "content": "a dog"}, USER]
ONLY_WORDS = {str(4 + number): 100 for number in range(len(pico.WORDS))}  # after four special tokens
SAMPLED = {"max_tokens": 12, "temperature": 1.5, "seed": 3, "logit_bias": ONLY_WORDS}


@pytest.fixture
def talker(serve: Serve, model_folder: Callable[..., Path], delta_file: Callable[..., Path], tmp_path: Path) -> Served:
    served = talking(serve, model_folder, tmp_path)
    served.upload("math", delta_file("llama"))
    return served


def chat(served: Served, messages: object = (USER,), **more: object) -> dict[str, Any]:
    return ok(served.post(PATH, {"model": "math", "messages": messages, **more}))


def contents(answer: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


def prompt_of(served: Served, messages: object) -> list[int]:
    """By transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(served.backbone.folder)
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def test_the_answer_is_what_follows_the_template(talker: Served) -> None:
    ids = prompt_of(talker, MESSAGES)
    assert ids.count(2) == 1, "the template writes the beginning, and the tokenizer does not write it again"
    plain = ok(talker.post("/v1/completions", {"model": "math", "prompt": ids, **SAMPLED}))
    answer = chat(talker, MESSAGES, **SAMPLED)
    assert contents(answer) == [choice["text"] for choice in plain["choices"]]
    assert answer["usage"] == plain["usage"]


def test_shape_of_an_answer(talker: Served) -> None:
    answer = chat(talker, max_tokens=4, ignore_eos=True, user="somebody")
    [choice] = answer["choices"]
    message = {"role": "assistant", "content": choice["message"]["content"], "refusal": None}
    assert choice == {"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}
    assert answer["id"].startswith("chatcmpl-") and answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["patchbay"]["recipe"] == "math" and answer["patchbay"]["timings"]["total_ms"] > 0
    assert answer.keys() == {"id", "object", "created", "model", "choices", "usage", "patchbay"}


@pytest.mark.parametrize("more", [{}, {"n": 3}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"stop": ["cat", "t"]}])
def test_a_stream_is_the_whole_answer_in_pieces(talker: Served, more: dict[str, Any]) -> None:
    body = {"model": "0.5*math", "messages": MESSAGES, **SAMPLED, **more}
    whole = ok(talker.post(PATH, body))
    *parts, last = stream(talker, PATH, {**body, "stream_options": {"include_usage": True}})
    assert last["usage"] == whole["usage"] and last["choices"] == []
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    for wanted in whole["choices"]:
        first, *rest = [c for part in parts for c in part["choices"] if c["index"] == wanted["index"]]
        assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
        assert all(choice["delta"].keys() <= {"content"} for choice in rest)
        assert "".join(choice["delta"].get("content", "") for choice in rest) == wanted["message"]["content"]
        reasons = [choice["finish_reason"] for choice in rest]
        assert reasons == [None] * (len(rest) - 1) + [wanted["finish_reason"]]
        if "logprobs" in more:
            told = [entry for choice in rest for entry in choice["logprobs"]["content"]]
            assert told == wanted["logprobs"]["content"]


def test_probabilities(talker: Served) -> None:
    """The same as a completion's."""
    plain = ok(
        talker.post("/v1/completions", {"model": "math", "prompt": prompt_of(talker, [USER]), **SAMPLED, "logprobs": 5})
    )
    [choice] = chat(talker, **SAMPLED, logprobs=True, top_logprobs=20)["choices"]
    told = choice["logprobs"]["content"]
    assert [entry["token"] for entry in told] == plain["choices"][0]["logprobs"]["tokens"]
    assert [entry["logprob"] for entry in told] == plain["choices"][0]["logprobs"]["token_logprobs"]
    for entry in told:
        assert entry.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(entry["bytes"]).decode() == entry["token"]
        top = [other["logprob"] for other in entry["top_logprobs"]]
        assert len(top) == 20 and top == sorted(top, reverse=True) and top[0] >= entry["logprob"]
        assert all(other.keys() == {"token", "logprob", "bytes"} for other in entry["top_logprobs"])
    [bare] = chat(talker, **SAMPLED, logprobs=True)["choices"]
    assert all(entry["top_logprobs"] == [] for entry in bare["logprobs"]["content"])


def test_ways_to_say_the_same(talker: Served) -> None:
    wanted = contents(chat(talker, MESSAGES, **SAMPLED))
    parts = [{"type": "text", "text": "the cat runs"}]
    kept = {"refusal": None, "tool_calls": None, "function_call": None, "audio": None, "annotations": []}
    developer, first, said, last = ({**message} for message in MESSAGES)
    developer["role"] = "developer"
    same = [developer, {**first, "content": parts}, {**said, **kept}, {**last, "name": None}]
    assert contents(chat(talker, same, **SAMPLED)) == wanted
    limit = {**SAMPLED, "max_tokens": None, "max_completion_tokens": 12}
    assert contents(chat(talker, MESSAGES, **limit)) == wanted
    assert contents(chat(talker, [{**USER, "content": parts * 2}], **SAMPLED)) == contents(
        chat(talker, [{**USER, "content": "the cat runs\nthe cat runs"}], **SAMPLED)
    )


def test_an_answer_is_as_long_as_there_is_room(talker: Served) -> None:
    usage = chat(talker, ignore_eos=True)["usage"]
    assert usage["total_tokens"] == 256 and usage["prompt_tokens"] == len(prompt_of(talker, [USER]))
    full = [{"role": "user", "content": "the " * 256}]
    assert_error(talker.post(PATH, {"model": "math", "messages": full}), 422, "invalid_input", "messages")


def test_and_no_longer_than_the_default(talker: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchbay_server.routes.chat.MAX_TOKENS", 7)
    assert chat(talker, ignore_eos=True)["usage"]["completion_tokens"] == 7


def test_without_a_template(serve: Serve, model_folder: Callable[..., Path], tmp_path: Path) -> None:
    served = talking(serve, model_folder, tmp_path, template=None)
    response = served.post(PATH, {"model": "base", "messages": [USER]})
    assert "no chat template" in assert_error(response, 422, "invalid_input", "messages")


@pytest.mark.parametrize(
    "template", ["{{ messages[5]['content'] + 1 }}", "{{ 1 / 0 }}", "{% if %}", "{{ nothing.of.it }}"]
)
def test_a_template_that_fails(serve: Serve, model_folder: Callable[..., Path], tmp_path: Path, template: str) -> None:
    served = talking(serve, model_folder, tmp_path, template=template)
    response = served.post(PATH, {"model": "base", "messages": [USER]})
    assert "template refuses" in assert_error(response, 422, "invalid_input", "messages")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("verbosity", "high"),
        ("web_search_options", {}),
        ("service_tier", "flex"),
        ("store", True),
        ("metadata", {"a": "b"}),
    ],
)
def test_what_is_not_supported_is_refused_and_never_ignored(talker: Served, field: str, value: object) -> None:
    body = {"model": "math", "messages": [USER], field: value}
    assert_error(talker.post(PATH, body), 422, "unsupported_parameter", field)


def test_neutral_values_of_the_same_fields_pass(talker: Served) -> None:
    neutral = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "functions": None,
        "modalities": ["text"],
    }
    neutral |= {"response_format": {"type": "text"}, "service_tier": "auto", "store": False, "metadata": {}}
    chat(talker, max_tokens=1, **neutral)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "invalid_request", "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "invalid_request", "messages.0.content"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid_request", "messages.0.content"),
        ({"messages": [USER, {**USER, "content": 5}]}, "invalid_request", "messages.1.content"),
        ({"messages": [{**USER, "weight": 5}]}, "invalid_request", "messages.0.weight"),
        (
            {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "invalid_request",
            "messages.0.content.0.type",
        ),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "invalid_input", "messages"),
        ({"messages": [{**USER, "tool_calls": [{}]}]}, "unsupported_parameter", "messages.0.tool_calls"),
        ({"messages": [{**USER, "refusal": "no"}]}, "unsupported_parameter", "messages.0.refusal"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "invalid_input", "max_tokens"),
        ({"max_tokens": 256}, "invalid_input", "messages"),
        ({"logprobs": 2}, "invalid_request", "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "invalid_request", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_request", "top_logprobs"),
        ({"logit_bias": {"96": 1}}, "invalid_input", "logit_bias"),
        ({"prompt": "the cat"}, "invalid_request", "prompt"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else None,
)
def test_refusals(talker: Served, change: dict[str, object], code: str, param: str) -> None:
    assert_error(talker.post(PATH, {"model": "math", "messages": [USER], **change}), 422, code, param)


@pytest.mark.parametrize("kind", ["vit", "bert_encoder"])
def test_a_backbone_that_cannot_write_says_so(serve: Serve, kind: str) -> None:
    response = serve(kind).post(PATH, {"model": "base", "messages": [USER]})
    assert_error(response, 400, "unsupported_task", "model")
