"""The store's contracts: records, names, and what every catalog and blob store promises.

Knows no database, no file layout, no HTTP, no merging method, and never looks inside a summary or a recipe.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from patchbay.errors import InvalidName, NotFound, StoreFull, StoreUnavailable

if TYPE_CHECKING:
    from patchbay.store.audit import Audit
    from patchbay.store.keys import Keys
    from patchbay.store.snapshot import Snapshots
    from patchbay.store.staging import Staging
    from patchbay.store.tenants import Tenants
    from patchbay.store.uploads import Uploads

Digest = str
"""`sha256:` and 64 lower-case hex digits."""

DEFAULT_TENANT = "default"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def digests_in(text: str) -> set[Digest]:
    """All that are written in a text."""
    return set(_DIGEST.findall(text))


def check_name(name: str, *, param: str = "name") -> str:
    """Return `name` if it is `[a-z0-9][a-z0-9._-]{0,62}`; else raise InvalidName."""
    if not is_name(name):
        raise InvalidName(
            f"{name[:64]!r} is not a name: use 1 to 63 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
            param=param,
        )
    return name


def check_digest(digest: str) -> Digest:
    """Return `digest` if it is one, else raise NotFound: what is no digest names no blob."""
    if not is_digest(digest):
        raise NotFound(f"{digest[:80]!r} is not a digest: sha256: and 64 hex digits, lower case", param="digest")
    return digest


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """One version of a delta. `created_at` is in unix seconds, `size` in bytes, `summary` JSON text."""

    tenant: str
    name: str
    version: int
    digest: Digest
    size: int
    created_at: float
    summary: str
    current: bool


@dataclass(frozen=True, slots=True)
class MergeRecord:
    """A saved merge: a recipe under a name. `recipe` is JSON text."""

    tenant: str
    name: str
    recipe: str
    created_at: float


class Catalog(Protocol):
    """Names and versions. Thread-safe; every call is atomic: all of it happened, or none.

    Tenants do not see each other. Within a tenant a name belongs to a delta or to a merge, never to both. Names that
    break the grammar raise InvalidName when written (tenants too) and are simply not found when read.
    Any call may raise StoreUnavailable; any change StoreFull.
    """

    @property
    def remembers(self) -> bool:
        """Whether names stand for what they stood for last while the database is away."""

    @property
    def keys(self) -> Keys:
        """Who may use what is in the catalog."""

    @property
    def tenants(self) -> Tenants:
        """Whose it is, and how much each may have."""

    @property
    def audit(self) -> Audit:
        """Who changed it."""

    @property
    def uploads(self) -> Uploads:
        """What is on its way."""

    @property
    def snapshots(self) -> Snapshots:
        """All of it at once."""

    def add_version(
        self, tenant: str, name: str, digest: Digest, size: int, summary: str, activate: bool = True
    ) -> tuple[DeltaRecord, bool]:
        """Add the next version under `name`; (record, created).

        The same digest live under this name already: that record and False, and the current version stays what it is.
        Version numbers count 1, 2, ... and are never used again, not even after the name was deleted. Without
        `activate` the current version stays as it was. What the tenant has brought as a blob is the version's now.
        Raises NameTaken if a merge owns the name, and QuotaExceeded where it is more than the tenant may store.
        """

    def get_delta(self, tenant: str, name: str, version: int | None = None) -> DeltaRecord:
        """That live version, or the current one. Raises NotFound."""

    def find_digest(self, tenant: str, digest: Digest) -> list[DeltaRecord]:
        """The live versions with this digest, by name and version."""

    def list_deltas(self, tenant: str) -> list[DeltaRecord]:
        """One record a live name, sorted: the current version, or the newest where none is current."""

    def list_versions(self, tenant: str, name: str) -> list[DeltaRecord]:
        """The live versions, oldest first. Raises NotFound."""

    def set_current(self, tenant: str, name: str, version: int, expected: int | None = None) -> DeltaRecord:
        """Make a live version current, if `expected` is None or the current one. Raises NotFound, VersionConflict."""

    def delete_delta(self, tenant: str, name: str, version: int | None = None) -> list[DeltaRecord]:
        """Delete one version or the whole name; the records as they were, oldest first. Rows stay as tombstones. Raises
        NotFound, and VersionConflict for the current version of a name that has others.
        """

    def save_merge(self, tenant: str, name: str, recipe: str, replace: bool = False) -> MergeRecord:
        """Raises NameTaken if a delta owns the name, or a merge does and `replace` is not set."""

    def get_merge(self, tenant: str, name: str) -> MergeRecord:
        """Raises NotFound."""

    def list_merges(self, tenant: str) -> list[MergeRecord]:
        """Sorted by name."""

    def delete_merge(self, tenant: str, name: str) -> None:
        """Raises NotFound."""

    def add_blob(self, tenant: str, digest: Digest, size: int) -> bool:
        """The tenant has brought these bytes; False where it had. Ends its upload of them. Raises QuotaExceeded."""

    def has_blob(self, tenant: str, digest: Digest) -> bool: ...

    def forget_blob(self, digest: Digest) -> None:
        """No tenant has brought it any more."""

    def live_digests(self) -> set[Digest]:
        """Digests of all live versions of all tenants."""

    def all_versions(self) -> list[DeltaRecord]:
        """The live versions of all tenants, by tenant, name and version: for whoever looks after the store."""

    def pinned_digests(self) -> set[Digest]:
        """Digests that saved merges of any tenant name, whether a version has them or not."""

    def hold(self, digest: Digest, seconds: float) -> None:
        """For so long nobody removes the blob, which may not be there yet. Shortens no other hold. Raises
        StoreUnavailable while the blob is being removed.
        """

    def condemn(self, digest: Digest, since: float, seconds: float) -> bool:
        """Whether a blob may be removed: no live version has the digest, none had it that was deleted after `since`
        (unix seconds), and nobody holds it. If so nobody can hold it for as long as given, or until it is pardoned.
        """

    def pardon(self, digest: Digest) -> None:
        """It can be held again."""

    def ping(self) -> None:
        """Raises StoreUnavailable if the catalog does not answer."""

    def close(self) -> None: ...


class BlobStore(Protocol):
    """Immutable files named by their digest. Thread-safe. What is no digest is not found. Any call may raise
    StoreUnavailable, and StoreFull where it writes.
    """

    def new_temp(self) -> Path:
        """A new empty file to fill, where `put` can move it from."""

    def new_folder(self) -> Path:
        """A new empty folder into which blobs can be linked. Its caller removes it; leftovers go like temp files."""

    @property
    def uploads(self) -> Path:
        """A folder for files that outlive the process, where `put` can move them from. It may not be there yet."""

    @property
    def staging(self) -> Staging | None:
        """Where others may put bytes past the server."""

    def put(self, temp: Path, digest: Digest) -> None:
        """Move a complete file, whose digest the caller has verified, into place. Durable on return; idempotent."""

    def path(self, digest: Digest) -> Path:
        """A readable file, which stays there as long as the returned object lives; paths that are made from it hold
        nothing. Raises NotFound.
        """

    def size(self, digest: Digest) -> int:
        """In bytes. Raises NotFound."""

    def examine(self, digest: Digest) -> tuple[int, Digest]:
        """Reads what is stored, and no copy of it: how many bytes, and their digest. Raises NotFound."""

    def exists(self, digest: Digest) -> bool: ...

    def delete(self, digest: Digest) -> None:
        """Deleting what is not there is no error."""

    def digests(self) -> set[Digest]: ...

    def close(self) -> None: ...


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn an OSError into StoreFull (no room, quota, size limit) or StoreUnavailable."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise StoreFull(f"no space left at {place}: free some or delete deltas, then try again") from error
        raise StoreUnavailable(f"{place} cannot be used: {error.strerror or error}") from error
