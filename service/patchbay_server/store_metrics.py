"""How long the store takes, and how often it fails, by operation. Knows no database and no file layout."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Histogram

from patchbay.errors import PatchbayError, StoreFull, StoreUnavailable
from patchbay.store import BlobStore, Catalog, Hub

_OPERATIONS = [
    prefix + name
    for prefix, contract in (("", Catalog), ("blob_", BlobStore))
    for name, method in vars(contract).items()
    if not name.startswith("_") and callable(method)
]
# A read of the embedded catalog takes some 20 microseconds, a write waits for the disk.
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class StoreMetrics:
    """`operation` is a method of the catalog, or `blob_` and a method of the blob store."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "patchbay_store_seconds",
            "Time of one call of the store.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self.errors = Counter(
            "patchbay_store_errors", "Calls of the store that failed.", ["operation"], registry=registry
        )

    def watched(self, hub: Hub) -> Hub:
        """The same store, whose calls are measured."""
        for operation in _OPERATIONS:
            self.errors.labels(operation)  # 0: an alert sees a count grow, and not one that begins with 1
        catalog, blobs = _Measured(hub.catalog, "", self._call), _Measured(hub.blobs, "blob_", self._call)
        return Hub(cast(Catalog, catalog), cast(BlobStore, blobs), hub.reserved)

    def _call(self, operation: str, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*args, **options)
        except Exception as error:
            if _is_failure(error):
                self.errors.labels(operation).inc()
            raise
        finally:
            self.seconds.labels(operation).observe(time.perf_counter() - started)


def _is_failure(error: Exception) -> bool:
    """That there is no such delta is an answer."""
    return isinstance(error, StoreFull | StoreUnavailable) or not isinstance(error, PatchbayError)


class _Measured:
    """Stands for a store, and passes every call on; what is no method of it, as its keys, is not measured."""

    def __init__(self, store: object, prefix: str, call: Callable[..., Any]) -> None:
        self._store, self._prefix, self._call = store, prefix, call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        return partial(self._call, self._prefix + name, found) if callable(found) else found
