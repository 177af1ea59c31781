"""Deltas that stay in memory: which digests names stand for, and who still wants them. Knows nothing of HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterable

from patchbay.engine.engine import Engine
from patchbay.errors import NotFound
from patchbay.store.base import DEFAULT_TENANT, DeltaRecord
from patchbay.store.hub import Hub
from patchbay_server.residents import digest_of, resident, tenant_of

_VERSION = re.compile(r"[1-9][0-9]{0,8}")


def split(delta: str) -> tuple[str, int | None]:
    """`name` or `name@version`. Raises NotFound."""
    name, at, version = delta.partition("@")
    if not at:
        return name, None
    if not _VERSION.fullmatch(version):
        raise NotFound(f"{version!r} is no version number of delta {name!r}", param="version")
    return name, int(version)


def preload(engine: Engine, hub: Hub, deltas: Iterable[str]) -> None:
    """Loads and pins each: `name`, `name@version`, or `tenant/name`. Raises NotFound, CacheFull, and what loading
    raises.
    """
    for delta in deltas:
        tenant, slash, own = delta.partition("/")
        if not slash:
            tenant, own = DEFAULT_TENANT, delta
        engine.recipes.pin(resident(tenant, hub.catalog.get_delta(tenant, *split(own)).digest))


def forget(engine: Engine, hub: Hub, tenant: str, deleted: Iterable[DeltaRecord]) -> None:
    """Unpins what no delta is any more. Bytes that another name has too stay pinned for that one."""
    for record in deleted:
        if not hub.catalog.find_digest(tenant, record.digest):
            engine.recipes.unpin(resident(tenant, record.digest))


def unpin_deleted(engine: Engine, hub: Hub) -> None:
    """The same for what was deleted elsewhere, on the same store."""
    deltas = engine.recipes.deltas
    for name in deltas.keys:
        if deltas.is_pinned(name) and not hub.catalog.find_digest(tenant_of(name), digest_of(name)):
            deltas.unpin(name)
