"""Streams: the same answers in pieces, and what becomes of them when something goes wrong or somebody leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import Message
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.streaming import DONE, events, held, parse, stream, under_way, wait_until

PATH = "/v1/completions"
WORDS = {"ignore_eos": True, "logit_bias": {"12": 100, "13": 99}}  # every token is one: a chunk for each
LONG = {"model": "math", "prompt": "the cat", "max_tokens": 200, **WORDS}
RECIPES = (
    "base",
    "math",
    "0.5*code",
    "math + code",
    "0.6*math + 0.4*code",
    "math - 0.5*code",
    "linear(math, code)",
    "ties(math, code; density=0.4)",
    "slerp(math, code; t=0.3)",
    "1.3*math + 0.2*code",
)


def joined(chunks: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """The choices of one answer, put together."""
    parts = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert all(part["finish_reason"] is None for part in parts[:-1])
    logprobs = None
    if parts[0]["logprobs"] is not None:
        keys = parts[0]["logprobs"]
        logprobs = {key: [entry for part in parts for entry in part["logprobs"][key]] for key in keys}
    text = "".join(part["text"] for part in parts)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": parts[-1]["finish_reason"]}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"temperature": 0},
        {"prompt": ["the cat", "a dog runs"], "n": 3},
        {"stop": ["the", "cat s", "zebra"]},
        {"logprobs": 2, "n": 2},
        {"echo": True},
        {"frequency_penalty": 1.5, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2},
        {"ignore_eos": True, "max_tokens": 1},
    ],
    ids=str,
)
def test_a_stream_is_the_whole_answer_in_pieces(
    serve: Serve, delta_file: Callable[..., Path], kind: str, more: dict[str, Any]
) -> None:
    served = serve(kind)
    served.upload("math", delta_file(kind))
    body = {"model": "0.8*math", "prompt": "the cat", "max_tokens": 24, "temperature": 1.5, "seed": 11, **more}
    whole = ok(served.post(PATH, body))
    chunks = stream(served, PATH, {**body, "stream_options": {"include_usage": True}})
    *parts, last = chunks
    assert [joined(parts, choice["index"]) for choice in whole["choices"]] == whole["choices"]
    assert last["choices"] == [] and last["usage"] == whole["usage"]


@pytest.mark.parametrize("more", [{"logprobs": 3}, {"logprobs": 0, "max_tokens": 0}])
def test_a_stream_with_the_probabilities_of_its_prompt(llama: Served, more: dict[str, Any]) -> None:
    body = {"model": "math", "prompt": ["the cat", "a dog runs"], "n": 2, "max_tokens": 6, "echo": True, **more}
    whole = ok(llama.post(PATH, {**body, "seed": 3}))
    chunks = stream(llama, PATH, {**body, "seed": 3})
    assert [joined(chunks, index) for index in range(4)] == whole["choices"]


def test_shape_of_chunks(llama: Served) -> None:
    body = {"model": "math", "prompt": "the cat", "max_tokens": 4, "temperature": 0, **WORDS}
    first, *rest = stream(llama, PATH, body)
    whole = ok(llama.post(PATH, body))
    head = {"id": first["id"], "object": "text_completion", "created": first["created"], "model": "math"}
    assert first["id"].startswith("cmpl-")
    timings = first["patchbay"].pop("timings")
    assert {**whole["patchbay"], "timings": None} == {**first.pop("patchbay"), "timings": None}
    assert timings["total_ms"] is None and timings["first_token_ms"] > timings["queue_ms"] >= 0
    assert len(rest) == 3
    for number, chunk in enumerate([first, *rest], 1):
        [choice] = chunk["choices"]
        reason = "length" if number == 4 else None
        assert choice == {"index": 0, "text": choice["text"], "logprobs": None, "finish_reason": reason}
        assert chunk == {**head, "choices": [choice]}


def test_usage_comes_last_and_only_when_it_was_asked_for(llama: Served) -> None:
    body = {"model": "math", "prompt": ["the cat", "my"], "n": 2, "max_tokens": 5, "ignore_eos": True}
    assert all("usage" not in chunk for chunk in stream(llama, PATH, body))
    assert all("usage" not in chunk for chunk in stream(llama, PATH, {**body, "stream_options": {}}))
    *parts, last = stream(llama, PATH, {**body, "stream_options": {"include_usage": True}})
    assert all(part["usage"] is None and part["choices"] for part in parts)
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
    assert [bool(chunk.get("patchbay")) for chunk in (*parts, last)] == [True] + [False] * len(parts)


def test_what_fails_before_the_first_token_is_an_ordinary_error(llama: Served) -> None:
    asked = {"model": "math", "prompt": "the cat", "stream": True}
    assert_error(llama.post(PATH, {**asked, "model": "maht"}), 404, "not_found", "model")
    assert_error(llama.post(PATH, {**asked, "prompt": [96]}), 422, "invalid_input", "prompt")
    assert_error(llama.post(PATH, {**asked, "suffix": "x"}), 422, "unsupported_parameter", "suffix")
    assert_error(llama.post(PATH, {**asked, "timeout": 1e-9}), 504, "deadline_exceeded")
    assert_error(llama.post(PATH, {**asked, "stream_options": {"x": 1}}), 422, "invalid_request", "stream_options.x")
    options = {**asked, "stream": False, "stream_options": {"include_usage": True}}
    assert_error(llama.post(PATH, options), 422, "invalid_request", "stream_options")


def test_an_error_in_the_middle_is_the_last_event(llama: Served) -> None:
    with llama.client.stream("POST", PATH, json={**LONG, "stream": True}) as response:
        lines = response.iter_lines()
        assert parse(next(lines) + "\n\n")["choices"]
        with held(llama):
            llama.engine.stop()
        *before, last = [line for line in lines if line]
    assert response.status_code == 200 and f"{last}\n\n" != DONE
    assert all("choices" in json.loads(line.removeprefix("data: ")) for line in before)
    error = parse(f"{last}\n\n")["error"]
    assert (error["code"], error["type"], error["param"]) == ("shutting_down", "server_error", None)
    wait_until(lambda: not under_way(llama), "an empty engine")
    assert_error(llama.post(PATH, LONG), 503, "shutting_down")


def test_a_failure_of_ours_in_the_middle_is_told_without_its_words(
    llama: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with llama.client.stream("POST", PATH, json={**LONG, "logprobs": 1, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        with held(llama):
            monkeypatch.setattr("patchbay_server.answers.tokens.TokenTexts.show", None)
        last = [line for line in lines if line][-1]
    assert parse(f"{last}\n\n")["error"]["code"] == "internal_error" and "NoneType" not in last
    wait_until(lambda: not under_way(llama), "an empty engine")


def test_who_closes_a_stream_frees_the_engine(llama: Served) -> None:
    counts = llama.engine.language.generator.counts
    with llama.client.stream("POST", PATH, json={**LONG, "n": 4, "stream": True}) as response:
        lines = response.iter_lines()
        next(lines)
        with held(llama):
            assert under_way(llama) == 4
            response.close()
    wait_until(lambda: not under_way(llama), "an empty engine")
    assert counts.generated_tokens < 4 * 200
    ok(llama.post(PATH, {**LONG, "max_tokens": 2}))


async def leave(served: Served, body: dict[str, Any], *, after: int) -> list[Message]:
    """What the app says to a client that leaves once the app has said `after` things and the engine is at work."""
    sent: list[Message] = []
    inbox = [{"type": "http.request", "body": json.dumps(body).encode()}]

    async def receive() -> Message:
        if inbox:
            return inbox.pop()
        while len(sent) < after or not under_way(served):
            await anyio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
    with anyio.fail_after(30):
        await served.app(scope, receive, send)
    return sent


@pytest.mark.parametrize("streams", [False, True])
def test_who_leaves_before_the_first_token_frees_the_engine(llama: Served, streams: bool) -> None:
    with held(llama):
        anyio.run(lambda: leave(llama, {**LONG, "stream": streams}, after=0))
    wait_until(lambda: not under_way(llama), "an empty engine")
    assert llama.engine.language.generator.counts.generated_tokens <= 1  # by the step that was held


def test_who_leaves_a_stream_frees_the_engine(llama: Served) -> None:
    sent = anyio.run(lambda: leave(llama, {**LONG, "stream": True}, after=3))
    wait_until(lambda: not under_way(llama), "an empty engine")
    assert sent[0]["status"] == 200 and not any(DONE.encode() in message.get("body", b"") for message in sent)


def test_no_thread_waits_while_tokens_are_generated(llama: Served) -> None:
    with ThreadPoolExecutor(12) as pool:
        with held(llama):
            bodies = [{**LONG, "max_tokens": 3, "stream": bool(number % 2)} for number in range(12)]
            waiting = [pool.submit(llama.post, PATH, body) for body in bodies]
            wait_until(lambda: under_way(llama) == 12, "a full engine")
            wait_until(lambda: not llama.app.state.inference.limiter.statistics().borrowed_tokens, "a free thread")
        assert all(one.result(timeout=60).status_code == 200 for one in waiting)


@pytest.mark.parametrize("streams", [False, True])
def test_a_full_queue_says_when_to_come_back(llama: Served, streams: bool) -> None:
    scheduler = llama.engine.language.generator.scheduler
    scheduler.limits = replace(scheduler.limits, max_waiting=0)
    response = llama.post(PATH, {**LONG, "stream": streams})
    assert_error(response, 429, "queue_full")
    assert response.headers["retry-after"] == "1"


def test_fifty_streams_under_ten_recipes(llama: Served) -> None:
    """Each is what the same request is answered alone."""
    bodies = [
        {"model": model, "prompt": "the cat", "max_tokens": 8, "temperature": 1.5, "seed": seed}
        for seed in range(5)
        for model in RECIPES
    ]
    alone = [ok(llama.post(PATH, body))["choices"][0] for body in bodies]
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda body: events(llama.post(PATH, {**body, "stream": True})), bodies))
    assert [joined(chunks, 0) for chunks in found] == alone
    assert len({choice["text"] for choice in alone}) > 10
    assert [chunks[0]["model"] for chunks in found] == [body["model"] for body in bodies]
    assert ok(llama.post("/v1/base/verify"))["ok"]
