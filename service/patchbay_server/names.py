"""Which names the engine's work goes by: of deltas in memory, and of recipes that texts are written under.

The engine knows digests only. However many there are, as many are shown as a label or a dashboard can hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from weakref import WeakKeyDictionary

from patchbay.engine.engine import Engine
from patchbay.engine.recipes import Ready
from patchbay.engine.sequence import Sequence
from patchbay.errors import StoreUnavailable
from patchbay.store.base import DEFAULT_TENANT
from patchbay.store.hub import Hub
from patchbay_server.residents import digest_of, resident
from patchbay_server.resolve import BASE, MERGE

MOST = 100


class Residents:
    """The default tenant's deltas in memory, as `name@version`: the names of others are theirs. What was found out of a
    digest is kept until `forget`.
    """

    def __init__(self, engine: Engine, hub: Hub) -> None:
        self._deltas, self._catalog = engine.recipes.deltas, hub.catalog
        self._names: dict[str, str | None] = {}

    def read(self) -> Iterator[tuple[Mapping[str, str], float]]:
        """Bytes of those used last, as many as the catalog has names for."""
        digests = self._deltas.keys[-MOST:]
        self._names = {digest: name for digest, name in self._names.items() if digest in digests}
        for digest in digests:
            try:
                name = self._name(digest)
            except StoreUnavailable:  # one call that waits for it is enough
                return
            delta = self._deltas.peek(digest)
            if name is not None and delta is not None:
                yield {"delta": name}, delta.num_bytes

    def forget(self) -> None:
        """Something was deleted."""
        self._names = {}

    def _name(self, digest: str) -> str | None:
        if digest not in self._names:
            is_ours = digest == resident(DEFAULT_TENANT, digest_of(digest))
            found = self._catalog.find_digest(DEFAULT_TENANT, digest_of(digest)) if is_ours else []
            self._names[digest] = f"{found[0].name}@{found[0].version}" if found else None
        return self._names[digest]


class UnderWay:
    """The names that texts under way were asked for by: of deltas and saved merges, as routers compare them with
    `model`. What a request writes out itself has no name.
    """

    def __init__(self, engine: Engine) -> None:
        self._language = engine.language
        self._labels: WeakKeyDictionary[Ready, str] = WeakKeyDictionary()

    def note(self, ready: Ready, label: str) -> None:
        if label not in (BASE, MERGE):
            self._labels[ready] = label

    def read(self) -> Iterator[tuple[Mapping[str, str], float]]:
        """One series, whose value is now."""
        scheduler = self._language.generator.scheduler
        labels = {
            "max_lora": str(self._language.limits.max_running),
            "running_lora_adapters": self._listed(tuple(scheduler.running)),
            "waiting_lora_adapters": self._listed(tuple(scheduler.waiting)),
        }
        yield labels, time.time()

    def _listed(self, sequences: Iterable[Sequence]) -> str:
        found = {self._labels.get(sequence.request.ready) for sequence in sequences}
        return ",".join(sorted(name for name in found if name is not None)[:MOST])
