from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.service.serving import Served, assert_error, ok

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
        if not sample.name.endswith("_created")
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
    assert value(found, "patchbay_inferences_total", model="base", path="base") == 2
    assert value(found, "patchbay_inferences_total", model="math", path="patched") == 3
    assert value(found, "patchbay_inferences_total", model="merge", path="patched") == 4
    assert value(found, "patchbay_inferences_total", model="both", path="patched") == 1


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
    assert value(found, "patchbay_delta_cache_misses") == 2
    assert value(found, "patchbay_delta_cache_hits") == 2
    assert value(found, "patchbay_plan_cache_entries") == 3
    assert value(found, "patchbay_plan_cache_misses") == 3
    assert value(found, "patchbay_plan_cache_hits") == 1
    assert value(found, "patchbay_delta_cache_bytes") == vit.engine.recipes.deltas.num_bytes > 0
    assert value(found, "patchbay_plan_cache_bytes") == vit.engine.recipes.plans.num_bytes > 0
    assert value(found, "patchbay_resident_bytes") == vit.backbone.num_bytes
