"""Who has been answered, whatever came of it, holds no delta in memory: also where Python looks for no cycles, as it
does on an idle server.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.service.held import before_pass, held
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.streaming import stream
from tests.waiting import until

PATH = "/v1/completions"
BODY = {"model": "math", "prompt": "the cat", "max_tokens": 4, "ignore_eos": True}
IMAGE = {"model": "math", "input": {"array": [[[0.1] * 16] * 16] * 3}}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps what is logged, and with it the tracebacks, which hold what their functions held
    yield
    logging.disable(logging.NOTSET)
    gc.enable()


def nothing_is_in_use(served: Served) -> None:
    """The engine and the event loop let go of a request a moment after it was answered."""
    pool = served.engine.recipes.deltas

    def thrown_out() -> bool:
        served.engine._forget_batches()
        for key in served.engine.recipes.plans.keys:
            served.engine.recipes.plans.discard(key)
        with pool._changed:
            pool._throw_out_idle(0)
        return not pool.alive_bytes

    until(thrown_out)


def too_long(served: Served) -> None:
    for prompt in ("the cat " * 3000, ["the cat", "dog " * 3000]):
        answer = served.post(PATH, {**BODY, "prompt": prompt})
        assert answer.status_code == 422, answer.text


def late(served: Served) -> None:
    with before_pass(served, lambda: time.sleep(0.02)):
        asked = {**BODY, "max_tokens": 100, "timeout": 0.1}
        assert_error(served.post(PATH, asked), 504, "deadline_exceeded")


def wrong(served: Served) -> None:
    assert_error(
        served.post(PATH, {**BODY, "model": "math", "path": "decoupled", "suffix": "x"}),
        422,
        "unsupported_parameter",
        "suffix",
    )
    assert_error(
        served.post(PATH, {**BODY, "model": "math", "echo": True, "prompt": [96]}), 422, "invalid_input", "prompt"
    )


def failing(served: Served) -> None:
    def fail() -> None:
        raise RuntimeError("a model that fails")

    with before_pass(served, fail):
        assert served.post(PATH, BODY).status_code == 500


def refused(served: Served) -> None:
    with ThreadPoolExecutor(8) as pool, held(served) as gate:
        first = pool.submit(served.post, PATH, BODY)
        assert gate.entered.wait(60)
        second = pool.submit(served.post, PATH, BODY)
        until(lambda: len(served.engine.language.generator.scheduler.waiting) == 1)
        assert_error(served.post(PATH, {**BODY, "model": "code"}), 429, "queue_full")
        gate.opened.set()
        ok(first.result(60))
        ok(second.result(60))


def answered(served: Served) -> None:
    ok(served.post(PATH, {**BODY, "n": 3, "prompt": ["the cat", "a dog"]}))
    ok(served.post(PATH, {**BODY, "model": "0.5*math + 0.5*code", "logprobs": 2, "echo": True}))


def streamed(served: Served) -> None:
    assert stream(served, PATH, {**BODY, "n": 2})


WAYS: tuple[Callable[[Served], None], ...] = (answered, streamed, too_long, late, wrong, failing, refused)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_texts(serve: Serve, delta_file: Callable[..., Path], way: Callable[[Served], None]) -> None:
    llama = serve("llama", max_running=1, max_waiting=8 if way is answered else 1 + (way is streamed))
    for number, name in enumerate(("math", "code"), 1):
        llama.upload(name, delta_file("llama", number))
    way(llama)
    assert llama.engine.recipes.deltas.misses
    nothing_is_in_use(llama)


def too_small(served: Served) -> None:
    assert_error(served.post("/v1/classify", {**IMAGE, "input": {"array": [[1.0]]}}), 422, "invalid_input", "input")


def classified(served: Served) -> None:
    ok(served.post("/v1/classify", IMAGE))
    ok(served.post("/v1/classify", {**IMAGE, "model": "ties(math, code)"}))


@pytest.mark.parametrize("way", [classified, too_small], ids=lambda way: way.__name__)
def test_inputs_of_an_encoder(vit: Served, way: Callable[[Served], None]) -> None:
    way(vit)
    assert vit.engine.recipes.deltas.misses
    nothing_is_in_use(vit)
