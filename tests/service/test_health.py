from __future__ import annotations

import torch
from tests.service.serving import Served, assert_error, ok

from patchbay.store import SqliteCatalog


def test_alive_and_ready(vit: Served) -> None:
    assert ok(vit.get("/healthz")) == {"status": "ok"}
    assert ok(vit.get("/readyz")) == {"status": "ready", "path": "patched"}


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
    }


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
