"""Metrics that carry names: what routers and dashboards look for, and how much of it there can be."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.service.held import held
from tests.service.serving import Served, ok
from tests.service.test_metrics import Samples, after, ask, complete, samples, value
from tests.waiting import until

from patchbay_server import names

INFO = "vllm:lora_requests_info"


def shown(found: Samples, name: str) -> list[tuple[dict[str, str], float]]:
    return [(dict(key), number) for (what, key), number in found.items() if what == name]


def test_texts_by_the_names_they_are_written_under(llama: Served) -> None:
    """As vLLM says it, so that routers find the server where a delta is at work."""
    ok(llama.post("/v1/merges", {"name": "both", "recipe": "math + code"}), 201)
    most = {"max_lora": str(llama.engine.language.limits.max_running)}
    nobody = {"running_lora_adapters": "", "waiting_lora_adapters": ""}
    before = time.time()
    [(labels, at)] = shown(samples(llama), INFO)
    assert labels == most | nobody and before <= at <= time.time()
    with ThreadPoolExecutor(6) as pool, held(llama) as gate:
        first = pool.submit(complete, llama, "0.5*math", max_tokens=3)
        assert gate.entered.wait(60)
        models = ("both", "code@1", "math", "base", "math - code")
        asked = [first, *(pool.submit(complete, llama, model, max_tokens=1) for model in models)]
        until(lambda: len(llama.engine.language.generator.scheduler.waiting) == 5)
        [(labels, _)] = shown(samples(llama), INFO)
        assert labels == most | {"running_lora_adapters": "math", "waiting_lora_adapters": "both,code,math"}
        gate.opened.set()
        for one in asked:
            ok(one.result(60))
    [(labels, _)] = shown(after(llama, 6), INFO)
    assert labels == most | nobody


def resident(served: Served) -> dict[str, float]:
    return {labels["delta"]: number for labels, number in shown(samples(served), "patchbay_delta_resident_bytes")}


def test_which_deltas_are_in_memory(vit: Served, delta_file: Callable[..., Path]) -> None:
    assert resident(vit) == {}
    ask(vit, "math + code")
    sizes = {f"{name}@1": ok(vit.get(f"/v1/deltas/{name}"))["resident_bytes"] for name in ("math", "code")}
    assert resident(vit) == sizes
    vit.upload("math", delta_file("vit", 3))
    ok(vit.delete("/v1/deltas/math@1"))
    assert resident(vit) == {"code@1": sizes["code@1"]}, "in memory, and no name is left"
    assert value(samples(vit), "patchbay_delta_load_seconds_count") == 2


def test_as_many_series_of_deltas_as_a_dashboard_can_hold(
    vit: Served, delta_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "MOST", 2)
    vit.upload("law", delta_file("vit", 3))
    for model in ("math", "code", "law"):
        ask(vit, model)
    assert resident(vit).keys() == {"code@1", "law@1"}, "those used last"
