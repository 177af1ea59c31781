"""What an object store promises where others may write to it: by URLs, past the server. Knows no catalog."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from patchbay.store.base import Digest


@dataclass(frozen=True, slots=True)
class Signed:
    """Where to PUT the bytes, and the headers that go with them."""

    url: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Put:
    """What lies in the staging area; `size` in bytes. `tenant` and `digest` are None for what a crash left."""

    key: str
    tenant: str | None
    digest: Digest | None
    size: int


class Staging(Protocol):
    """The part of an object store that others may write to. Thread-safe. Any call may raise StoreUnavailable."""

    def sign(self, tenant: str, digest: Digest, seconds: float) -> Signed: ...

    def size(self, tenant: str, digest: Digest) -> int | None:
        """In bytes; None where nothing was put."""

    def take(self, tenant: str, digest: Digest, size: int) -> Digest:
        """Makes a blob of what was put, if its digest is the promised one; the digest that it has. Empties the place.

        Whoever has the URL may go on writing: what is hashed, and becomes the blob, is a copy that they cannot reach.
        """

    def remove(self, key: str) -> None: ...

    def list_puts(self) -> Iterator[Put]:
        """All, also what a crash left in the middle of `take` a day ago or longer."""
