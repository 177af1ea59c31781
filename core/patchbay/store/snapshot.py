"""All that a catalog holds, at one moment: what is written down to move it elsewhere. Knows no database and no file.

Uploads under way and holds are not in it: they are of a moment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

from patchbay.errors import ImportConflict
from patchbay.store.audit import Entry
from patchbay.store.base import Digest, MergeRecord, digests_in
from patchbay.store.keys import KeyRecord
from patchbay.store.tenants import Limits


@dataclass(frozen=True, slots=True)
class Name:
    """Of deltas, deleted ones too: `last_version` numbers are used up."""

    tenant: str
    name: str
    last_version: int
    current: int | None


@dataclass(frozen=True, slots=True)
class Version:
    """One that lives, or a tombstone (`deleted_at`)."""

    tenant: str
    name: str
    version: int
    digest: Digest
    size: int
    summary: str
    created_at: float
    deleted_at: float | None


@dataclass(frozen=True, slots=True)
class Brought:
    """A blob that a tenant has."""

    tenant: str
    digest: Digest
    size: int
    created_at: float


@dataclass(frozen=True, slots=True)
class Limited:
    """A tenant with limits."""

    tenant: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Each sorted by what names it; the audit log in its own order."""

    names: tuple[Name, ...] = ()
    versions: tuple[Version, ...] = ()
    merges: tuple[MergeRecord, ...] = ()
    brought: tuple[Brought, ...] = ()
    limits: tuple[Limited, ...] = ()
    keys: tuple[KeyRecord, ...] = ()
    audit: tuple[Entry, ...] = ()

    def digests(self) -> dict[Digest, int | None]:
        """Of the bytes that belong to it, and how many they are; None for those that only a merge is pinned to."""
        pinned: dict[Digest, int | None] = {
            digest: None for merge in self.merges for digest in digests_in(merge.recipe)
        }
        live = {row.digest: row.size for row in self.versions if row.deleted_at is None}
        return pinned | live | {row.digest: row.size for row in self.brought}

    def without(self, digests: set[Digest]) -> Snapshot:
        """The same but for blobs that a tenant had brought and that are no more."""
        return replace(self, brought=tuple(row for row in self.brought if row.digest not in digests))


class Snapshots(Protocol):
    """A whole catalog at once. Thread-safe. Any call may raise StoreUnavailable."""

    def dump(self) -> Snapshot:
        """Of one moment, whoever changes the catalog meanwhile."""

    def load(self, snapshot: Snapshot) -> None:
        """Adds all of it, or nothing; what is there already stays. Raises ImportConflict, StoreFull."""


Row = Name | Version | MergeRecord | Brought | Limited | KeyRecord
One = TypeVar("One", Name, Version, MergeRecord, Brought, Limited, KeyRecord)


def missing(there: Snapshot, wanted: Snapshot) -> Snapshot:
    """What of `wanted` is not `there` yet. Raises ImportConflict where something else is in its place."""
    _check_owners(there, wanted)
    known = set(there.audit)
    return Snapshot(
        names=_missing(there.names, wanted.names),
        versions=_missing(there.versions, wanted.versions),
        merges=_missing(there.merges, wanted.merges),
        brought=_missing(there.brought, wanted.brought),
        limits=_missing(there.limits, wanted.limits),
        keys=_missing(there.keys, wanted.keys),
        audit=tuple(entry for entry in wanted.audit if entry not in known),
    )


def identity(row: Row) -> tuple[str, ...]:
    """What there is one of."""
    match row:
        case Version():
            return row.tenant, row.name, str(row.version)
        case Name() | MergeRecord():
            return row.tenant, row.name
        case Brought():
            return row.tenant, row.digest
        case KeyRecord():
            return (row.id,)
        case Limited():
            return (row.tenant,)


_KINDS: dict[type, str] = {
    Name: "delta",
    Version: "version",
    MergeRecord: "merge",
    Brought: "blob",
    Limited: "tenant",
    KeyRecord: "key",
}
_FIELDS = {
    "current": "current version",
    "last_version": "newest version",
    "created_at": "time of creation",
    "deleted_at": "time of deletion",
    "expires_at": "expiry",
    "revoked_at": "time of revocation",
    "secret_hash": "secret",
}


def _missing(there: Iterable[One], wanted: Iterable[One]) -> tuple[One, ...]:
    known, new = {identity(row): row for row in there}, []
    for row in wanted:
        found = known.get(identity(row))
        if found is None:
            new.append(row)
        elif _lasting(found) != _lasting(row):
            raise _in_the_way(_lasting(found), _lasting(row))
    return tuple(new)


def _in_the_way(found: Row, row: Row) -> ImportConflict:
    names = [field.name for field in fields(row) if getattr(row, field.name) != getattr(found, field.name)]
    differs = ", ".join(_FIELDS.get(name, name) for name in names)
    return ImportConflict(
        f"{_KINDS[type(row)]} {'/'.join(identity(row))} is in the store already, with another {differs}: nothing was "
        "imported; import into an empty store"
    )


def _lasting(row: Row) -> Row:
    """Without what changes by itself: a key that is used, a blob that is sent again."""
    if isinstance(row, KeyRecord):
        return replace(row, last_used_at=None)
    return replace(row, created_at=0.0) if isinstance(row, Brought) else row


def _check_owners(there: Snapshot, wanted: Snapshot) -> None:
    """Raises ImportConflict where a name would belong to a delta and to a merge."""
    merges = {(row.tenant, row.name) for one in (there, wanted) for row in one.merges}
    live = {(row.tenant, row.name) for one in (there, wanted) for row in one.versions if row.deleted_at is None}
    for tenant, name in sorted(merges & live):
        raise ImportConflict(
            f"{tenant}/{name} is a delta here and a merge there: nothing was imported; delete one of them first"
        )
