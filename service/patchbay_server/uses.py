"""Which saved merges are made of a delta. Knows nothing of HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator

from patchbay.errors import DeltaInUse
from patchbay.store.hub import Hub

SHOWN = 5


def check_unused(hub: Hub, tenant: str, name: str, version: int | None) -> None:
    """Raises DeltaInUse, which names the saved merges, for a delta (or its one `version`) that any is made of."""
    found = list(_merges_of(hub, tenant, name, version))
    if found:
        what = name if version is None else f"{name}@{version}"
        shown = ", ".join(map(repr, found[:SHOWN])) + (f" and {len(found) - SHOWN} more" if found[SHOWN:] else "")
        plural = "s" if len(found) > 1 else ""
        raise DeltaInUse(
            f"{what!r} is part of the saved merge{plural} {shown}: delete those first, or ask with force=true",
            param="delta",
        )


def _merges_of(hub: Hub, tenant: str, name: str, version: int | None) -> Iterator[str]:
    for record in hub.catalog.list_merges(tenant):
        stored = json.loads(record.recipe)
        pins = [(pin["name"], pin["version"]) for pin in stored["pins"].values()]
        # One that follows holds on to a version only where its recipe names it.
        used = [_split(term) for term in stored["pins"]] if stored["follow"] else pins
        if any(found == name and version in (None, pinned) for found, pinned in used):
            yield record.name


def _split(term: str) -> tuple[str, int | None]:
    name, _, version = term.partition("@")
    return name, int(version) if version else None
