from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.service.serving import Served, assert_error, serving
from tests.service.test_metrics import ask, samples, value
from tests.service.test_names import resident

from patchbay.backbone import Backbone
from patchbay.errors import StoreUnavailable
from patchbay.store import DeltaRecord, SqliteCatalog


class Failing(SqliteCatalog):
    """A catalog whose database does not answer one question, once it is told to."""

    is_down = False

    def find_digest(self, tenant: str, digest: str) -> list[DeltaRecord]:
        if self.is_down:
            raise StoreUnavailable("no answer")
        return super().find_digest(tenant, digest)


def test_calls_of_the_store(vit: Served) -> None:
    ask(vit, "math")
    assert_error(vit.get("/v1/deltas/nope"), 404, "not_found", "name")
    found = samples(vit)
    assert value(found, "patchbay_store_seconds_count", operation="get_delta") == 2
    assert value(found, "patchbay_store_seconds_count", operation="blob_put") == 2
    errors = [number for (name, _), number in found.items() if name == "patchbay_store_errors_total"]
    assert len(errors) > 15 and sum(errors) == 0, "that it is not there is an answer"


def test_calls_that_fail(backbone: Callable[[str], Backbone], tmp_path: Path, delta_file: Callable[..., Path]) -> None:
    with closing(Failing(tmp_path / "catalog.db")) as catalog, serving(backbone("vit"), tmp_path, catalog) as vit:
        vit.upload("math", delta_file("vit", 1))
        ask(vit, "math")
        catalog.is_down = True
        assert_error(vit.delete("/v1/deltas/math"), 503, "store_unavailable")
        assert resident(vit) == {}, "and the other metrics are there"
        assert value(samples(vit), "patchbay_store_errors_total", operation="find_digest") == 1
