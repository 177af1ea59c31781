"""Deltas that stay in memory, and requests that outlive theirs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.service.held import held
from tests.service.serving import Serve, Served, assert_error, ok

from patchbay_server.residents import resident

IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
TEXT = {"prompt": "the cat", "max_tokens": 6, "temperature": 0}
Files = Callable[..., Path]


def pinned(served: Served, delta: str) -> bool:
    shown: bool = ok(served.get(f"/v1/deltas/{delta}"))["pinned"]
    return shown


@pytest.fixture
def narrow(serve: Serve, delta_file: Files, vit: Served) -> Served:
    """Room for the larger of two deltas and a half."""
    vit.classify("math", IMAGE)
    vit.classify("code", IMAGE)
    recipes = vit.engine.recipes
    room = recipes.deltas.num_bytes * 3 // 4
    served = serve("vit", delta_cache_bytes=room)
    for seed, name in enumerate(("math", "code", "law"), 1):
        served.upload(name, delta_file("vit", seed))
    return served


def test_a_pinned_delta_is_loaded_and_stays(narrow: Served) -> None:
    assert not pinned(narrow, "math")
    record = ok(narrow.post("/v1/deltas/math/pin"))
    assert record["pinned"] and record == ok(narrow.get("/v1/deltas"))["data"][2] and pinned(narrow, "math@1")
    pool = narrow.engine.recipes.deltas
    assert record["resident_bytes"] == pool.peek(resident("default", record["digest"])).num_bytes == pool.pinned_bytes
    assert ok(narrow.get("/v1/deltas/code"))["resident_bytes"] is None
    for name in ("code", "law", "code"):
        narrow.classify(name, IMAGE)
    misses = pool.misses
    narrow.classify("math", IMAGE)
    assert pool.misses == misses


def test_what_is_unpinned_leaves_like_any_other(narrow: Served) -> None:
    digest = ok(narrow.post("/v1/deltas/math/pin"))["digest"]
    assert ok(narrow.post("/v1/deltas/math@1/unpin"))["pinned"] is False
    assert ok(narrow.post("/v1/deltas/math/unpin"))["pinned"] is False, "and again"
    for name in ("code", "law"):
        narrow.classify(name, IMAGE)
    assert narrow.engine.recipes.deltas.peek(resident("default", digest)) is None


def test_pins_over_the_budget_are_refused(narrow: Served) -> None:
    ok(narrow.post("/v1/deltas/math/pin"))
    message = assert_error(narrow.post("/v1/deltas/code/pin"), 409, "cache_full")
    assert f"{narrow.engine.recipes.deltas.max_bytes:,}" in message and "--delta-cache-bytes" in message
    assert not pinned(narrow, "code") and pinned(narrow, "math")
    narrow.classify("code", IMAGE)


def test_what_is_not_there_cannot_be_pinned(vit: Served) -> None:
    for verb in ("pin", "unpin"):
        assert_error(vit.post(f"/v1/deltas/nope/{verb}"), 404, "not_found", "name")
        assert_error(vit.post(f"/v1/deltas/math@7/{verb}"), 404, "not_found", "version")


def test_a_deleted_delta_is_pinned_no_more(vit: Served, delta_file: Files) -> None:
    """Unless another name has the same bytes."""
    vit.upload("twin", delta_file("vit", 1))
    digest = ok(vit.post("/v1/deltas/math/pin"))["digest"]
    ok(vit.delete("/v1/deltas/math"))
    assert pinned(vit, "twin")
    assert ok(vit.delete("/v1/deltas/twin"))["deleted"][0]["pinned"], "as it was"
    assert not vit.engine.recipes.is_pinned(resident("default", digest)) and vit.engine.recipes.deltas.pinned_bytes == 0


def replace(served: Served, delta_file: Files) -> None:
    served.upload("math", delta_file("llama", 3))


def delete(served: Served, delta_file: Files) -> None:
    ok(served.delete("/v1/deltas/math"))


@pytest.mark.parametrize("change", [replace, delete])
@pytest.mark.parametrize("path", ["decoupled", "patched"])
def test_a_request_under_way_keeps_its_delta(
    llama: Served, delta_file: Files, change: Callable[[Served, Files], None], path: str
) -> None:
    def ask() -> Any:
        return llama.post("/v1/completions", {"model": "math", "path": path, **TEXT})

    alone = ok(ask())
    digest = ok(llama.post("/v1/deltas/math/pin"))["digest"]
    with ThreadPoolExecutor(1) as pool, held(llama) as gate:
        asked = pool.submit(ask)
        assert gate.entered.wait(60)
        change(llama, delta_file)
        llama.engine.recipes.unpin(resident("default", digest))
        for cache in (llama.engine.recipes.deltas, llama.engine.recipes.plans):
            cache.get("other", lambda size=cache.max_bytes: Large(size))  # type: ignore[misc, arg-type]
            assert cache.peek(resident("default", digest)) is None
        gate.opened.set()
        answer = ok(asked.result(60))
    assert answer["choices"] == alone["choices"] and answer["patchbay"]["deltas"][0]["digest"] == digest


class Large:
    def __init__(self, size: int) -> None:
        self.num_bytes = size
