"""API keys: what one is made of, what it may be used for, and what every store of them promises.

A key is written `pb_ID_SECRET`. The secret is 32 random bytes; stores have its SHA-256 and never the secret itself. No
slow hash is needed: nobody can try 2^256 secrets. Knows no database, no HTTP and no route.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from patchbay.errors import InvalidKey, NotFound
from patchbay.store.base import DEFAULT_TENANT, check_name

_KEY = re.compile(r"pb_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_ID = re.compile(r"[0-9a-f]{16}")


class Scope(StrEnum):
    """What a key may do. `admin` is the operator's: it includes the others and what concerns the whole server."""

    READ = "read"
    INFER = "infer"
    WRITE = "write"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key without its secret. Times are unix seconds; `last_used_at` is right to the minute."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    secret_hash: str
    created_at: float
    expires_at: float | None = None
    last_used_at: float | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> str:
        """`active`, `expired` or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"

    def matches(self, secret: str) -> bool:
        """In a time that does not depend on how much of it is right."""
        return hmac.compare_digest(hash_secret(secret), self.secret_hash)


class Keys(Protocol):
    """The keys of a catalog. Thread-safe, every call atomic; keys are revoked and never deleted.

    Text that is no id is simply not found. Any call may raise StoreUnavailable, any change StoreFull.
    """

    def add(self, record: KeyRecord) -> None: ...

    def get(self, key: str) -> KeyRecord:
        """By its id. Raises NotFound."""

    def list_keys(self) -> list[KeyRecord]:
        """Of all tenants, revoked and expired ones too, oldest first."""

    def revoke(self, key: str) -> KeyRecord:
        """For good; one that is revoked already stays as it is. Raises NotFound."""

    def touch(self, key: str, at: float) -> None:
        """It was used then. Nothing where there is no such key."""


def new_key(tenant: str, scopes: Iterable[Scope], expires_at: float | None = None) -> tuple[str, KeyRecord]:
    """The key as its owner writes it, which nothing can give again, and what is stored of it.

    Raises InvalidName for the tenant, and InvalidKey for a key that nobody could use.
    """
    check_name(tenant, param="tenant")
    now, allowed = time.time(), frozenset(scopes)
    if not allowed:
        raise InvalidKey("a key without a scope may do nothing: name one", param="scopes")
    if Scope.ADMIN in allowed and tenant != DEFAULT_TENANT:
        raise InvalidKey(
            f"admin concerns the whole server, all tenants: such keys are of tenant {DEFAULT_TENANT!r}, not {tenant!r}",
            param="scopes",
        )
    if expires_at is not None and expires_at <= now:
        raise InvalidKey("the key would have expired already: name a later time", param="expires")
    key, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    return f"pb_{key}_{secret}", KeyRecord(key, tenant, allowed, hash_secret(secret), now, expires_at)


def split_key(text: str) -> tuple[str, str] | None:
    """(id, secret), or None for text that is no key."""
    found = _KEY.fullmatch(text)
    return (found[1], found[2]) if found else None


def hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def is_key_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def no_key(key: str) -> NotFound:
    # Someone may have given the whole key: no more of it is repeated than its id has.
    return NotFound(f"there is no key {key[:16]!r}: `patchbay keys list` has their ids", param="key")


def write_scopes(scopes: Iterable[Scope]) -> str:
    """As text, in the order of `Scope`."""
    return " ".join(scope for scope in Scope if scope in scopes)


def read_scopes(text: str) -> frozenset[Scope]:
    return frozenset(map(Scope, text.split()))
