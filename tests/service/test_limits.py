"""What tenants may use: requests, tokens and jobs, by the meter alone and over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from httpx2 import Response
from hypothesis import given
from hypothesis import strategies as st
from tests.service.held import held
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.tenants import OPERATOR, Tenant, tenant
from tests.waiting import until

from patchbay.store.tenants import Limits
from patchbay_server.limits import WINDOW_S, LimitReached, Meter, OverLimit

T = "acme"
IMAGE = {"array": [[[0.1] * 16] * 16] * 3}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def take(meter: Meter, most: int, tokens: int) -> bool:
    try:
        meter.take(T, Limits(tokens_per_minute=most), tokens)
    except (LimitReached, OverLimit):
        return False
    return True


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(0, 60)), max_size=40))
def test_no_sixty_seconds_have_more_tokens_than_the_limit(asked: list[tuple[float, int]]) -> None:
    clock = Clock()
    meter, taken = Meter(clock), []
    for pause, tokens in asked:
        clock.now += pause
        before = sum(each for at, each in taken if at > clock.now - WINDOW_S)
        assert take(meter, 100, tokens) == (before + tokens <= 100), "neither too many nor too few"
        if before + tokens <= 100:
            taken.append((clock.now, tokens))


def test_after_the_seconds_it_says_there_is_room() -> None:
    clock = Clock()
    meter = Meter(clock)
    for tokens in (30, 40, 20):
        assert take(meter, 100, tokens)
        clock.now += 10
    with pytest.raises(LimitReached, match="100 tokens a minute, of which 10 are left, and this") as refused:
        meter.take(T, Limits(tokens_per_minute=100), 50)
    assert refused.value.headers == {
        "Retry-After": "40",  # when 30 and 40 are a minute old
        "RateLimit-Policy": '"tokens_per_minute";q=100;w=60',
        "RateLimit": '"tokens_per_minute";r=10;t=40',
    }
    clock.now += 39
    assert not take(meter, 100, 50)
    clock.now += 1
    assert take(meter, 100, 50)


def test_what_was_not_used_is_given_back() -> None:
    meter, limits = Meter(Clock()), Limits(tokens_per_minute=100)
    taken = meter.take(T, limits, 90)
    meter.settle(taken, 20)
    meter.settle(taken, 95)
    assert take(meter, 100, 80) and not take(meter, 100, 1)


def test_a_request_that_could_never_pass_says_so() -> None:
    with pytest.raises(OverLimit, match="100 tokens a minute, and this request alone may take 101"):
        Meter().take(T, Limits(tokens_per_minute=100), 101)
    assert take(Meter(), 100, 100)


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_for_more_than_a_minute_has_is_not_told_to_wait(serve: Serve, stream: bool) -> None:
    served = serve("llama", api_key=OPERATOR)
    acme = limited(served, tokens_per_minute=40)
    refusal = acme.post("/v1/completions", text(37, stream=stream))
    assert "41" in assert_error(refusal, 422, "over_limit", "tokens_per_minute")
    assert "retry-after" not in refusal.headers and refusal.headers["ratelimit"] == '"tokens_per_minute";r=40'
    assert acme.post("/v1/completions", text(36, stream=stream)).status_code == 200


def test_many_threads_take_no_more_than_there_is() -> None:
    meter = Meter()
    with ThreadPoolExecutor(16) as threads:
        assert sum(threads.map(lambda _: take(meter, 100, 3), range(200))) == 33


def test_a_meter_forgets_who_is_idle() -> None:
    meter = Meter()
    meter.enter(T, Limits())
    meter.leave(T)
    assert not meter._uses


def limited(served: Served, name: str = T, **limits: int) -> Tenant:
    served.hub.catalog.tenants.set_limits(name, Limits(**limits))
    return tenant(served, name)


def refused(response: Response, param: str) -> Response:
    assert_error(response, 429, "limit_reached", param)
    name = re.escape(param.removeprefix("max_"))
    assert int(response.headers["retry-after"]) >= 1
    assert re.fullmatch(rf'"{name}";q=\d+;(w=60|qu="[a-z-]+")', response.headers["ratelimit-policy"])
    assert re.fullmatch(rf'"{name}";r=\d+;t=\d+', response.headers["ratelimit"])
    return response


def test_requests_under_way_at_a_time(serve: Serve) -> None:
    served = serve("llama", api_key=OPERATOR)
    acme, bolt = limited(served, max_requests=2), tenant(served, "bolt")
    body = {"model": "base", "prompt": "the cat", "max_tokens": 2}
    with ThreadPoolExecutor(2) as pool, held(served) as gate:
        asked = [pool.submit(acme.post, "/v1/completions", body) for _ in range(2)]
        assert gate.entered.wait(60)
        until(lambda: served.app.state.meter._uses[T].requests == 2)
        assert "r=0" in refused(acme.get("/v1/models"), "max_requests").headers["ratelimit"]
        ok(bolt.get("/v1/models"))
        gate.opened.set()
        assert [future.result(60).status_code for future in asked] == [200, 200]
    ok(acme.get("/v1/models"))


def test_every_answer_says_what_is_left(serve: Serve) -> None:
    served = serve("llama", api_key=OPERATOR)
    acme = limited(served, max_requests=3, tokens_per_minute=40)
    before = acme.get("/v1/models").headers
    assert before["ratelimit-policy"] == '"requests";q=3;qu="concurrent-requests", "tokens_per_minute";q=40;w=60'
    assert before["ratelimit"] == '"requests";r=3, "tokens_per_minute";r=40'
    asked = acme.post("/v1/completions", text(12))
    assert re.fullmatch(r'"requests";r=3, "tokens_per_minute";r=24;t=(59|60)', asked.headers["ratelimit"])
    streamed = acme.post("/v1/completions", text(12, stream=True))
    assert re.fullmatch(r'"requests";r=3, "tokens_per_minute";r=8;t=\d\d', streamed.headers["ratelimit"])
    assert acme.get("/v1/models/nothing").headers["ratelimit"].startswith('"requests";r=3, "tokens_per_minute";r=8')
    refused(acme.post("/v1/completions", text(12)), "tokens_per_minute")
    assert "ratelimit" not in tenant(served, "bolt").get("/v1/models").headers


def test_what_is_left_comes_back_when_the_oldest_is_a_minute_old() -> None:
    clock = Clock()
    meter, limits = Meter(clock), Limits(tokens_per_minute=100)
    meter.take(T, limits, 30)
    clock.now += 10.5
    meter.take(T, limits, 60)
    [quota] = meter.quotas(T, limits)
    assert (quota.left, quota.reset_s) == (10, 50)
    clock.now += 50
    [quota] = meter.quotas(T, limits)
    assert (quota.left, quota.reset_s) == (40, 10)
    [lowered] = meter.quotas(T, Limits(tokens_per_minute=5))
    assert lowered.left == 0
    clock.now += WINDOW_S
    [quota] = meter.quotas(T, limits)
    assert (quota.left, quota.reset_s) == (100, None)


def text(tokens: int, **more: object) -> dict[str, Any]:
    """A prompt of four tokens, and an answer of as many as are asked for."""
    return {"model": "base", "prompt": [5, 6, 7, 8], "max_tokens": tokens, "ignore_eos": True, **more}


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_a_minute_of_texts(serve: Serve, stream: bool) -> None:
    served = serve("llama", api_key=OPERATOR)
    acme = limited(served, tokens_per_minute=40)
    assert acme.post("/v1/completions", text(12, n=2, stream=stream)).status_code == 200  # 28
    refused(acme.post("/v1/completions", text(9)), "tokens_per_minute")
    assert acme.post("/v1/completions", text(8)).status_code == 200
    refused(acme.post("/v1/completions", text(1)), "tokens_per_minute")
    assert tenant(served, "bolt").post("/v1/completions", text(20)).status_code == 200


def test_tokens_that_an_answer_did_not_need_are_given_back(serve: Serve) -> None:
    served = serve("llama", api_key=OPERATOR)
    acme = limited(served, tokens_per_minute=40)
    biased = {"logit_bias": {"9": 100}, "stop_token_ids": [9], "temperature": 0}
    for number in range(1, 5):  # four of the prompt and the one that ends it
        answer = acme.post("/v1/completions", text(20, **biased))
        assert ok(answer) and f'"tokens_per_minute";r={40 - 5 * number};t=' in answer.headers["ratelimit"]
    refused(acme.post("/v1/completions", text(20)), "tokens_per_minute")
    assert_error(acme.post("/v1/completions", {**text(5), "prompt": ""}), 422, "invalid_input", "prompt")
    ok(acme.post("/v1/completions", text(16)))


def test_tokens_of_what_is_embedded(serve: Serve) -> None:
    served = serve("bert_encoder", api_key=OPERATOR)
    count = ok(tenant(served, "bolt").post("/v1/embeddings", {"model": "base", "input": "the cat"}))["usage"]
    acme = limited(served, tokens_per_minute=2 * count["total_tokens"])
    ok(acme.post("/v1/embeddings", {"model": "base", "input": ["the cat", "the cat"]}))
    refused(acme.post("/v1/embeddings", {"model": "base", "input": "the"}), "tokens_per_minute")


def test_jobs_queued_or_running(serve: Serve, delta_file: Callable[..., Path]) -> None:
    served = serve("vit", api_key=OPERATOR)
    acme = limited(served, max_jobs=2)
    acme.upload("math", delta_file("vit").read_bytes())
    digest = f"sha256:{sha256(b'words').hexdigest()}"
    ok(acme.ask("PUT", f"/v1/blobs/{digest}", content=b"words"), 201)
    sweep = {"model": "math", "scales": [1.0], "calibration": digest}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: acme.post("/v1/transfers", sweep), range(8)))
    made = [ok(answer, 202)["id"] for answer in answers if answer.status_code == 202]
    assert len(made) == 2 and all(refused(a, "max_jobs") for a in answers if a.status_code != 202)
    ok(acme.ask("DELETE", f"/v1/jobs/{made[0]}"))
    ok(acme.post("/v1/transfers", sweep), 202)


def test_bytes_and_versions_that_are_stored(serve: Serve, delta_file: Callable[..., Path]) -> None:
    served = serve("vit", api_key=OPERATOR)
    data = [delta_file("vit", seed).read_bytes() for seed in (1, 2)]
    acme = limited(served, max_bytes=len(data[0]) + 10, max_deltas=5)
    acme.upload("math", data[0])
    before = served.files()
    over = acme.ask("POST", "/v1/deltas", params={"name": "code"}, content=data[1])
    assert_error(over, 403, "quota_exceeded", "max_bytes")
    words = b"eleven bytes"
    blob = f"/v1/blobs/sha256:{sha256(words).hexdigest()}"
    assert_error(acme.ask("PUT", blob, content=words), 403, "quota_exceeded", "max_bytes")
    assert served.files() == before, "nothing is left behind"
    again = acme.ask("POST", "/v1/deltas", params={"name": "math"}, content=data[0])
    assert again.status_code == 200
    ok(acme.ask("DELETE", "/v1/deltas/math"))
    acme.upload("math", data[0])


def test_limits_that_change_hold_from_the_next_second_on(serve: Serve) -> None:
    served = serve("vit", api_key=OPERATOR)
    acme = limited(served)
    ok(acme.get("/v1/models"))
    served.hub.catalog.tenants.set_limits(T, Limits(max_requests=0))
    until(lambda: acme.get("/v1/models").status_code == 429)
    served.hub.catalog.tenants.set_limits("default", Limits(max_requests=0))
    operator = Tenant(served, "default", OPERATOR)
    until(lambda: operator.get("/v1/models").status_code == 429)
    assert served.get("/healthz").status_code == 200
