"""What one tenant can learn of another: nothing, by any route, name, digest or count."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tests.service.serving import Serve, Served, assert_error, ok
from tests.service.tenants import OPERATOR, Tenant, tenant

from patchbay.backbone import Backbone
from patchbay.errors import WrongBase
from patchbay_server.residents import resident
from patchbay_server.server import check_store

Files = Callable[..., Path]
IMAGE = {"array": [[[0.1] * 16] * 16] * 3}
LONG = "the cat sees the dog and " * 20


def digest_of(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"


@pytest.fixture
def vit(serve: Serve, delta_file: Files) -> Served:
    """Acme and bolt each have a delta `math` of their own; acme also has `secret-name`, and its merge `secret-mix`."""
    served = serve("vit", api_key=OPERATOR)
    acme, bolt = tenant(served, "acme"), tenant(served, "bolt")
    acme.upload("math", delta_file("vit", 1).read_bytes())
    bolt.upload("math", delta_file("vit", 2).read_bytes())
    acme.upload("secret-name", delta_file("vit", 3).read_bytes())
    ok(acme.post("/v1/merges", {"name": "secret-mix", "recipe": "math + secret-name"}), 201)
    return served


def test_names_are_each_tenants_own(vit: Served) -> None:
    acme, bolt, operator = (tenant(vit, name) for name in ("acme", "bolt", "default"))
    found = [ok(one.get("/v1/deltas/math"))["digest"] for one in (acme, bolt)]
    assert found[0] != found[1]
    answers = [ok(one.post("/v1/classify", {"model": "math", "input": IMAGE})) for one in (acme, bolt)]
    assert [answer["patchbay"]["deltas"][0]["digest"] for answer in answers] == found
    assert answers[0]["data"] != answers[1]["data"]
    assert digest_of(bolt.get("/v1/deltas/math/file").content) == found[1]
    assert_error(operator.get("/v1/deltas/math"), 404, "not_found", "name")
    for path in ("/v1/models", "/v1/deltas", "/v1/merges"):
        assert "secret" in acme.get(path).text
        assert "secret" not in bolt.get(path).text and "secret" not in operator.get(path).text


@pytest.mark.parametrize("model", ["secret-name", "secret-mix", "0.5*secret-name", "math + secret-name"])
def test_what_others_have_is_not_there_and_no_close_name(vit: Served, model: str) -> None:
    bolt = tenant(vit, "bolt")
    wrong = assert_error(bolt.post("/v1/classify", {"model": model, "input": IMAGE}), 404, "not_found", "model")
    assert "close names" not in wrong
    close = bolt.get("/v1/deltas/secret-nam").text + bolt.get("/v1/models/secret-nam").text
    assert "secret-name" not in close


def test_changes_reach_nobody_else(vit: Served) -> None:
    acme, bolt = tenant(vit, "acme"), tenant(vit, "bolt")
    before = [ok(acme.get(path)) for path in ("/v1/deltas", "/v1/merges")]
    ok(bolt.ask("DELETE", "/v1/deltas/math"))
    assert_error(bolt.ask("DELETE", "/v1/merges/secret-mix"), 404, "not_found", "name")
    body = {"version": 1}
    assert_error(bolt.ask("PUT", "/v1/deltas/secret-name/current", json=body), 404, "not_found", "name")
    assert [ok(acme.get(path)) for path in ("/v1/deltas", "/v1/merges")] == before


def test_the_same_bytes_of_two_tenants_are_two_deltas(vit: Served, delta_file: Files) -> None:
    acme, bolt = tenant(vit, "acme"), tenant(vit, "bolt")
    twin = bolt.upload("twin", delta_file("vit", 1).read_bytes())
    ok(acme.post("/v1/classify", {"model": "math", "input": IMAGE}))
    vit.engine.recipes.pin(resident("acme", twin["digest"]))
    mine, theirs = ok(acme.get("/v1/deltas/math")), ok(bolt.get("/v1/deltas/twin"))
    assert mine["digest"] == theirs["digest"] and mine["pinned"] and mine["resident_bytes"]
    assert not theirs["pinned"] and theirs["resident_bytes"] is None
    ok(bolt.ask("DELETE", "/v1/deltas/twin"))
    assert ok(acme.get("/v1/deltas/math"))["pinned"]
    answers = [one.post("/v1/merges:preview", {"recipe": "math + math@1"}).text for one in (acme, bolt)]
    assert "secret" not in answers[1]


def test_a_blob_is_there_for_whoever_brought_it(vit: Served) -> None:
    acme, bolt = tenant(vit, "acme"), tenant(vit, "bolt")
    path = f"/v1/blobs/{digest_of(b'words')}"
    ok(acme.ask("PUT", path, content=b"words"), 201)
    assert (acme.ask("HEAD", path).status_code, bolt.ask("HEAD", path).status_code) == (200, 404)
    sweep = {"model": "math", "scales": [1.0], "calibration": digest_of(b"words")}
    ok(acme.post("/v1/transfers", sweep), 202)
    assert_error(bolt.post("/v1/transfers", sweep), 404, "not_found", "calibration")
    files = {"config.json": digest_of(b"words"), "model.safetensors": digest_of(b"words")}
    wanted = {"name": "stolen", "files": files}
    assert_error(bolt.post("/v1/compressions", wanted), 404, "not_found", "files.config.json")
    ok(bolt.ask("PUT", path, content=b"words"), 201)
    ok(bolt.ask("PUT", path, content=b"words"), 200)
    ok(bolt.post("/v1/transfers", sweep), 202)


def test_the_bytes_of_a_delta_are_no_blob(vit: Served) -> None:
    acme = tenant(vit, "acme")
    path = f"/v1/blobs/{ok(acme.get('/v1/deltas/math'))['digest']}"
    assert acme.ask("HEAD", path).status_code == tenant(vit, "bolt").ask("HEAD", path).status_code == 404


def submit(one: Tenant, scale: float) -> Any:
    ok_or_there = one.ask("PUT", f"/v1/blobs/{digest_of(b'words')}", content=b"words")
    assert ok_or_there.status_code in (200, 201)
    sweep = {"model": "math", "scales": [scale], "calibration": digest_of(b"words")}
    return one.post("/v1/transfers", sweep, headers={"idempotency-key": "the same"})


def test_jobs_and_idempotency_keys_are_each_tenants_own(vit: Served) -> None:
    acme, bolt = tenant(vit, "acme"), tenant(vit, "bolt")
    mine, theirs = ok(submit(acme, 0.5), 202), ok(submit(bolt, 1.0), 202)
    assert mine["id"] != theirs["id"]
    assert [job["id"] for job in ok(bolt.get("/v1/jobs"))["data"]] == [theirs["id"]]
    for method, path in (("GET", ""), ("GET", "/events"), ("DELETE", "")):
        assert_error(bolt.ask(method, f"/v1/jobs/{mine['id']}{path}"), 404, "not_found", "job")
    assert ok(acme.get(f"/v1/jobs/{mine['id']}"))["state"] == "queued"


@pytest.mark.parametrize("model", ["base", "math"])
def test_a_text_that_another_tenant_asked_is_read_anew(serve: Serve, delta_file: Files, model: str) -> None:
    """An answer that begins sooner would tell of it."""
    served = serve("llama", api_key=OPERATOR)
    tenants = [tenant(served, name) for name in ("acme", "bolt")]
    for one in tenants:
        one.upload("math", delta_file("llama", 1).read_bytes())
    counts = served.engine.language.generator.counts
    known = []
    for one in (*tenants, *tenants):
        before = counts.prefix_tokens
        ok(one.post("/v1/completions", {"model": model, "prompt": LONG, "max_tokens": 1}))
        known.append(counts.prefix_tokens - before)
    assert known[:2] == [0, 0] and min(known[2:]) > 0


def test_metrics_name_no_tenants_deltas_but_the_operators(vit: Served, delta_file: Files) -> None:
    acme, operator = tenant(vit, "acme"), tenant(vit, "default")
    operator.upload("own", delta_file("vit", 1).read_bytes())
    for one, model in ((acme, "secret-name"), (acme, "secret-mix"), (acme, "base"), (operator, "own")):
        ok(one.post("/v1/classify", {"model": model, "input": IMAGE}))
    ok(acme.ask("DELETE", "/v1/merges/secret-mix"))
    text = operator.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("patchbay_inferences_total")]
    assert "secret" not in text and len(lines) == 4
    for labels in (("acme", "delta"), ("acme", "merge"), ("acme", "base"), ("default", "own")):
        assert any(f'tenant="{labels[0]}"' in line and f'model="{labels[1]}"' in line for line in lines)


def test_how_busy_a_server_is_only_its_operator_sees(vit: Served) -> None:
    seen = [ok(tenant(vit, name).get("/v1/base")) for name in ("acme", "default")]
    assert seen[0]["cached_deltas"] is None and seen[1]["cached_deltas"]["count"] >= 0
    assert seen[0] | {"cached_deltas": 0} == seen[1] | {"cached_deltas": 0}


def test_a_store_is_checked_for_all_tenants(vit: Served, model_folder: Files) -> None:
    with pytest.raises(WrongBase, match="another base"):
        check_store(vit.hub, Backbone.load(model_folder("vit", seed=5)))
    assert check_store(vit.hub, vit.backbone) == []
    for digest in vit.hub.blobs.digests():
        vit.hub.blobs.delete(digest)
    assert set(check_store(vit.hub, vit.backbone)) == {"acme/math", "acme/secret-name", "bolt/math"}
