from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock

import pytest
import torch
from tests.service.held import before_pass, held
from tests.service.serving import Serve, Served, assert_error, ok
from tests.waiting import until

from patchbay.store import SqliteCatalog

DIES = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


def test_alive_and_ready(vit: Served) -> None:
    assert ok(vit.get("/healthz")) == {"status": "ok"}
    assert ok(vit.get("/readyz")) == {"status": "ready", "path": "decoupled", "catalog": "answers"}


def test_a_model_whose_proof_failed_is_patched(vit: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vit.engine, "proof", replace(vit.engine.proof, ok=False, reason="it is odd"))
    assert ok(vit.get("/readyz"))["path"] == "patched"
    execution = ok(vit.get("/v1/base"))["execution"]
    assert (execution["decoupled"], execution["reason"]) == (False, "it is odd")


def kill_once(lock: Lock | None = None) -> Callable[[], None]:
    """What a hook does that ends its thread; with `lock` the next one cannot start before that is released."""
    left = [True]

    def kill() -> None:
        if left.pop() if left else False:
            if lock is not None:
                lock.acquire()
            raise SystemExit

    return kill


@DIES
@pytest.mark.parametrize("path", ["decoupled", "patched"])
def test_a_dead_engine_says_so_and_comes_back(llama: Served, path: str) -> None:
    generator = llama.engine.language.generator
    lock = generator._lock
    body = {"model": "math", "prompt": "the cat", "max_tokens": 4, "temperature": 0, "path": path}
    before = ok(llama.post("/v1/completions", body))["choices"]
    with ThreadPoolExecutor(1) as pool, before_pass(llama, kill_once(lock)):
        dying = pool.submit(llama.post, "/v1/completions", body)
        until(lambda: not llama.engine.language.loop.is_alive)
        try:
            assert "started again" in assert_error(llama.get("/readyz"), 503, "engine_failed")
            assert ok(llama.get("/healthz")) == {"status": "ok"}
        finally:
            lock.release()
        assert "ask again" in assert_error(dying.result(60), 503, "engine_failed")
    until(lambda: llama.get("/readyz").status_code == 200)
    assert ok(llama.post("/v1/completions", body))["choices"] == before
    assert ok(llama.post("/v1/base/verify"))["ok"] and llama.engine.language.memory.used_tokens == 0
    assert llama.engine.language.loop.restarts == 1


@DIES
def test_all_who_wait_for_an_engine_that_dies_are_told(llama: Served) -> None:
    body = {"model": "math", "prompt": "the cat", "max_tokens": 4, "ignore_eos": True}
    with ThreadPoolExecutor(3) as pool, held(llama) as gate:
        first = pool.submit(llama.post, "/v1/completions", body)
        assert gate.entered.wait(60)
        others = [pool.submit(llama.post, "/v1/completions", {**body, "model": m}) for m in ("base", "0.5*code")]
        until(lambda: len(llama.engine.language.generator.scheduler.waiting) == 2)
        with before_pass(llama, kill_once()):
            gate.opened.set()
            for asked in (first, *others):
                assert_error(asked.result(60), 503, "engine_failed")
    ok(llama.post("/v1/completions", body))


def test_not_ready_without_a_catalog(vit: Served) -> None:
    vit.hub.catalog.close()
    assert_error(vit.get("/readyz"), 503, "store_unavailable")
    assert ok(vit.get("/healthz")) == {"status": "ok"}


def test_a_catalog_that_hangs_is_not_ready(vit: Served) -> None:
    catalog = vit.hub.catalog
    assert isinstance(catalog, SqliteCatalog)
    with catalog._lock:  # another thread's call that does not come back
        assert "two seconds" in assert_error(vit.get("/readyz"), 503, "store_unavailable")
        assert ok(vit.get("/healthz")) == {"status": "ok"}
    assert ok(vit.get("/readyz"))["status"] == "ready"


def test_the_base(vit: Served) -> None:
    vit.classify("math", {"array": [[[0.1] * 16] * 16] * 3})
    backbone = vit.backbone
    assert ok(vit.get("/v1/base")) == {
        "name": backbone.name,
        "task": "image-classification",
        "fingerprint": backbone.fingerprint,
        "resident_digest": backbone.resident_digest,
        "device": "cpu",
        "dtype": "float32",
        "num_parameters": backbone.num_parameters,
        "resident_bytes": backbone.num_bytes,
        "labels": ["cat", "dog", "owl"],
        "cached_deltas": {"count": 1, "bytes": vit.engine.recipes.deltas.num_bytes},
        "execution": {
            "decoupled": True,
            "error": vit.engine.proof.error,
            "reason": None,
            "break_even_bytes": vit.engine.recipes.break_even_bytes,
            "layers": dict(vit.engine.proof.layers),
            "continuous_batching": None,
            "not_continuous_reason": None,
            "kv": None,
        },
    }


def test_the_execution_of_a_language_model(llama: Served, serve: Serve) -> None:
    execution = ok(llama.get("/v1/base"))["execution"]
    budget = llama.engine.language.memory.budget_tokens
    assert execution["layers"] and 0 <= execution["error"] < 1e-3
    assert (execution["continuous_batching"], execution["not_continuous_reason"]) == (True, None)
    assert execution["kv"] == {"bytes": 0, "budget_tokens": budget, "used_tokens": 0}
    with ThreadPoolExecutor(1) as pool, held(llama) as gate:
        pool.submit(llama.post, "/v1/completions", {"model": "math", "prompt": "the cat"})
        assert gate.entered.wait(60)
        kv = ok(llama.get("/v1/base"))["execution"]["kv"]
        assert kv["used_tokens"] == 64 and kv["bytes"] > 0, "a row of the shortest shelf"
    execution = ok(serve("t5").get("/v1/base"))["execution"]
    assert execution["continuous_batching"] is False and "decoder" in execution["not_continuous_reason"]
    assert execution["kv"]["bytes"] is None and execution["kv"]["used_tokens"] == 0


def test_verify_finds_one_bit(vit: Served) -> None:
    backbone = vit.backbone
    answer = {"fingerprint": backbone.fingerprint, "resident_digest": backbone.resident_digest}
    assert ok(vit.post("/v1/base/verify")) == {"ok": True, **answer}
    bits = backbone.tensor("classifier.bias").view(-1).view(torch.int32)
    bits[0] ^= 1
    try:
        changed = ok(vit.post("/v1/base/verify"))
        assert changed["ok"] is False and changed["resident_digest"] != backbone.resident_digest
    finally:
        bits[0] ^= 1
    assert ok(vit.post("/v1/base/verify"))["ok"] is True
