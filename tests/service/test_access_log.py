from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.service.held import before_pass
from tests.service.logged import Kept, logged
from tests.service.serving import Served, assert_error, ok, serving
from tests.service.streaming import events

from patchbay.backbone import Backbone

KEY = "a-key-of-twenty-signs"
IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
GOOD = ["a", "7", "req-1", "0af7651916cd43dd8448eb211c80319c", "A.b_c-D", "x" * 128]
BAD = ["", " ", "-a", ".a", "two words", "x" * 129, "a\tb", "a/b", "ä", "<script>"]


@pytest.fixture
def log() -> Iterator[Kept]:
    with logged() as kept:
        yield kept


@pytest.mark.parametrize("given", GOOD)
def test_a_well_formed_id_is_kept(vit: Served, log: Kept, given: str) -> None:
    assert vit.get("/v1/models", headers={"x-request-id": given}).headers["x-request-id"] == given
    assert log.requests[-1]["request_id"] == given


@pytest.mark.parametrize("given", BAD)
def test_any_other_is_replaced(vit: Served, log: Kept, given: str) -> None:
    made = vit.get("/v1/models", headers={"x-request-id": given.encode()}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", made) and log.requests[-1]["request_id"] == made
    assert vit.get("/v1/models").headers["x-request-id"] != made


def test_every_answer_has_one(backbone: Callable[[str], Backbone], tmp_path: Path, log: Kept) -> None:
    with serving(backbone("vit"), tmp_path, api_key=KEY, max_body_bytes=2000) as vit:
        key = {"authorization": f"Bearer {KEY}"}
        vit.hub.catalog.save_merge("default", "broken", "no JSON")
        answers = {
            401: vit.get("/v1/models"),
            404: vit.get("/v1/nowhere", headers=key),
            405: vit.client.patch("/v1/models", headers=key),
            413: vit.client.post("/v1/classify", content=b" " * 2001, headers=key),
            422: vit.client.post("/v1/classify", content=b"{", headers=key | {"content-type": "application/json"}),
            500: vit.get("/v1/merges/broken", headers=key),
        }
    codes = ["unauthorized", "unknown_route", "method_not_allowed", "body_too_large", "invalid_request"]
    for (status, answer), code, line in zip(answers.items(), [*codes, "internal_error"], log.requests, strict=True):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (line["status"], line["code"]) == (status, code)
        assert line["request_id"] == answer.headers["x-request-id"]
    [failed] = [line for line in log.lines if line["message"] == "a request failed"]
    assert failed["request_id"] == answers[500].headers["x-request-id"] and failed["exception"] == "JSONDecodeError"


def test_what_is_said_of_a_request(llama: Served, log: Kept) -> None:
    body = {"model": "0.5*math", "prompt": "the cat", "max_tokens": 3, "ignore_eos": True}
    ok(llama.post("/v1/completions", body))
    line = log.requests[-1]
    assert line["ms"] > 0 and line["time"].endswith("Z")
    del line["ms"], line["time"], line["request_id"]
    assert line == {
        "level": "info",
        "logger": "patchbay_server.access",
        "message": "request",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "model": "math",
        "path": "decoupled",
        "prompt_tokens": 2,
        "completion_tokens": 3,
    }


def test_a_stream_is_over_with_its_last_token(llama: Served, log: Kept) -> None:
    body = {"model": "math - code", "prompt": "the cat", "max_tokens": 5, "ignore_eos": True, "stream": True}
    events(llama.post("/v1/completions", body))
    [line] = [line for line in log.requests if line["route"] == "/v1/completions"]
    assert (line["model"], line["completion_tokens"], line["status"]) == ("merge", 5, 200) and "code" not in line


def test_a_stream_that_fails_has_a_status_that_lies_and_a_code_that_does_not(llama: Served, log: Kept) -> None:
    passes = iter(range(100))

    def fail_later() -> None:
        if next(passes) == 2:
            raise RuntimeError("inside the model")

    body = {"model": "math", "prompt": "the cat", "max_tokens": 9, "ignore_eos": True, "stream": True}
    with before_pass(llama, fail_later):
        assert '"backbone_error"' in llama.post("/v1/completions", body).text
    line = log.requests[-1]
    assert (line["status"], line["code"], line["completion_tokens"]) == (200, "backbone_error", 2)
    assert not any("inside the model" in text for text in log.texts)


def test_other_inferences(vit: Served, encoder: Served, log: Kept) -> None:
    ok(vit.post("/v1/classify", {"model": "code", "input": IMAGE, "path": "patched"}))
    said: dict[str, Any] = log.requests[-1]
    assert (said["model"], said["path"]) == ("code", "patched") and "prompt_tokens" not in said
    usage = ok(encoder.post("/v1/embeddings", {"model": "base", "input": ["the cat", "dog"]}))["usage"]
    assert log.requests[-1]["prompt_tokens"] == usage["prompt_tokens"]
    assert_error(vit.post("/v1/classify", {"model": "nope", "input": IMAGE}), 404, "not_found", "model")
    assert log.requests[-1]["code"] == "not_found" and "model" not in log.requests[-1]


def test_probes_are_lines_of_debug(vit: Served, log: Kept) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/models"):
        ok_status = vit.get(path).status_code
        assert ok_status == 200
    assert [line["level"] for line in log.requests[-4:]] == ["debug", "debug", "debug", "info"]


def test_names_in_paths_and_queries_are_no_part_of_a_line(vit: Served, log: Kept) -> None:
    vit.get("/v1/deltas/secret-name")
    vit.get("/secret-path/x?secret-key=secret-value")
    vit.send("secret-name", b"x")
    assert not any("secret" in text for text in log.texts)
    assert [line["route"] for line in log.requests[-3:]] == ["/v1/deltas/{delta}", "unknown", "/v1/deltas"]
