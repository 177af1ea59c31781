from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.service.held import before_pass, held
from tests.service.serving import Serve, Served, assert_error, ok, serving
from tests.waiting import until

import patchbay
from patchbay.backbone import Backbone
from patchbay_server.jobs.base import State, lease_of

IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(served: Served) -> Samples:
    response = served.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, frozenset(labels.items())), 0)


def ask(served: Served, model: str, **more: object) -> None:
    served.post("/v1/classify", {"model": model, "input": IMAGE, **more})


def test_labels_never_carry_an_expression(vit: Served) -> None:
    ok(vit.post("/v1/merges", {"name": "both", "recipe": "math + code"}), 201)
    expressions = ["0.5*math", "math@1", "0.25*math + code", "linear(math, code)", "math - code"]
    for model in ("base", vit.backbone.name, "math", "both", *expressions, "nope", "math +"):
        ask(vit, model)
    ask(vit, "base", patch={"terms": [{"delta": "math"}]})
    found = samples(vit)
    labels = {dict(key)["model"] for name, key in found if name == "patchbay_inferences_total"}
    assert labels == {"base", "math", "both", "merge"}
    assert value(found, "patchbay_inferences_total", tenant="default", model="base", path="base") == 2
    assert value(found, "patchbay_inferences_total", tenant="default", model="math", path="decoupled") == 3
    assert value(found, "patchbay_inferences_total", tenant="default", model="merge", path="decoupled") == 4
    assert value(found, "patchbay_inferences_total", tenant="default", model="both", path="decoupled") == 1


def test_the_series_of_what_is_deleted_go(vit: Served) -> None:
    ok(vit.post("/v1/merges", {"name": "both", "recipe": "0.5*code"}), 201)
    vit.upload("math", vit.hub.open_blob(ok(vit.get("/v1/deltas/code"))["digest"]))
    for model in ("math", "code", "both"):
        ask(vit, model)

    def shown() -> set[str]:
        return {dict(key)["model"] for name, key in samples(vit) if name == "patchbay_inferences_total"}

    assert shown() == {"math", "code", "both"}
    ok(vit.delete("/v1/deltas/math@1"))
    assert shown() == {"math", "code", "both"}, "another version is there"
    ok(vit.delete("/v1/deltas/math"))
    assert shown() == {"code", "both"}
    ok(vit.delete("/v1/merges/both"))
    assert shown() == {"code"}


def test_forward_passes_of_an_encoder(vit: Served) -> None:
    for model, path in (("math + code", None), ("math", "patched"), ("base", None)):
        ask(vit, model, path=path)
    found = samples(vit)
    assert value(found, "patchbay_steps_total", path="decoupled") == 2
    assert value(found, "patchbay_steps_total", path="patched") == 1
    assert value(found, "patchbay_step_sequences_sum") == 3
    assert value(found, "patchbay_step_deltas_sum") == 3


def test_requests_are_counted_by_route_and_never_by_name(vit: Served) -> None:
    vit.get("/v1/deltas/math")
    vit.get("/v1/deltas/secret-name")
    vit.get("/secret-path")
    ask(vit, "math")
    found = samples(vit)
    count = "patchbay_http_requests_total"
    assert value(found, count, route="/v1/deltas/{delta}", method="GET", status="200") == 1
    assert value(found, count, route="/v1/deltas/{delta}", method="GET", status="404") == 1
    assert value(found, count, route="unknown", method="GET", status="404") == 1
    assert value(found, count, route="/v1/classify", method="POST", status="200") == 1
    assert value(found, "patchbay_http_request_seconds_count", route="/v1/deltas/{delta}", method="GET") == 2
    assert not any("secret" in text for _, labels in found for _, text in labels)


def test_uploads_are_counted_once(vit: Served, delta_file: Callable[..., Path]) -> None:
    sizes = [ok(vit.get(f"/v1/deltas/{name}"))["size"] for name in ("math", "code")]
    assert value(samples(vit), "patchbay_upload_bytes_total") == sum(sizes)
    ok(vit.send("math", delta_file("vit", 1)))
    assert_error(vit.send("bad", b"x"), 422, "malformed_delta", "file")
    assert value(samples(vit), "patchbay_upload_bytes_total") == sum(sizes)


def test_caches(vit: Served) -> None:
    for model in ("math", "math", "0.5*math", "code"):
        ask(vit, model)
    found = samples(vit)
    assert value(found, "patchbay_delta_cache_entries") == 2
    assert value(found, "patchbay_delta_cache_misses_total") == 2
    assert value(found, "patchbay_delta_cache_hits_total") == 2
    assert value(found, "patchbay_plan_cache_entries") == 3
    assert value(found, "patchbay_plan_cache_misses_total") == 3
    assert value(found, "patchbay_plan_cache_hits_total") == 1
    assert value(found, "patchbay_delta_cache_bytes") == vit.engine.recipes.deltas.num_bytes > 0
    assert value(found, "patchbay_plan_cache_bytes") == vit.engine.recipes.plans.num_bytes > 0
    assert value(found, "patchbay_resident_bytes") == vit.backbone.num_bytes
    assert value(found, "patchbay_plan_build_seconds_count", method="task_arithmetic") == 3
    assert value(found, "patchbay_pinned_delta_bytes") == 0
    ok(vit.post("/v1/deltas/math/pin"))
    assert value(samples(vit), "patchbay_pinned_delta_bytes") == vit.engine.recipes.deltas.pinned_bytes > 0


def complete(served: Served, model: str = "math", **more: object) -> Any:
    return served.post("/v1/completions", {"model": model, "prompt": "the cat", "temperature": 0, **more})


def after(served: Served, count: int) -> Samples:
    """The metrics once so many texts are over: the engine says so a moment after the answer."""
    name = served.backbone.name
    until(lambda: value(samples(served), "vllm:e2e_request_latency_seconds_count", model_name=name) == count)
    return samples(served)


def test_tokens_and_times(llama: Served) -> None:
    usages = [ok(complete(llama, model, max_tokens=5))["usage"] for model in ("base", "math", "0.5*math", "base")]
    found, name = after(llama, 4), llama.backbone.name
    answered = sum(usage["completion_tokens"] for usage in usages)
    assert value(found, "vllm:generation_tokens_total", model_name=name) == answered
    assert value(found, "vllm:prompt_tokens_total", model_name=name) == sum(u["prompt_tokens"] for u in usages)
    assert value(found, "vllm:time_to_first_token_seconds_count", model_name=name) == 4
    assert value(found, "vllm:inter_token_latency_seconds_count", model_name=name) == answered - 4
    first, each, whole = (
        value(found, f"vllm:{what}_seconds_sum", model_name=name)
        for what in ("time_to_first_token", "inter_token_latency", "e2e_request_latency")
    )
    assert 0 < first + each <= whole
    ended = {
        dict(key)["finished_reason"]: n for (what, key), n in found.items() if what == "vllm:request_success_total"
    }
    assert ended.keys() <= {"stop", "length"} and sum(ended.values()) == 4


def test_prefixes(llama: Served) -> None:
    prompt = list(range(4, 14)) * 7
    for _ in range(2):
        ok(complete(llama, "math", prompt=prompt, max_tokens=1))
    found, name = after(llama, 2), llama.backbone.name
    assert value(found, "vllm:prefix_cache_queries_total", model_name=name) == 2 * 69
    assert value(found, "vllm:prefix_cache_hits_total", model_name=name) == 64
    assert value(found, "vllm:prompt_tokens_total", model_name=name) == 2 * 70


def test_what_is_under_way_and_what_a_step_holds(llama: Served) -> None:
    name = llama.backbone.name
    with ThreadPoolExecutor(4) as pool, held(llama) as gate:
        first = pool.submit(complete, llama, "base", max_tokens=3, ignore_eos=True)
        assert gate.entered.wait(60)
        others = [pool.submit(complete, llama, m, max_tokens=1) for m in ("math", "math + code", "0.5*code")]
        scheduler = llama.engine.language.generator.scheduler
        until(lambda: len(scheduler.waiting) == 3)
        found = samples(llama)
        assert value(found, "vllm:num_requests_running", model_name=name) == 1
        assert value(found, "vllm:num_requests_waiting", model_name=name) == 3
        memory = llama.engine.language.memory
        assert value(found, "vllm:kv_cache_usage_perc", model_name=name) == 64 / memory.budget_tokens
        gate.opened.set()
        for asked in (first, *others):
            ok(asked.result(60))
    found = after(llama, 4)
    assert value(found, "vllm:num_requests_running", model_name=name) == 0
    assert value(found, "vllm:kv_cache_usage_perc", model_name=name) == 0
    assert value(found, "patchbay_steps_total", path="decoupled") == 3
    assert value(found, "patchbay_step_sequences_sum") == 1 + 4 + 1
    assert value(found, "patchbay_step_recipes_sum") == 1 + 4 + 1
    assert value(found, "patchbay_step_deltas_sum") == 2, "two in the second step"


def test_steps_by_path(llama: Served) -> None:
    ok(complete(llama, "math", max_tokens=2, path="patched"))
    assert value(after(llama, 1), "patchbay_steps_total", path="patched") == 2


def test_refusals_and_failures(serve: Serve, delta_file: Callable[..., Path]) -> None:
    llama = serve("llama", max_running=1, max_waiting=1)
    name = llama.backbone.name

    def fail() -> None:
        raise RuntimeError("inside the model")

    with ThreadPoolExecutor(2) as pool, held(llama) as gate:
        asked: list[Future[Any]] = [pool.submit(complete, llama, "base")]
        assert gate.entered.wait(60)
        asked.append(pool.submit(complete, llama, "base"))
        until(lambda: len(llama.engine.language.generator.scheduler.waiting) == 1)
        assert_error(complete(llama, "base"), 429, "queue_full")
        with before_pass(llama, fail):
            gate.opened.set()
            for one in asked:
                assert_error(one.result(60), 500, "backbone_error")
    found = after(llama, 2)
    assert value(found, "patchbay_queue_refusals_total") == 1
    assert value(found, "vllm:request_success_total", model_name=name, finished_reason="error") == 2


def test_waiting_for_memory(serve: Serve, delta_file: Callable[..., Path]) -> None:
    llama = serve("llama", delta_cache_bytes=1)
    for number, name in enumerate(("math", "code", "law"), 1):
        llama.upload(name, delta_file("llama", number))
    pool = llama.engine.recipes.deltas
    pool.max_wait = 0.2
    with ThreadPoolExecutor(2) as threads, held(llama) as gate:
        first = threads.submit(complete, llama, "math")
        assert gate.entered.wait(60)
        assert_error(complete(llama, "code", timeout=0.05), 504, "deadline_exceeded")
        pool.max_wait = 60
        waiting = threads.submit(complete, llama, "code")
        until(lambda: pool.num_waiting == 1)
        found = samples(llama)
        assert value(found, "patchbay_delta_waiting") == 1
        assert value(found, "patchbay_delta_alive_bytes") == pool.alive_bytes > 1
        assert value(found, "patchbay_delta_cache_limit_bytes") == 1
        pool.max_wait = 0.05
        assert_error(complete(llama, "law"), 429, "queue_full")
        gate.opened.set()
        ok(first.result(60))
        ok(waiting.result(60))
    assert value(samples(llama), "patchbay_queue_refusals_total") == 1


def test_a_base_that_writes_no_text_has_no_values_of_it(vit: Served) -> None:
    ask(vit, "math")
    found = samples(vit)
    assert not any(name.startswith("vllm:") for name, _ in found)


def test_the_parts_of_a_text(llama: Served) -> None:
    usages = [ok(complete(llama, "math", max_tokens=count))["usage"] for count in (1, 4)]
    found, name = after(llama, 2), llama.backbone.name
    parts = [f"vllm:request_{part}_time_seconds" for part in ("queue", "prefill", "decode")]
    assert [value(found, f"{part}_count", model_name=name) for part in parts] == [2, 2, 2]
    whole = value(found, "vllm:e2e_request_latency_seconds_sum", model_name=name)
    assert sum(value(found, f"{part}_sum", model_name=name) for part in parts) == pytest.approx(whole, rel=1e-6)
    for what, field in (("prompt", "prompt_tokens"), ("generation", "completion_tokens")):
        total = sum(usage[field] for usage in usages)
        assert value(found, f"vllm:request_{what}_tokens_sum", model_name=name) == total


def test_what_makes_room(vit: Served) -> None:
    for model in ("math", "code"):
        ask(vit, model)
    assert value(samples(vit), "patchbay_delta_cache_evictions_total") == 0
    pool = vit.engine.recipes.deltas
    pool.max_bytes = pool.num_bytes - 1
    pool.discard(pool.keys[-1])
    ask(vit, "code")
    assert value(samples(vit), "patchbay_delta_cache_evictions_total") == 1, "of what was used first"


def test_who_came_without_the_key(backbone: Callable[[str], Backbone], tmp_path: Path) -> None:
    key = {"authorization": "Bearer a-key-of-twenty-signs"}
    with serving(backbone("vit"), tmp_path, api_key="a-key-of-twenty-signs") as vit:
        for headers in ({}, {"authorization": "Bearer wrong"}, key):
            vit.get("/v1/models", headers=headers)
        text = vit.get("/metrics", headers=key).text
    assert "patchbay_auth_failures_total 2.0" in text and "wrong" not in text


def test_what_runs_and_whether_it_can_answer(vit: Served) -> None:
    found = samples(vit)
    about = {"version": patchbay.__version__, "base": vit.backbone.name, "task": "image-classification"}
    assert value(found, "patchbay_build_info", **about) == 1
    assert value(found, "patchbay_ready") == 1
    assert value(found, "process_resident_memory_bytes") > 0
    vit.engine.drain()
    assert value(samples(vit), "patchbay_ready") == 0


def test_how_far_jobs_are(vit: Served) -> None:
    queue = vit.app.state.queue
    first, _ = queue.submit("default", "transfer", {})
    queue.submit("default", "transfer", {})
    ratio, count, best = (f"patchbay_job_{what}" for what in ("stage_ratio", "evaluations", "best_score"))
    job, labels = queue.claim("worker", 30), {"job_id": first.id, "kind": "transfer"}
    assert not any(name.startswith("patchbay_job_") for name, _ in samples(vit)), "nothing was reported"
    progress = {"evaluation": 3, "evaluations": 40, "best_score": None, "stage": "search", "done": 3, "total": 12}
    queue.report(lease_of(job), progress)
    found = samples(vit)
    assert (value(found, ratio, **labels), value(found, count, **labels)) == (0.25, 3)
    assert not any(name == best for name, _ in found), "nothing was scored"
    queue.report(lease_of(job), progress | {"best_score": -0.5})
    assert value(samples(vit), best, **labels) == -0.5
    queue.finish(lease_of(job), State.DONE, result={})
    assert not any(name.startswith("patchbay_job_") for name, _ in samples(vit))
